#!/usr/bin/python
"""Module: the state of the service on a host, compared with what was proven, and brought back to it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_state
short_description: Compare what serves with what was proven, and bring the proven release back
version_added: 0.2.0
description:
  - Owns C(state.json) in O(service.home). A release is on trial from before its start until its full proof. A run that
    is cut off leaves its trial behind, and V(reconciled) of the next run undoes it.
options:
  service:
    description: Where the service is.
    type: dict
    required: true
    suboptions:
      home:
        description: Folder of the deployment.
        type: path
        required: true
      project:
        description: Compose project of the engine.
        type: str
        required: true
      spare_project:
        description: Compose project of the spare engine.
        type: str
        required: true
      socket:
        description: Admin socket of the gateway. A gateway that does not run is ignored.
        type: path
      lock_file:
        description: The deploy lock.
        type: path
      start_timeout:
        description: Seconds that an engine may need for its first token.
        type: int
        default: 900
      stop_timeout:
        description: Seconds that an engine may need to stop.
        type: int
        default: 60
  state:
    description:
      - V(read) reports each part of the invariant.
      - V(begun) records that O(release) is on trial, before it is started, and takes the engine out of the gateway. The
        current release is not on trial while its container runs, is healthy and has the keys on disk.
      - V(started) records that the engine of O(release) gives tokens, with the keys on disk.
      - V(reconciled) undoes what an earlier run left, and starts the current release if it does not run. The trial of
        the run that holds the lock is kept.
      - V(restored) undoes the trial of this run too, after a failure.
      - V(promoted) makes O(release) the current one, if its container is still the one that was proven.
      - V(routed) records which engine the gateway will route requests to.
      - V(stopped) records that nothing serves any more, so that no later run starts the former release again.
    type: str
    choices: [read, begun, started, reconciled, restored, promoted, routed, stopped]
    default: read
  release:
    description: Identifier of the release on trial. Required for V(begun), V(restored) and V(promoted).
    type: str
    default: ""
  started:
    description: Start of the container when the checks began, for V(promoted). Empty skips the comparison.
    type: str
    default: ""
  target:
    description: Engine that the gateway will route requests to, for V(routed).
    type: str
    choices: [engine, spare]
    default: engine
  keep_trial:
    description: Keep a release on trial whose engine gives tokens, because the caller verifies it next.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports what would be done.
    support: full
  diff_mode:
    description: Shows the state file before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Bring back what was proven
  inference.vllm.service_state:
    service:
      home: /opt/vllm
      project: vllm
      spare_project: vllm-spare
      lock_file: /run/vllm.deploy-lock
    state: reconciled
"""

