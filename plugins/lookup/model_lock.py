"""Lookup of the lock files of models."""

from __future__ import annotations

DOCUMENTATION = r"""
name: model_lock
short_description: Path of the lock file of a model's weights
description:
  - A lock is C(locks/<model>.json) in a folder of the catalogue. It is searched in the folders of the variable
    C(vllm_catalogue_dirs), then in C(catalogue/) of this collection, up to the folder that has the model's entry.
  - If there is none, the path is that of a new lock. It is in the folder of the user's own entry. For an entry of this
    collection it is in the first folder of C(vllm_catalogue_dirs), or in the entry's folder if there is none.
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
- name: Show where the lock of the chosen model is, or would be
  ansible.builtin.debug:
    msg: "{{ lookup('inference.vllm.model_lock', vllm_model) }}"
"""

RETURN = r"""
_raw:
  description: One path for each name.
  type: list
  elements: path
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.plugin_utils.catalogue_dirs import catalogue_dirs


class LookupModule(LookupBase):
    """Finds the lock files of entries."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        """Return one path per term; raises AnsibleLookupError with the refusal as its text."""
        try:
            own = catalogue_dirs(self, variables)
            return [str(catalogue.lock_file(str(term), own)) for term in terms]
        except RefusalError as error:
            raise AnsibleLookupError(str(error)) from error
