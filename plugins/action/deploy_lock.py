"""Say to module deploy_lock which run it is part of, wait for another one, and leave a process that renews the lock.

Only the controller knows its own processes: whether the run that holds the lock is still there.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal
from ansible_collections.inference.vllm.plugins.module_utils.service import keeper
from ansible_collections.inference.vllm.plugins.module_utils.service.lock import MAX_AGE_S, Owner, is_gone, this_run

PAUSE_S = 5
#: The plays of a deploy follow each other within seconds: a lock is not renewed sooner than this.
FRESH_S = 60
#: A renewal that takes longer did not reach the host.
RENEWAL_S = 30
#: How long a keeper may need to end.
END_S = 10

display = Display()


class _TooLateError(BaseException):
    """A renewal took too long. No ``except Exception`` of a connection plugin may catch it."""


class ActionModule(ActionBase):
    """Runs the module until this run holds the lock or the time is up."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; fails with [deploy_locked] where another run holds the lock."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        folder = Path(C.DEFAULT_LOCAL_TMP)  # of this run alone, and removed at its end
        host = str(variables.get("inventory_hostname", ""))
        badge = keeper.Badge.of(folder, host, str(self._task.args.get("path", "")))
        released = self._task.args.get("state") == "released"
        fresh_until = self._number("fresh_until", 0)
        if not released and time.monotonic() < fresh_until and badge.is_worn():
            return {**result, "changed": False, "held_by": None, "fresh_until": fresh_until}
        # A task runs in a process of its own; the run is its parent.
        owner = this_run(os.getppid(), str(variables.get("ansible_play_name", "")))
        arguments = {**self._task.args, "owner": asdict(owner)}
        if released and not self._task.check_mode:
            _end(badge)
        told = self._ask(arguments, variables)
        if not told.get("failed") and not released and not self._task.check_mode:
            self._leave_keeper(badge, owner, str(told.get("boot", "")), variables)
            told["fresh_until"] = time.monotonic() + FRESH_S
        return {"fresh_until": 0.0, **result, **told}

    def _ask(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Run the module until nobody else holds the lock or the time is up."""
        deadline = time.monotonic() + self._number("wait", 0)
        while True:
            told: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=variables)
            held = told.get("held_by")
            if told.get("failed") or not held:
                return told
            other = Owner(**held["owner"])
            if is_gone(other):
                display.vv(f"taking over from {held['text']}, which has ended")
                arguments["instead_of"] = other.key
            elif time.monotonic() >= deadline:
                return {**told, "failed": True, "msg": _refusal(variables, held)}
            else:
                display.display(f"waiting for {held['text']} ({held['since']})")
                time.sleep(PAUSE_S)

    def _leave_keeper(self, badge: keeper.Badge, owner: Owner, boot: str, variables: dict[str, Any]) -> None:
        """Start the process that renews the lock, where this run has none for it."""
        file = badge.claim()
        if file is None:
            return
        if (pid := os.fork()) == 0:
            self._keep(file, owner, boot, variables)
        os.ftruncate(file, 0)
        os.pwrite(file, str(pid).encode(), 0)
        os.close(file)

    def _keep(self, badge_file: int, owner: Owner, boot: str, variables: dict[str, Any]) -> NoReturn:
        """Be the keeper. No exception may lead back into the task, which goes on in the parent."""
        try:
            with suppress(OSError):
                os.setsid()
            _close_files({badge_file, _messages_fd()})
            pipe = keeper.orders()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, _raise_too_late)
            # The folder on the host is the task's, which removes it.
            self._connection._shell.tmpdir = None
            lease = _Lease(self, owner, boot, variables)
            pause = keeper.pause_of(self._number("max_age", MAX_AGE_S))
            if not keeper.keep(pipe, pause, run_state=lease.run_state, renew=lease.renew, release=lease.release):
                display.warning(
                    f"[deploy_lock_lost] This run has lost the lock of {variables.get('inventory_hostname')}: another "
                    "run may work on that host. Stop this run, or wait until both have ended, and verify the host."
                )
        finally:
            os._exit(0)

    def _number(self, option: str, default: float) -> float:
        try:
            return float(self._task.args.get(option, default))
        except (TypeError, ValueError):
            return default  # the module says what is wrong with it


class _Lease:
    """The lock of a run as its keeper renews it."""

    def __init__(self, action: ActionModule, owner: Owner, boot: str, variables: dict[str, Any]) -> None:
        self._action, self._owner, self._boot, self._variables = action, owner, boot, variables
        self._folder = Path(C.DEFAULT_LOCAL_TMP)

    def run_state(self) -> str:
        """Whether the run goes on, has ended or was killed: Ansible removes its folder when it ends."""
        if not is_gone(self._owner):
            return "running"
        return "killed" if self._folder.exists() else "ended"

    def renew(self) -> bool | None:
        """Renew the lock; None where the host could not be asked."""
        told = self._run_module("renewed")
        if "lost" not in told:
            return None
        self._boot = str(told["boot"])
        return not told["lost"]

    def release(self) -> None:
        """Give the lock back."""
        ended = not self._folder.exists()
        self._run_module("released")
        if ended:
            shutil.rmtree(self._folder, ignore_errors=True)  # the module was packed there

    def _run_module(self, state: str) -> dict[str, Any]:
        arguments = {**self._action._task.args, "state": state, "owner": asdict(self._owner), "boot": self._boot}
        signal.alarm(RENEWAL_S)
        try:
            told: dict[str, Any] = self._action._execute_module(module_args=arguments, task_vars=self._variables)
            self._action.cleanup()
        except (Exception, _TooLateError):  # noqa: BLE001 - a host that boots, a lost connection: asked again later
            return {}
        finally:
            signal.alarm(0)
            self._action._connection._shell.tmpdir = None
        return {} if told.get("failed") else told


def _end(badge: keeper.Badge) -> None:
    """End the keeper before the lock is given back. One that hangs is killed; what it may still send renews nothing."""
    if badge.send(keeper.END) and not badge.wait(END_S) and badge.send(signal.SIGKILL):
        badge.wait(END_S)


def _close_files(kept: set[int]) -> None:
    """Close what the task has open: its parent waits for some of these files to be closed."""
    for name in os.listdir("/dev/fd"):
        number = int(name)
        if number > 2 and number not in kept:
            with suppress(OSError):
                os.close(number)


def _messages_fd() -> int:
    """The pipe to the run's main process, which shows messages; -1 where this version of Ansible has another way."""
    with suppress(AttributeError):
        return int(display._final_q._writer.fileno())
    return -1


def _raise_too_late(*_: object) -> NoReturn:
    raise _TooLateError


def _refusal(variables: dict[str, Any], held: dict[str, Any]) -> str:
    return str(
        Refusal(
            "deploy_locked",
            f"Another run works on {variables.get('inventory_hostname', 'this host')}: {held['text']}, {held['since']}.",
            "Wait until it has ended (deploy_lock_wait: seconds does so). A run that was killed on another controller "
            f"keeps the lock for {held['max_age']:.0f} s after its last renewal; to get in before, run this once with "
            "-e deploy_lock_break=true.",
        )
    )
