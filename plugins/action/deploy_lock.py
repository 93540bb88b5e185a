"""Identify this run for module deploy_lock, and wait while another run holds the lock.

Only the controller can determine whether the process that holds the lock still exists.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal
from ansible_collections.inference.vllm.plugins.module_utils.service.lock import Owner, is_gone, this_run

PAUSE_S = 5
#: Seconds between renewals. The plays of a deploy follow each other within seconds and need no renewal each.
FRESH_S = 60

display = Display()


class ActionModule(ActionBase):
    """Runs the module until this run holds the lock or the wait time ends."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; fails with [deploy_locked] if another run holds the lock."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if time.time() < (fresh_until := self._number("fresh_until")):
            return {**result, "changed": False, "held_by": None, "fresh_until": fresh_until}
        variables = task_vars or {}
        # A task runs in its own process; the run is the parent.
        owner = this_run(os.getppid(), str(variables.get("ansible_play_name", "")))
        arguments = {**self._task.args, "owner": asdict(owner)}
        deadline = time.monotonic() + self._number("wait")
        while True:
            output: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=variables)
            held = output.get("held_by")
            if output.get("failed"):
                return {**result, **output}
            if not held:
                released = arguments.get("state") == "released"
                return {**result, **output, "fresh_until": 0.0 if released else time.time() + FRESH_S}
            other = Owner(**held["owner"])
            if is_gone(other):
                display.vv(f"taking over from {held['text']}, which has ended")
                arguments["instead_of"] = other.key
            elif time.monotonic() >= deadline:
                return {**result, **output, "failed": True, "msg": _refusal(variables, held)}
            else:
                display.display(f"waiting for {held['text']} (last seen {held['since']})")
                time.sleep(PAUSE_S)

    def _number(self, option: str) -> float:
        try:
            return float(self._task.args.get(option, 0))
        except (TypeError, ValueError):
            return 0.0  # the module reports the error


def _refusal(variables: dict[str, Any], held: dict[str, Any]) -> str:
    return str(
        Refusal(
            "deploy_locked",
            f"Another run works on {variables.get('inventory_hostname', 'this host')}: {held['text']}, last seen "
            f"{held['since']}.",
            "Wait until it ends, or set deploy_lock_wait to the seconds to wait. If its controller no longer exists, "
            "run once with -e deploy_lock_break=true.",
        )
    )
