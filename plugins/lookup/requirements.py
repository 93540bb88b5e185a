"""Lookup of what a plan is required to hold."""

from __future__ import annotations

DOCUMENTATION = r"""
name: requirements
short_description: The variables of role vram_plan as option C(requirements) of module vram_plan
description:
  - Reads the variable C(vram_plan_<name>) for each requirement. A variable that is not set is left out.
  - Fails where a variable is set under a former name.
options: {}
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Plan as the variables say
  inference.vllm.vram_plan:
    model: "{{ lookup('inference.vllm.model', vllm_model) }}"
    requirements: "{{ lookup('inference.vllm.requirements') }}"
"""

RETURN = r"""
_raw:
  description: One mapping, of the names of requirements to their values.
  type: list
  elements: dict
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils import inventory
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import REQUIREMENTS, variable_name
from ansible_collections.inference.vllm.plugins.module_utils.refusal import join


class LookupModule(LookupBase):
    """Reads the variables of role vram_plan by the planner's table."""

    def run(self, _terms: list[str], variables: dict[str, Any] | None = None, **_: Any) -> list[dict[str, Any]]:
        """Return one mapping; raises AnsibleLookupError with the refusals as its text."""
        known = variables or {}
        refusals = inventory.renamed_variables(known)
        if refusals:
            raise AnsibleLookupError(join(refusals))
        names = {row.name: variable_name(row.name) for row in REQUIREMENTS}
        return [{name: self._templar.template(known[key]) for name, key in names.items() if key in known}]
