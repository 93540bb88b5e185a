"""A lock on a host, held by one run of Ansible: two deployments at once would undo each other.

The lock is a small file. It outlives the run that wrote it, so each run says who it is: its process on its controller.
A run on the same controller can see that the process is gone and takes over; one on another controller cannot, and
waits until the lock has not been renewed for a while, or until an operator breaks it.
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
        boot: Identifier of that machine's boot; empty where it has none.
        pid: Process of ``ansible-playbook``.
        started: When the process started, in the kernel's own count; empty where it is not known.
        play: What it does.
    """

    user: str
    controller: str
    boot: str
    pid: int
    started: str
    play: str = ""

    @property
    def key(self) -> str:
        """What tells this run from any other."""
        text = json.dumps([self.controller, self.boot, self.pid, self.started])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """As a message names it."""
        return f"{self.user}@{self.controller}, process {self.pid}, {self.play or 'a run of Ansible'}"


@dataclass(frozen=True)
class Held:
    """A lock that another run holds: who, and when it was last renewed (seconds since 1970)."""

    owner: Owner
    renewed: float

    def since(self) -> str:
        """When it was renewed, in UTC."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.renewed))


def this_run(pid: int, play: str = "") -> Owner:
    """The run whose main process has this number."""
    return Owner(getpass.getuser(), socket.gethostname(), _boot(), pid, _started(pid), play)


def is_gone(owner: Owner) -> bool:
    """Whether a run has ended for certain; False where this machine cannot know."""
    if not owner.boot or not owner.started or owner.controller != socket.gethostname():
        return False
    return owner.boot != _boot() or _started(owner.pid) != owner.started


def hold(
    path: Path, owner: Owner, now: float, *, instead_of: str = "", max_age: float = 0, write: bool = True
) -> Held | None:
    """Take or renew the lock; None where this run holds it then, else who does.

    Args:
        path: The lock's file.
        owner: This run.
        now: Seconds since 1970.
        instead_of: Key of a run whose lock may be taken; ``any`` for whoever holds it.
        max_age: Seconds after which a lock that was not renewed counts for nothing; 0 for never.
        write: False only looks.
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
    """Give the lock back; False where this run does not hold it."""
    if not path.exists():
        return False
    with _open(path) as file:
        held = _read(file)
        if held is None or held.owner.key != owner.key:
            return False
        # Emptied and not removed: another run may have the file open, and would lock one that is gone.
        file.truncate(0)
    return True


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    """The lock's file, to this process alone; made where it is missing, for root only."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(number, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: IO[str]) -> Held | None:
    """Who holds the lock; None where nobody does, or where the file was cut off while it was written."""
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
