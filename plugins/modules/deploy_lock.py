#!/usr/bin/python
"""Module: acquire and release the deploy lock of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_lock
short_description: Acquire and release the deploy lock of a host
version_added: 0.1.0
description:
  - Acquires a lock for this run of C(ansible-playbook), or fails and names the run that holds it.
  - The action plugin of the same name starts a process on the controller that renews the lock until the run ends.
  - The lock of a run that ended without releasing it does not block other runs of the same controller.
  - The action plugin also sets O(owner), O(boot) and O(instead_of).
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
    description:
      - V(held) acquires or renews the lock, V(released) releases it.
      - V(renewed) renews the lock if this run still holds it. The action plugin uses it.
    type: str
    choices: [held, released, renewed]
    default: held
  wait:
    description: Seconds to wait for another run to end.
    type: int
    default: 0
  max_age:
    description:
      - Seconds after the last renewal at which the lock of this run expires, by the monotonic clock of the host.
      - V(0) for a lock that does not expire.
    type: int
    default: 300
  break_lock:
    description: Acquire the lock even if another run holds it.
    type: bool
    default: false
  fresh_until:
    description:
      - Time until which the lock of this run needs no renewal, by the controller's monotonic clock, as an earlier task
        returned it.
      - Until then the action plugin does not contact the host.
    type: float
    default: 0
  owner:
    description: This run; set by the action plugin.
    type: dict
  boot:
    description: Boot identifier of the host at the last renewal; set by the action plugin.
    type: str
    default: ""
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
  description: The run that holds the lock, and since when; null if this run holds it.
  type: dict
  returned: always
fresh_until:
  description: >-
    Time until which the lock needs no renewal, by the controller's monotonic clock; V(0) if this run does not hold it.
  type: float
  returned: success
boot:
  description: Boot identifier of the host.
  type: str
  returned: always
lost:
  description: Whether this run no longer holds the lock.
  type: bool
  returned: with O(state=renewed)
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.service.lock import (
    MAX_AGE_S,
    Held,
    Moment,
    Owner,
    hold,
    release,
    renew,
    this_moment,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["held", "released", "renewed"], "default": "held"},
            "wait": {"type": "int", "default": 0},
            "max_age": {"type": "int", "default": MAX_AGE_S},
            "break_lock": {"type": "bool", "default": False},
            "fresh_until": {"type": "float", "default": 0},
            "owner": {"type": "dict"},
            "boot": {"type": "str", "default": ""},
            "instead_of": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["owner"]:
        module.fail_json(msg="owner is missing: run the task as inference.vllm.deploy_lock, through its action plugin.")
    owner, path, now = Owner(**params["owner"]), Path(params["path"]), this_moment()
    done: dict[str, object] = {"changed": False, "failed": False, "boot": now.boot, "held_by": None}
    if params["state"] == "released":
        if not module.check_mode:
            release(path, owner)
        module.exit_json(**done)
    if params["state"] == "renewed":
        lost = not module.check_mode and not renew(path, owner, now, boot=params["boot"], max_age=params["max_age"])
        module.exit_json(**done, lost=lost)
    held = hold(
        path,
        owner,
        now,
        instead_of="any" if params["break_lock"] else params["instead_of"],
        max_age=params["max_age"],
        write=not module.check_mode,
    )
    module.exit_json(**{**done, "held_by": None if held is None else _holder(held, now)})


def _holder(held: Held, now: Moment) -> dict[str, object]:
    """Description of another run for the action plugin."""
    age = max(now.seconds - held.renewed, 0)
    since = f"since {held.since()}, renewed {age:.0f} s ago"
    return {"owner": asdict(held.owner), "text": str(held.owner), "since": since, "max_age": held.max_age}


if __name__ == "__main__":
    main()
