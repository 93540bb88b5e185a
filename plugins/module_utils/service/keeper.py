"""The process on the controller that renews the lock of a host while a run of Ansible works on it.

A task may run for an hour, and the run's main process has no connection to a host. So the task that takes the lock
leaves a process behind, with a copy of its connection. It ends with the run, or when the run has lost the lock.
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

#: A keeper ends and leaves the lock alone: a task of the run gives it back.
END = signal.SIGTERM
#: A keeper gives the lock back and ends.
RELEASE = signal.SIGUSR1

_NAME = "deploy-lock-"
_TICK_S = 1.0  # how soon a keeper notices that the run has ended
_RETRY_S = 5.0  # pause after a renewal that did not reach the host, for example while the host boots
_RENEWALS = 5  # renewals within one lease
_LONGEST_PAUSE_S = 60.0


def pause_of(max_age: float) -> float:
    """Seconds between two renewals of a lease of this length; 0 is a lease without an end."""
    return max(min(max_age / _RENEWALS, _LONGEST_PAUSE_S), _TICK_S) if max_age > 0 else _LONGEST_PAUSE_S


class Badge:
    """The file that tells a run of its keeper for one lock. The keeper locks it as long as it lives."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is made."""
        self.path = path

    @classmethod
    def of(cls, folder: Path, host: str, lock_file: str) -> Badge:
        """The file for the lock of a host, in a folder of this run."""
        return cls(folder / (_NAME + hashlib.sha256(f"{host}\n{lock_file}".encode()).hexdigest()[:16]))

    @classmethod
    def all_in(cls, folder: Path) -> list[Badge]:
        """The files of all keepers that this run has started."""
        return [cls(path) for path in sorted(folder.glob(f"{_NAME}*"))]

    def claim(self) -> int | None:
        """Lock the file for a new keeper; its descriptor, or None where a keeper lives."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def is_worn(self) -> bool:
        """Whether a keeper lives."""
        if not self.path.exists():
            return False
        file = self.claim()
        if file is not None:
            os.close(file)
        return file is None

    def send(self, order: signal.Signals) -> bool:
        """Send :data:`END` or :data:`RELEASE` to the keeper; whether there was one."""
        if not self.is_worn():
            return False
        with suppress(OSError, ValueError):
            os.kill(int(self.path.read_text(encoding="ascii")), order)
            return True
        return False

    def wait(self, seconds: float) -> bool:
        """Wait until the keeper has ended; False where it has not within the time."""
        deadline = time.monotonic() + seconds
        while self.is_worn():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True


def release_all(folder: Path, seconds: float) -> bool:
    """Let all keepers of a run give their locks back; whether all did within the time."""
    badges = [badge for badge in Badge.all_in(folder) if badge.send(RELEASE)]
    deadline = time.monotonic() + seconds
    return all([badge.wait(deadline - time.monotonic()) for badge in badges])


def orders() -> int:
    """Turn the signals of :func:`Badge.send` into bytes of a pipe, which does not interrupt a renewal; its end."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (END, RELEASE):
        signal.signal(number, lambda *_: None)
    return read


def keep(
    pipe: int, pause: float, *, run_state: Callable[[], str], renew: Callable[[], bool | None], release: Callable[[], None]
) -> bool:
    """Renew the lock until the run ends or an order comes; False where the run has lost the lock.

    Args:
        pipe: From :func:`orders`.
        pause: Seconds between two renewals.
        run_state: ``running``, ``ended`` or ``killed``. The last task of a killed run may still work on the host, so
            its lock is not given back.
        renew: Renews the lock: whether it did; None where the host could not be asked.
        release: Gives the lock back.
    """
    due = time.monotonic() + pause
    while True:
        ready, _, _ = select.select([pipe], [], [], _TICK_S)
        order = os.read(pipe, 1)[0] if ready else 0
        state = run_state()
        if order == RELEASE or (not order and state == "ended"):
            release()
        if order in {END, RELEASE} or state != "running":
            return True
        if time.monotonic() >= due:
            renewed = renew()
            if renewed is False:
                return False
            due = time.monotonic() + (pause if renewed else min(pause, _RETRY_S))
