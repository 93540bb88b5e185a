"""Identify this run for module deploy_lock, wait while another run holds the lock, and start a keeper that renews it.

Only the controller can determine whether the process that holds the lock still exists.
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

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal
from ansible_collections.inference.vllm.plugins.module_utils.service import keeper
from ansible_collections.inference.vllm.plugins.module_utils.service.lock import MAX_AGE_S, Owner, is_gone, this_run

PAUSE_S = 5
#: Seconds until a task contacts the host again. The plays of a deploy follow each other within seconds.
FRESH_S = 60
#: Timeout of a renewal in seconds.
RENEWAL_S = 30
#: Timeout for the end of a keeper in seconds.
END_S = 10

_LAST_STANDARD_STREAM = 2

display = Display()


class _TooLateError(BaseException):
    """Timeout of a renewal. Not an Exception, so that a connection plugin does not catch it."""


class ActionModule(ActionBase):
    """Runs the module until this run holds the lock or the wait time ends."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; fails with [deploy_locked] if another run holds the lock."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        folder = Path(C.DEFAULT_LOCAL_TMP)  # Ansible creates it for each run and removes it at the end
        host = str(variables.get("inventory_hostname", ""))
        file = keeper.PidFile.of(folder, host, str(self._task.args.get("path", "")))
        released = self._task.args.get("state") == "released"
        fresh_until = self._number("fresh_until", 0)
        if not released and time.monotonic() < fresh_until and file.is_locked():
            return {**result, "changed": False, "held_by": None, "fresh_until": fresh_until}
        # A task runs in its own process; the run is the parent.
        owner = this_run(os.getppid(), str(variables.get("ansible_play_name", "")))
        arguments = {**self._task.args, "owner": asdict(owner)}
        if released and not self._task.check_mode:
            _end(file)
        output = self._ask(arguments, variables)
        if not output.get("failed") and not released and not self._task.check_mode:
            self._start_keeper(file, owner, str(output.get("boot", "")), variables)
            output["fresh_until"] = time.monotonic() + FRESH_S
        return {"fresh_until": 0.0, **result, **output}

    def _ask(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Run the module until no other run holds the lock or the wait time ends."""
        deadline = time.monotonic() + self._number("wait", 0)
        while True:
            output: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=variables)
            held = output.get("held_by")
            if output.get("failed") or not held:
                return output
            other = Owner(**held["owner"])
            if is_gone(other):
                display.vv(f"taking over from {held['text']}, which has ended")
                arguments["instead_of"] = other.key
            elif time.monotonic() >= deadline:
                return {**output, "failed": True, "msg": _refusal(variables, held)}
            else:
                display.display(f"waiting for {held['text']} ({held['since']})")
                time.sleep(PAUSE_S)

    def _start_keeper(self, file: keeper.PidFile, owner: Owner, boot: str, variables: dict[str, Any]) -> None:
        """Start a keeper for the lock, unless this run has one."""
        descriptor = file.claim()
        if descriptor is None:
            return
        if (pid := os.fork()) == 0:
            self._keep(descriptor, owner, boot, variables)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(pid).encode(), 0)
        os.close(descriptor)

    def _keep(self, pid_file_fd: int, owner: Owner, boot: str, variables: dict[str, Any]) -> NoReturn:
        """Main function of the keeper process. No exception may reach the code of the task."""
        try:
            with suppress(OSError):
                os.setsid()
            _close_files({pid_file_fd, _messages_fd(), self._play_context.connection_lockfd})
            pipe = keeper.signals()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, _raise_too_late)
            # The task removes its temporary folder on the host.
            self._connection._shell.tmpdir = None
            lease = _Lease(self, owner, boot, variables)
            pause = keeper.pause_of(self._number("max_age", MAX_AGE_S))
            if not keeper.keep(pipe, pause, run_state=lease.run_state, renew=lease.renew, release=lease.release):
                # Ansible attaches a warning to the result of the task, which has ended.
                display.display(
                    "[WARNING]: [deploy_lock_lost] This run has lost the deploy lock of "
                    f"{variables['inventory_hostname']}: another run may change that host at the same time. "
                    "Wait until both have ended, then verify the host.",
                    color=C.COLOR_WARN,
                    stderr=True,
                )
        finally:
            os._exit(0)

    def _number(self, option: str, default: float) -> float:
        try:
            return float(self._task.args.get(option, default))
        except (TypeError, ValueError):
            return default  # the module reports the error


class _Lease:
    """The lock of a run, for its keeper."""

    def __init__(self, action: ActionModule, owner: Owner, boot: str, variables: dict[str, Any]) -> None:
        self._action, self._owner, self._boot, self._variables = action, owner, boot, variables
        self._folder = Path(C.DEFAULT_LOCAL_TMP)

    def run_state(self) -> str:
        """State of the run. Ansible removes its folder at the end, unless it is killed."""
        if not is_gone(self._owner):
            return "running"
        return "killed" if self._folder.exists() else "ended"

    def renew(self) -> bool | None:
        """Renew the lock. Returns False if it is lost, None if the host did not answer."""
        output = self._run_module("renewed")
        if "lost" not in output:
            return None
        self._boot = str(output["boot"])
        return not output["lost"]

    def release(self) -> None:
        """Release the lock."""
        ended = not self._folder.exists()
        self._run_module("released")
        if ended:
            shutil.rmtree(self._folder, ignore_errors=True)  # packing the module created it again

    def _run_module(self, state: str) -> dict[str, Any]:
        arguments = {**self._action._task.args, "state": state, "owner": asdict(self._owner), "boot": self._boot}
        signal.alarm(RENEWAL_S)
        try:
            output: dict[str, Any] = self._action._execute_module(module_args=arguments, task_vars=self._variables)
            self._action.cleanup()
        except (Exception, _TooLateError):  # for example during a reboot of the host
            return {}
        finally:
            signal.alarm(0)
            self._action._connection._shell.tmpdir = None
        return {} if output.get("failed") else output


def _end(file: keeper.PidFile) -> None:
    """End the keeper before a release. A renewal that still arrives from a killed keeper has no effect."""
    if file.send(keeper.END) and not file.wait(END_S) and file.send(signal.SIGKILL):
        file.wait(END_S)


def _close_files(kept: set[int | None]) -> None:
    """Close the files of the task. Its parent waits until some of them are closed."""
    for name in list(Path("/dev/fd").iterdir()):
        number = int(name.name)
        if number > _LAST_STANDARD_STREAM and number not in kept:
            with suppress(OSError):
                os.close(number)


def _messages_fd() -> int:
    """Descriptor of the pipe for messages to the main process; -1 if this version of Ansible has none."""
    with suppress(AttributeError):
        return int(display._final_q._writer.fileno())
    return -1


def _raise_too_late(*_: object) -> NoReturn:
    raise _TooLateError


def _refusal(variables: dict[str, Any], held: dict[str, Any]) -> str:
    return str(
        Refusal(
            "deploy_locked",
            f"Another run works on {variables.get('inventory_hostname', 'this host')}: {held['text']}, "
            f"{held['since']}.",
            "Wait until it ends, or set deploy_lock_wait to the seconds to wait. The lock of a killed run expires "
            f"{held['max_age']:.0f} s after its last renewal. If its controller no longer exists, run once with "
            "-e deploy_lock_break=true.",
        )
    )
