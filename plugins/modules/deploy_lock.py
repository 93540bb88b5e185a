#!/usr/bin/python
"""Module: keep other runs of Ansible off a host."""

from __future__ import annotations

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

DOCUMENTATION = r"""
module: deploy_lock
short_description: Keep other runs of Ansible off a host
version_added: 0.1.0
description:
  - Takes a lock for the run of C(ansible-playbook) that it is part of, or fails and says which run holds it.
  - The lock is a lease. The action plugin of the same name leaves a process on the controller that renews it until the
    run ends.
  - A run that ended without giving its lock back does not stand in the way of others on the same controller.
  - The action plugin of the same name says who runs; O(owner) is for its use.
attributes:
  check_mode:
    description: Fails as it would, and takes nothing.
    support: full
  diff_mode:
    description: A lock is no change of a host.
    support: none
options:
  path:
    description: File of the lock, in a folder that only root may write to and that is empty after a boot.
    type: path
    required: true
  state:
    description:
      - V(held) takes or renews it, V(released) gives it back.
      - V(renewed) renews what this run still holds; for the action plugin.
    type: str
    choices: [held, released, renewed]
    default: held
  wait:
    description: Seconds to wait for another run to end.
    type: int
    default: 0
  max_age:
    description:
      - Length of the lease in seconds, by the clock of the host that counts from its boot. A lock that this run takes and
        does not renew for so long counts for nothing. V(0) for a lock that only this run or a boot releases.
    type: int
    default: 300
  break_lock:
    description: Take the lock from whoever holds it.
    type: bool
    default: false
  fresh_until:
    description:
      - Time until which the lock of this run needs no renewal, by the controller's monotonic clock, as an earlier task
        returned it.
      - Before it, the action plugin does not ask the host.
    type: float
    default: 0
  owner:
    description: The run that this is part of; set by the action plugin.
    type: dict
  boot:
    description: Boot of the host in which this run renewed the lock; set by the action plugin.
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
  description: Who holds the lock instead of this run, and since when; null where this run holds it.
  type: dict
  returned: always
fresh_until:
  description: >-
    Time until which the lock needs no renewal, by the controller's monotonic clock; V(0) where this run does not hold it.
  type: float
  returned: success
boot:
  description: The present boot of the host.
  type: str
  returned: always
lost:
  description: Whether this run does not hold the lock any more.
  type: bool
  returned: with O(state=renewed)
"""


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
    module.exit_json(**{**done, "held_by": None if held is None else _told(held, now)})


def _told(held: Held, now: Moment) -> dict[str, object]:
    """What the action plugin needs to know of another run."""
    age = max(now.seconds - held.renewed, 0)
    since = f"since {held.since()}, renewed {age:.0f} s ago"
    return {"owner": asdict(held.owner), "text": str(held.owner), "since": since, "max_age": held.max_age}


if __name__ == "__main__":
    main()
