"""Keeper: the process on the controller that renews the lock of one host during a run of Ansible.

A task may take an hour, and the main process of a run has no connection to the hosts. So the task that acquires the
lock forks a keeper, which inherits the connection. The keeper ends with the run, or when the run has lost the lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: Signal to end without a release: a task of the run releases the lock.
END = signal.SIGTERM
#: Signal to release the lock and end.
RELEASE = signal.SIGUSR1

_NAME = "deploy-lock-"
_TICK_S = 1.0  # seconds between two checks whether the run has ended
_RETRY_S = 5.0  # seconds until the next attempt if the host did not answer, for example during a reboot
_RENEWALS = 5  # number of renewals within one lease
_LONGEST_PAUSE_S = 60.0


def pause_of(max_age: float) -> float:
    """Seconds between two renewals of a lease of this length; 0 for a lease that does not expire."""
    return max(min(max_age / _RENEWALS, _LONGEST_PAUSE_S), _TICK_S) if max_age > 0 else _LONGEST_PAUSE_S


class PidFile:
    """File of a keeper, in a folder of its run. The keeper holds a lock on the file until it ends."""

    def __init__(self, path: Path) -> None:
        """Set the path. Creates no file."""
        self.path = path

    @classmethod
    def of(cls, folder: Path, host: str, lock_file: str) -> PidFile:
        """The file of the keeper for the lock of a host."""
        return cls(folder / (_NAME + hashlib.sha256(f"{host}\n{lock_file}".encode()).hexdigest()[:16]))

    @classmethod
    def all_in(cls, folder: Path) -> list[PidFile]:
        """The files of all keepers of a run."""
        return [cls(path) for path in sorted(folder.glob(f"{_NAME}*"))]

    def claim(self) -> int | None:
        """Lock the file for a new keeper. Returns its descriptor, or None if there is a keeper."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def is_locked(self) -> bool:
        """Whether there is a keeper."""
        if not self.path.exists():
            return False
        file = self.claim()
        if file is not None:
            os.close(file)
        return file is None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the keeper. Returns whether there was one."""
        if not self.is_locked():
            return False
        with suppress(OSError, ValueError):
            os.kill(int(self.path.read_text(encoding="ascii")), number)
            return True
        return False

    def wait(self, seconds: float) -> bool:
        """Wait until the keeper has ended. Returns False on a timeout."""
        deadline = time.monotonic() + seconds
        while self.is_locked():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True


def release_all(folder: Path, seconds: float) -> bool:
    """Make all keepers of a run release their locks. Returns False on a timeout."""
    files = [file for file in PidFile.all_in(folder) if file.send(RELEASE)]
    deadline = time.monotonic() + seconds
    return sum(file.wait(deadline - time.monotonic()) for file in files) == len(files)


def signals() -> int:
    """Write :data:`END` and :data:`RELEASE` into a pipe when they arrive, so that they do not interrupt a renewal.

    Returns the reading end. The main thread of a process calls this once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (END, RELEASE):
        signal.signal(number, lambda *_: None)
    return read


def keep(
    pipe: int,
    pause: float,
    *,
    run_state: Callable[[], str],
    renew: Callable[[], bool | None],
    release: Callable[[], None],
) -> bool:
    """Renew the lock until the run ends or a signal arrives. Returns False if the run has lost the lock.

    Args:
        pipe: Result of :func:`signals`.
        pause: Seconds between two renewals.
        run_state: Returns ``running``, ``ended`` or ``killed``. The last task of a killed run may still work on the
            host, so its lock is not released.
        renew: Renews the lock. Returns False if it is lost, None if the host did not answer.
        release: Releases the lock.
    """
    due = time.monotonic() + pause
    while True:
        ready, _, _ = select.select([pipe], [], [], _TICK_S)
        number = os.read(pipe, 1)[0] if ready else 0
        state = run_state()
        if number == RELEASE or (not number and state == "ended"):
            release()
        if number in {END, RELEASE} or state != "running":
            return True
        if time.monotonic() >= due:
            renewed = renew()
            if renewed is False:
                return False
            due = time.monotonic() + (pause if renewed else min(pause, _RETRY_S))
