"""A lock on a host, held by one run of Ansible, so that two deployments do not overwrite each other.

The lock is a small file that names its owner: a process on a controller. The file remains when its owner ends. A run on
the same controller detects that the process has ended and takes the lock over. A run on another controller cannot
detect this: it waits until the lock expires, or until an operator breaks it.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD = 19  # "starttime" of /proc/<pid>/stat, counted from the field behind the name in parentheses


@dataclass(frozen=True)
class Owner:
    """A run of Ansible.

    Attributes:
        user: Who started it, on the controller.
        controller: Name of the controller.
        boot: Boot identifier of the controller; empty if it has none.
        pid: Process of ``ansible-playbook``.
        started: Start time of the process, in clock ticks of the kernel; empty if unknown.
        play: Name of the play.
    """

    user: str
    controller: str
    boot: str
    pid: int
    started: str
    play: str = ""

    @property
    def key(self) -> str:
        """Identifier of the run."""
        text = json.dumps([self.controller, self.boot, self.pid, self.started])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """The owner as text for messages."""
        return f"{self.user}@{self.controller}, process {self.pid}, {self.play or 'a run of Ansible'}"


@dataclass(frozen=True)
class Held:
    """A lock that another run holds: its owner and the time of the last renewal, in seconds since 1970."""

    owner: Owner
    renewed: float

    def since(self) -> str:
        """Time of the last renewal, in UTC, as text."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.renewed))


def this_run(pid: int, play: str = "") -> Owner:
    """The run with this main process."""
    return Owner(getpass.getuser(), socket.gethostname(), _boot(), pid, _started(pid), play)


def is_gone(owner: Owner) -> bool:
    """Whether a run has certainly ended; False if this machine cannot determine it."""
    if not owner.boot or not owner.started or owner.controller != socket.gethostname():
        return False
    return owner.boot != _boot() or _started(owner.pid) != owner.started


def hold(
    path: Path, owner: Owner, now: float, *, instead_of: str = "", max_age: float = 0, write: bool = True
) -> Held | None:
    """Acquire or renew the lock. Returns None if this run now holds it, otherwise its holder.

    Args:
        path: The lock's file.
        owner: This run.
        now: Seconds since 1970.
        instead_of: Key of a run whose lock may be taken over; ``any`` for every run.
        max_age: Seconds after the last renewal at which a lock expires; 0 for never.
        write: False to check without writing.
    """
    if not write and not path.exists():
        return None
    with _open(path) as file:
        held = _read(file)
        old = held is not None and 0 < max_age < now - held.renewed
        if held and held.owner.key not in {owner.key, instead_of} and instead_of != "any" and not old:
            return held
        if write:
            file.seek(0)
            file.truncate()
            json.dump({"owner": asdict(owner), "renewed": now}, file)
            file.flush()
            os.fsync(file.fileno())
    return None


def holder(path: Path) -> Held | None:
    """Who holds the lock now; None if nobody does."""
    if not path.exists():
        return None
    with _open(path) as file:
        return _read(file)


def release(path: Path, owner: Owner) -> bool:
    """Release the lock; False if this run does not hold it."""
    if not path.exists():
        return False
    with _open(path) as file:
        held = _read(file)
        if held is None or held.owner.key != owner.key:
            return False
        # Truncated, not removed: another run may have the file open and would lock a deleted file.
        file.truncate(0)
    return True


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    """Open the lock's file with an exclusive lock; creates it, readable by root only, if it is missing."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(number, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: IO[str]) -> Held | None:
    """The holder of the lock; None if the lock is free or the file is incomplete."""
    with suppress(ValueError, TypeError, KeyError):
        data = json.load(file)
        return Held(Owner(**data["owner"]), float(data["renewed"]))
    return None


def _boot() -> str:
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return ""


def _started(pid: int) -> str:
    with suppress(OSError, IndexError):
        # The name may hold blanks and parentheses: fields begin behind the last one.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[_START_FIELD]
    return ""
