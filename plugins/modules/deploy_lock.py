#!/usr/bin/python
"""Module: acquire and release the deploy lock of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_lock
short_description: Acquire and release the deploy lock of a host
version_added: 0.1.0
description:
  - Acquires a lock for this run of C(ansible-playbook), or fails and names the run that holds it.
  - The lock of a run that ended without releasing it does not block other runs of the same controller.
  - The action plugin of the same name sets O(owner).
attributes:
  check_mode:
    description: Fails if another run holds the lock, and writes nothing.
    support: full
  diff_mode:
    description: A lock does not change the host.
    support: none
options:
  path:
    description: File of the lock, in a folder that only root can write to and that is empty after a boot.
    type: path
    required: true
  state:
    description: V(held) acquires or renews the lock, V(released) releases it.
    type: str
    choices: [held, released]
    default: held
  wait:
    description: Seconds to wait for another run to end.
    type: int
    default: 0
  max_age:
    description: Seconds after the last renewal at which a lock expires.
    type: int
    default: 14400
  break_lock:
    description: Acquire the lock even if another run holds it.
    type: bool
    default: false
  fresh_until:
    description:
      - Time until which the lock of this run needs no renewal, in seconds since 1970, as an earlier task returned it.
      - Until then the action plugin does not contact the host.
    type: float
    default: 0
  owner:
    description: This run; set by the action plugin.
    type: dict
  instead_of:
    description: Key of a run that has ended; set by the action plugin.
    type: str
    default: ""
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Lock | Acquire the deploy lock
  inference.vllm.deploy_lock:
    path: /run/vllm.deploy-lock
    wait: 600

- name: Lock | Release the deploy lock
  inference.vllm.deploy_lock:
    path: /run/vllm.deploy-lock
    state: released
"""

RETURN = r"""
held_by:
  description: The run that holds the lock, and the time of its last renewal; null if this run holds it.
  type: dict
  returned: always
fresh_until:
  description: Time until which the lock needs no renewal, in seconds since 1970; V(0) after a release.
  type: float
  returned: success
"""

import time
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.service.lock import Owner, hold, release


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "wait": {"type": "int", "default": 0},
            "max_age": {"type": "int", "default": 14400},
            "break_lock": {"type": "bool", "default": False},
            "fresh_until": {"type": "float", "default": 0},
            "owner": {"type": "dict"},
            "instead_of": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["owner"]:
        module.fail_json(msg="owner is missing: run the task as inference.vllm.deploy_lock, through its action plugin.")
    owner, path = Owner(**params["owner"]), Path(params["path"])
    if params["state"] == "released":
        if not module.check_mode:
            release(path, owner)
        module.exit_json(changed=False, failed=False, held_by=None)
    held = hold(
        path,
        owner,
        time.time(),
        instead_of="any" if params["break_lock"] else params["instead_of"],
        max_age=params["max_age"],
        write=not module.check_mode,
    )
    holder = None if held is None else {"owner": asdict(held.owner), "text": str(held.owner), "since": held.since()}
    module.exit_json(changed=False, failed=False, held_by=holder)


if __name__ == "__main__":
    main()