RETURN = r"""
holds:
  description: Whether all parts of the invariant hold.
  returned: always
  type: bool
facts:
  description: The parts of the invariant, each with C(name), C(holds) and C(found).
  returned: always
  type: list
  elements: dict
repairs:
  description: What was done, or in check mode and with O(state=read) would be done.
  returned: always
  type: list
  elements: str
serving:
  description: Which release gives tokens now, as a sentence for messages.
  returned: always
  type: str
trial:
  description: The release on trial; empty if there is none.
  returned: always
  type: str
recreate:
  description: Whether the container must be recreated, because it is unhealthy or was started with other keys.
  returned: with O(state=begun)
  type: bool
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.contracts import StateFile
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.state import judge
from ansible_collections.inference.vllm.plugins.module_utils.state.host import Host, bring_back

SERVICE: dict[str, dict[str, Any]] = {
    "home": {"type": "path", "required": True},
    "project": {"type": "str", "required": True},
    "spare_project": {"type": "str", "required": True},
    "socket": {"type": "path"},
    "lock_file": {"type": "path"},
    "start_timeout": {"type": "int", "default": 900},
    "stop_timeout": {"type": "int", "default": 60},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "service": {"type": "dict", "required": True, "options": SERVICE},
    "state": {
        "type": "str",
        "choices": ["read", "begun", "started", "reconciled", "restored", "promoted", "routed", "stopped"],
        "default": "read",
    },
    "release": {"type": "str", "default": ""},
    "started": {"type": "str", "default": ""},
    "target": {"type": "str", "choices": ["engine", "spare"], "default": "engine"},
    "keep_trial": {"type": "bool", "default": False},
}
_NEEDS_RELEASE = [("state", state, ("release",)) for state in ("begun", "started", "restored", "promoted")]


class Run:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read the arguments."""
        self.module = module
        self.params = module.params
        service = module.params["service"]
        self.host = Host(
            home=Path(service["home"]),
            project=service["project"],
            spare_project=service["spare_project"],
            socket=Path(service["socket"]) if service["socket"] else None,
            lock_file=Path(service["lock_file"]) if service["lock_file"] else None,
            start_timeout=service["start_timeout"],
            stop_timeout=service["stop_timeout"],
        )

    def begun(self) -> dict[str, Any]:
        """Record a trial, if the start changes anything."""
        release, seen, state = self.params["release"], self.host.look(), self.host.read()
        engine = judge.only(seen.running)
        there = engine is not None and engine.release == release
        recreate = there and engine is not None and (engine.health == judge.UNHEALTHY or self.host.other_keys(engine))
        if there and not recreate and seen.current == release:
            return {"changed": False, "recreate": False}
        written = self._written(
            replace(self.host.begun(release, "start"), keys="" if recreate or not there else state.keys)
        )
        if seen.current != release and state.target == judge.ENGINE and not self.module.check_mode:
            self.host.withdraw()
        return {**written, "changed": False, "recreate": recreate}

    def started(self) -> dict[str, Any]:
        """Record that the engine runs, with the keys on disk."""
        state = replace(self.host.begun(self.params["release"], "verify"), keys=self.host.keys_on_disk())
        return {**self._written(state), "changed": False}

    def routed(self) -> dict[str, Any]:
        """Record the target of the gateway."""
        return {**self._written(replace(self.host.read(), target=self.params["target"])), "changed": False}

    def stopped(self) -> dict[str, Any]:
        """Record that nothing serves."""
        state = self.host.promoted("")
        if not self.host.home.is_dir() or self.module.check_mode:
            return {"changed": self.host.store.current() is not None}
        self.host.store.link.unlink(missing_ok=True)
        return self._written(replace(state, keys="", target="engine"))

    def promoted(self) -> dict[str, Any]:
        """Make a release the current one.

        Raises:
            RefusalError: Its container is not the one that was proven.
        """
        release, seen = self.params["release"], self.host.look()
        if self.module.check_mode:
            return {"changed": seen.current != release}
        engine, started = judge.only(seen.running), self.params["started"]
        found = "none runs" if engine is None else f"{engine.release} runs, started at {engine.started}"
        if engine is None or engine.release != release or (started and engine.started != started):
            message = f"The container of {release} that was checked started at {started}; now {found}."
            fix = "Find out what restarted or replaced it (journalctl -u docker), then run playbooks/verify.yml."
            raise RefusalError(Refusal("container_replaced", message, fix))
        state = self.host.promoted(release)
        changed = self.host.store.point(release)
        # A spare engine that serves is drained first, by role gateway.
        routes: list[judge.Action] = ["route_engine"] if state.target == judge.ENGINE else []
        reason = bring_back(self.host, ["set_policy", *routes], seen)
        if reason:
            raise RefusalError(Refusal("promote_failed", f"{release} is current, but {reason}.", "Run the play again."))
        written = self._written(state)
        return {**written, "changed": changed}

    def reconciled(self) -> dict[str, Any]:
        """Undo what an earlier run left."""
        seen, state = self.host.look(), self.host.read()
        if refusal := judge.stranger_refusal(str(self.host.home), self.host.project, seen):
            raise RefusalError(refusal)
        keep = state.trial.release if state.trial and self.params["keep_trial"] else ""
        actions = judge.repairs(state, seen, keep=keep)
        reason = "" if self.module.check_mode else bring_back(self.host, actions, seen)
        if reason:
            text = judge.after_failure("", self.host.look(), reason)
            raise RefusalError(Refusal("restore_failed", text.replace("[restore_failed] ", ""), "See the runbook."))
        return {"changed": bool(actions), "repairs": actions}

    def restored(self) -> dict[str, Any]:
        """Undo the trial of this run after a failure; never fails, because the caller reports the first failure."""
        seen, state = self.host.look(), self.host.read()
        # The engine of the current release failed its checks: a spare engine goes on serving instead of it.
        same = seen.current == self.params["release"]
        actions = [] if same else judge.repairs(self._handed_over(state), seen)
        reason = "" if self.module.check_mode else bring_back(self.host, actions, seen)
        text = judge.after_failure(self.params["release"], self.host.look(), reason)
        return {"changed": bool(actions), "repairs": actions, "serving": text}

    def result(self) -> dict[str, Any]:
        """Do what is asked for, and report the state afterwards."""
        wanted = self.params["state"]
        done = {"changed": False} if wanted == "read" else getattr(self, wanted)()
        state, seen = self.host.read(), self.host.look()
        facts = judge.invariant(state, seen)
        return {
            "holds": all(fact.holds for fact in facts),
            "facts": [asdict(fact) for fact in facts],
            "repairs": judge.repairs(state, seen),
            "serving": judge.serving(seen),
            "trial": state.trial.release if state.trial else "",
            **done,
        }

    def _handed_over(self, state: StateFile) -> StateFile:
        """The trial without its run, so that it counts as left behind; on disk the step is its restore."""
        if state.trial and not self.module.check_mode:
            self.host.write(self.host.begun(state.trial.release, "restore"))
        return replace(state, trial=replace(state.trial, run="") if state.trial else None)

    def _written(self, state: StateFile) -> dict[str, Any]:
        path = self.host.state_file
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        changed = before != state.to_json()
        if changed and not self.module.check_mode:
            self.host.write(state)
        header = str(path)
        diff = {"before": before, "after": state.to_json(), "before_header": header, "after_header": header}
        return {"changed": changed, "diff": diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(ARGUMENTS, required_if=_NEEDS_RELEASE, supports_check_mode=True)
    try:
        result = Run(module).result()
    except RefusalError as error:
        module.fail_json(msg="\n".join(map(str, error.refusals)))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(failed=False, **result)


if __name__ == "__main__":
    main()
