"""A lock on a host, held by one run of Ansible, so that two deployments do not overwrite each other.

The lock is a small file with a lease: the run that holds it renews it every minute, and it expires :data:`MAX_AGE_S`
seconds after the last renewal. Its age is measured by the monotonic clock of the host, which is never set; a lock of an
earlier boot of the host has expired. The file names its owner: a process on a controller. A run on the same controller
detects that the process has ended and takes the lock over. A run on another controller cannot detect this: it waits
until the lock expires, or until an operator breaks it.

Role watchdog copies this file to the host, so it imports the standard library only.
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

#: Length of a lease in seconds. Several renewals may fail before it expires.
MAX_AGE_S = 300

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_START_FIELD = 19  # "starttime" of /proc/<pid>/stat, counted from the field behind the name in parentheses
_ENDED_STATES = ("Z", "X")  # a zombie has ended, although its parent has not reaped it
_SIZE = 4096  # one write of a fixed size replaces the whole content


@dataclass(frozen=True)
class Owner:
    """A run of Ansible, or the watchdog.

    Attributes:
        user: Who started it, on the controller.
        controller: Name of the controller.
        boot: Boot identifier of the controller; empty if it has none.
        pid: Process of ``ansible-playbook``.
        started: Start time of the process, in clock ticks of the kernel; empty if unknown.
        play: Name of the play.
        namespace: PID namespace of ``pid``; empty if unknown.
        machine: Machine identifier of the controller; empty if it has none, as in many containers.
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
        """Identifier of the run."""
        text = json.dumps([self.controller, self.machine, self.namespace, self.boot, self.pid, self.started])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """The owner as text for messages."""
        return f"{self.user}@{self.controller}, process {self.pid}, {self.play or 'a run of Ansible'}"


@dataclass(frozen=True)
class Moment:
    """A moment on a machine.

    Attributes:
        boot: Boot identifier of the machine.
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
        owner: Its owner.
        boot: Boot identifier of the host at the last renewal.
        renewed: Seconds from that boot to the last renewal.
        acquired: Time of the acquisition, in seconds since 1970, for messages only.
        max_age: Length of the lease in seconds; 0 for a lock that does not expire.
    """

    owner: Owner
    boot: str
    renewed: float
    acquired: float
    max_age: float

    def since(self) -> str:
        """Time of the acquisition, in UTC, as text."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.acquired))

    def has_expired(self, now: Moment) -> bool:
        """Whether the lease has ended. A renewal in the future is of another clock, so it does not count."""
        age = now.seconds - self.renewed
        return self.boot != now.boot or age < 0 or 0 < self.max_age < age


def this_moment() -> Moment:
    """The present moment on this machine."""
    return Moment(_text(_BOOT_ID), time.monotonic(), time.time())


def this_run(pid: int, play: str = "") -> Owner:
    """The run with this main process."""
    controller, machine, namespace = _place()
    return Owner(
        getpass.getuser(),
        controller,
        _text(_BOOT_ID),
        pid,
        _process(pid)[1],
        play,
        namespace=namespace,
        machine=machine,
    )


def is_gone(owner: Owner) -> bool:
    """Whether a run has certainly ended; False if this machine cannot determine it."""
    if not owner.boot or not owner.started or not owner.namespace:
        return False
    # A process number is valid in its own namespace only, and host names are not unique.
    if (owner.controller, owner.machine, owner.namespace) != _place():
        return False
    if owner.boot != _text(_BOOT_ID):
        return True
    state, started = _process(owner.pid)
    return started != owner.started or state in _ENDED_STATES if started else not _exists(owner.pid)


def hold(
    path: Path, owner: Owner, now: Moment, *, instead_of: str = "", max_age: float = MAX_AGE_S, write: bool = True
) -> Held | None:
    """Acquire or renew the lock. Returns None if this run now holds it, otherwise its holder.

    Args:
        path: The lock's file.
        owner: This run.
        now: The present moment on the host.
        instead_of: Key of a run whose lock may be taken over; ``any`` for every run.
        max_age: Seconds after which the lock of this run expires unless it is renewed; 0 for never.
        write: False to check without writing.
    """
    if not write and not path.exists():
        return None
    with _open(path) as file:
        held = _read(file)
        if held and held.owner.key not in {owner.key, instead_of} and instead_of != "any" and _is_valid(held, now):
            return held
        if write:
            _write(file, owner, now, max_age, held)
    return None


def holder(path: Path) -> Held | None:
    """Who holds the lock now; None if nobody does."""
    if not path.exists():
        return None
    with _open(path) as file:
        return _read(file)


def renew(path: Path, owner: Owner, now: Moment, *, boot: str, max_age: float = MAX_AGE_S) -> bool:
    """Renew the lock of this run; False if this run has lost it.

    A lock that was released, removed or taken over is not acquired again, with one exception: if the host has been
    rebooted since the last renewal, which removes the lock, and no other run holds it.

    Args:
        path: The lock's file.
        owner: This run.
        now: The present moment on the host.
        boot: Boot identifier of the host at the last renewal.
        max_age: Seconds after which the lock expires; 0 for never.
    """
    rebooted = now.boot != boot
    if not rebooted and not path.exists():
        return False
    with _open(path) as file:
        held = _read(file)
        own = held is not None and held.owner.key == owner.key
        free = held is None or not _is_valid(held, now)
        if not own and not (rebooted and free):
            return False
        # A later task of the run may have acquired the lock for its play.
        _write(file, held.owner if held and own else owner, now, max_age, held)
    return True


def release(path: Path, owner: Owner) -> bool:
    """Release the lock; False if this run does not hold it."""
    if not path.exists():
        return False
    with _open(path) as file:
        held = _read(file)
        if held is None or held.owner.key != owner.key:
            return False
        # Truncated, not removed: another run may have the file open and would lock a deleted file.
        os.ftruncate(file, 0)
    return True


def _is_valid(held: Held, now: Moment) -> bool:
    """Whether a lock excludes other runs: it has not expired, and its process has not ended on this machine."""
    return not held.has_expired(now) and not is_gone(held.owner)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    """Open the lock's file with an exclusive lock; creates it, readable by root only, if it is missing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _read(file: int) -> Held | None:
    """The holder of the lock; None if the lock is free or the file is incomplete."""
    with suppress(ValueError, TypeError, KeyError):
        data = json.loads(os.pread(file, _SIZE, 0))
        times = (float(data[name]) for name in ("renewed", "acquired", "max_age"))
        return Held(Owner(**data["owner"]), str(data["boot"]), *times)
    return None


def _write(file: int, owner: Owner, now: Moment, max_age: float, former: Held | None) -> None:
    acquired = former.acquired if former and former.owner.key == owner.key else now.wall
    held = Held(owner, now.boot, now.seconds, acquired, max_age)
    os.pwrite(file, json.dumps(asdict(held)).encode().ljust(_SIZE), 0)
    os.fsync(file)


def _place() -> tuple[str, str, str]:
    """Host name, machine identifier and PID namespace of this process."""
    namespace = ""
    with suppress(OSError):
        namespace = str(_PID_NAMESPACE.readlink())
    return socket.gethostname(), _text(_MACHINE_ID), namespace


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _process(pid: int) -> tuple[str, str]:
    """State and start time of a process; empty if they cannot be read."""
    with suppress(OSError, IndexError):
        # The name may contain spaces and parentheses: the fields begin after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], fields[_START_FIELD]
    return "", ""


def _exists(pid: int) -> bool:
    """Whether the process exists, even if /proc hides processes of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
