"""A lock on a host, held by one run of Ansible: two deployments at once would undo each other.

The lock is a small file with a lease: the run that holds it renews it every minute, and a lease that was not renewed
for :data:`MAX_AGE_S` seconds counts for nothing. Its age is measured by the clock of the host that counts from the
boot, which nobody sets; a lease of an earlier boot counts for nothing either. The file names the run by its process on
its controller. A run on the same controller can see that the process has ended and takes over at once; one on another
controller waits until the lease has ended, or until an operator breaks it.

Role watchdog copies this file to the host: only the standard library may be imported.
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

#: Length of a lease in seconds: several renewals may fail before another run gets in.
MAX_AGE_S = 300

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_START_FIELD = 19  # "starttime" of /proc/<pid>/stat, counted from the field behind the name in parentheses
_ENDED_STATES = ("Z", "X")  # a zombie has ended, though its parent has not asked for it
_SIZE = 4096  # the file is always rewritten in one write of this size, so that it is never half old and half new


@dataclass(frozen=True)
class Owner:
    """A run of Ansible, or the watchdog.

    Attributes:
        user: Who started it, on the controller.
        controller: Name of the controller.
        boot: Identifier of that machine's boot; empty where it has none.
        pid: Process of ``ansible-playbook``.
        started: When the process started, in the kernel's own count; empty where it is not known.
        play: What it does.
        namespace: PID namespace in which ``pid`` counts; empty where it is not known.
        machine: Identifier of the controller's installation; empty where it has none, as in many containers.
    """

    user: str
    controller: str
    boot: str
    pid: int
    started: str
    play: str = ""
    namespace: str = ""
    machine: str = ""

    @property
    def key(self) -> str:
        """What tells this run from any other."""
        text = json.dumps([self.controller, self.machine, self.namespace, self.boot, self.pid, self.started])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """As a message names it."""
        return f"{self.user}@{self.controller}, process {self.pid}, {self.play or 'a run of Ansible'}"


@dataclass(frozen=True)
class Moment:
    """A moment on a machine.

    Attributes:
        boot: Identifier of the machine's boot.
        seconds: Seconds since the boot, without the time in which the machine was suspended.
        wall: Seconds since 1970, for messages only.
    """

    boot: str
    seconds: float
    wall: float = 0.0


@dataclass(frozen=True)
class Held:
    """A lock that another run holds.

    Attributes:
        owner: Who holds it.
        boot: Boot of the host in which it was renewed.
        renewed: Seconds between that boot and the last renewal.
        taken: When it was taken, in seconds since 1970; for messages only.
        max_age: Length of the lease in seconds; 0 for one without an end.
    """

    owner: Owner
    boot: str
    renewed: float
    taken: float
    max_age: float

    def since(self) -> str:
        """When it was taken, in UTC."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.taken))

    def counts(self, now: Moment) -> bool:
        """Whether the lease has not ended."""
        age = now.seconds - self.renewed
        return self.boot == now.boot and age >= 0 and (self.max_age <= 0 or age <= self.max_age)


def this_moment() -> Moment:
    """The present moment on this machine."""
    return Moment(_text(_BOOT_ID), time.monotonic(), time.time())


def this_run(pid: int, play: str = "") -> Owner:
    """The run whose main process has this number."""
    controller, machine, namespace = _place()
    return Owner(
        getpass.getuser(), controller, _text(_BOOT_ID), pid, _process(pid)[1], play, namespace=namespace, machine=machine
    )


def is_gone(owner: Owner) -> bool:
    """Whether a run has ended for certain; False where this machine cannot know."""
    if not owner.boot or not owner.started or not owner.namespace:
        return False
    # A process number counts only in its own namespace, and host names are not unique.
    if (owner.controller, owner.machine, owner.namespace) != _place():
        return False
    if owner.boot != _text(_BOOT_ID):
        return True
    state, started = _process(owner.pid)
    return started != owner.started or state in _ENDED_STATES if started else not _exists(owner.pid)


def hold(
    path: Path, owner: Owner, now: Moment, *, instead_of: str = "", max_age: float = MAX_AGE_S, write: bool = True
) -> Held | None:
    """Take or renew the lock; None where this run holds it then, else who does.

    Args:
        path: The lock's file.
        owner: This run.
        now: The moment on the machine of the file.
        instead_of: Key of a run whose lock may be taken; ``any`` for whoever holds it.
        max_age: Length of the lease in seconds, after which it counts for nothing unless renewed; 0 for never.
        write: False only looks.
    """
    if not write and not path.exists():
        return None
    with _open(path) as file:
        held = _read(file)
        own = held is not None and held.owner.key == owner.key
        if held and not own and held.owner.key != instead_of and instead_of != "any" and _is_valid(held, now):
            return held
        if write:
            taken = held.taken if held is not None and own else now.wall
            _write(file, Held(owner, now.boot, now.seconds, taken, max_age))
    return None


def renew(path: Path, owner: Owner, now: Moment, *, boot: str, max_age: float = MAX_AGE_S) -> bool:
    """Renew the lock of this run; False where this run has lost it.

    A lock that was given back, removed or taken by another run is not taken again. A boot of the host since the last
    renewal is an exception: it removes the lock, and the run goes on.

    Args:
        path: The lock's file.
        owner: This run.
        now: The moment on the machine of the file.
        boot: The machine's boot when this run took or renewed the lock.
        max_age: Length of the lease in seconds; 0 for one without an end.
    """
    rebooted = now.boot != boot
    if not rebooted and not path.exists():
        return False
    with _open(path) as file:
        held = _read(file)
        own = held is not None and held.owner.key == owner.key
        if not own and not (rebooted and (held is None or not _is_valid(held, now))):
            return False
        _write(file, Held(owner, now.boot, now.seconds, held.taken if held and own else now.wall, max_age))
    return True


def release(path: Path, owner: Owner) -> bool:
    """Give the lock back; False where this run does not hold it."""
    if not path.exists():
        return False
    with _open(path) as file:
        held = _read(file)
        if held is None or held.owner.key != owner.key:
            return False
        # Emptied and not removed: another run may have the file open, and would lock one that is gone.
        os.ftruncate(file, 0)
    return True


def _is_valid(held: Held, now: Moment) -> bool:
    """Whether a lock keeps others off: its lease has not ended, and its run has not ended on this very machine."""
    return held.counts(now) and not is_gone(held.owner)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """The lock's file, to this process alone; made where it is missing, for root only."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _read(file: int) -> Held | None:
    """Who holds the lock; None where nobody does, or where the file is not one of a lock."""
    with suppress(ValueError, TypeError, KeyError):
        data = json.loads(os.pread(file, _SIZE, 0))
        times = (float(data[name]) for name in ("renewed", "taken", "max_age"))
        return Held(Owner(**data["owner"]), str(data["boot"]), *times)
    return None


def _write(file: int, held: Held) -> None:
    os.pwrite(file, json.dumps(asdict(held)).encode().ljust(_SIZE), 0)
    os.fsync(file)


def _place() -> tuple[str, str, str]:
    """Name, installation and PID namespace of this machine."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink(_PID_NAMESPACE)
    return socket.gethostname(), _text(_MACHINE_ID), namespace


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _process(pid: int) -> tuple[str, str]:
    """State and start of a process; empty where they cannot be read."""
    with suppress(OSError, IndexError):
        # The name may hold blanks and parentheses: fields begin behind the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], fields[_START_FIELD]
    return "", ""


def _exists(pid: int) -> bool:
    """Whether there is a process with this number, also where /proc hides those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
