"""Lookup of catalogue entries."""

from __future__ import annotations

DOCUMENTATION = r"""
name: model
short_description: Read entries of the model catalogue
description:
  - Returns the catalogue entry of a model variant, with the shapes of its layers.
  - Searches the folders of the variable C(vllm_catalogue_dirs) first, then C(catalogue/) of this collection.
  - Fails for an unknown name, and suggests the closest names.
options:
  _terms:
    description: Names of entries, without C(.yaml).
    type: list
    elements: str
    required: true
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Show the repository of the chosen model
  ansible.builtin.debug:
    msg: "{{ lookup('inference.vllm.model', vllm_model).repository }}"

- name: Read a model's alternatives
  ansible.builtin.debug:
    msg: "{{ query('inference.vllm.model', *lookup('inference.vllm.model', vllm_model).alternatives) }}"
"""

RETURN = r"""
_raw:
  description: One mapping for each name.
  type: list
  elements: dict
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.plugin_utils.catalogue_dirs import catalogue_dirs


class LookupModule(LookupBase):
    """Reads entries of the catalogue."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **_: Any) -> list[dict[str, Any]]:
        """Read one entry per term; raises AnsibleLookupError with the refusal as its text."""
        try:
            own = catalogue_dirs(self, variables)
            return [catalogue.load(str(term), own).as_dict() for term in terms]
        except RefusalError as error:
            raise AnsibleLookupError(str(error)) from error
