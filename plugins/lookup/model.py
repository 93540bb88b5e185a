"""Lookup of catalogue entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

DOCUMENTATION = r"""
name: model
short_description: Read entries of the model catalogue
description:
  - Returns what C(catalogue/) knows about a model variant, with the shapes of its layers.
  - An unknown name fails and says which names are nearest.
options:
  _terms:
    description: Names of entries, without C(.yaml).
    type: list
    elements: str
    required: true
  folder:
    description: Folder that holds the catalogue. The default is C(catalogue/) of this project.
    type: path
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Show the repository of the chosen model
  ansible.builtin.debug:
    msg: "{{ lookup('inference.vllm.model', vllm_model).repository }}"

- name: Read a model and all that may replace it
  ansible.builtin.debug:
    msg: "{{ query('inference.vllm.model', *lookup('inference.vllm.model', vllm_model).alternatives) }}"
"""

RETURN = r"""
_raw:
  description: One mapping for each name.
  type: list
  elements: dict
"""


class LookupModule(LookupBase):
    """Door to the catalogue."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Read one entry per term; raises AnsibleLookupError with the refusal as its text."""
        self.set_options(var_options=variables, direct=kwargs)
        folder = self.get_option("folder")
        try:
            return [catalogue.load(str(term), Path(folder) if folder else None).as_dict() for term in terms]
        except RefusalError as error:
            raise AnsibleLookupError(str(error)) from error
