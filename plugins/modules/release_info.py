#!/usr/bin/python
"""Module: the releases of a host, and the one that a rollback starts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: Return the releases of a host, and the one that a rollback starts
version_added: 0.1.0
description:
  - Reads the releases below O(home) with the verdicts of their last proofs, and changes nothing.
  - With O(choose) it also returns one release to start, or fails and lists the releases of the host.
options:
  home:
    description: Absolute path of the folder that holds C(releases/), C(reports/) and the link C(current).
    type: path
    required: true
  choose:
    description:
      - Identifier of the release to start. The module fails if its folder was edited.
      - V(former) is the newest release that was proven and is not current.
    type: str
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Find the release for a rollback
  inference.vllm.release_info:
    home: /opt/vllm
    choose: former
  register: former

- name: Show its identifier
  ansible.builtin.debug:
    var: former.chosen.id
"""

RETURN = r"""
releases:
  description: All releases, newest first.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Identifier.
      type: str
    current:
      description: Whether the link C(current) points to it.
      type: bool
    state:
      description: V(proven) or V(failed) by its last verdict, V(prepared) if it has none.
      type: str
    finished:
      description: End of its last proof, UTC, ISO 8601; empty if there was none.
      type: str
    failures:
      description: Codes of the checks that failed in its last proof.
      type: list
      elements: str
    model:
      description: Name of the model in the catalogue.
      type: str
    commit:
      description: Revision of the weights.
      type: str
    image:
      description: Reference of the engine's image.
      type: str
    problems:
      description: Differences between its folder and its manifest.
      type: list
      elements: str
chosen:
  description: The release that O(choose) names, in the shape of an element of RV(releases).
  returned: when O(choose) is set
  type: dict
path:
  description: The chosen release's folder.
  returned: when O(choose) is set
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import history as release_history


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "choose": {"type": "str"},
        },
        supports_check_mode=True,
    )
    home, choose = Path(module.params["home"]), module.params["choose"]
    releases = release_history.history(home)
    result: dict[str, Any] = {"changed": False, "failed": False, "releases": [past.as_dict() for past in releases]}
    if choose:
        try:
            past = release_history.step_back(releases) if choose == "former" else release_history.chosen(home, choose)
        except RefusalError as error:
            refusals = [refusal.as_dict() for refusal in error.refusals]
            module.fail_json(msg=str(error), refusals=refusals, failed=True)
        result.update(chosen=past.as_dict(), path=str(home / "releases" / past.id))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
