"""Model files on disk: where they lie, what was last known of them, and whether they are still the same."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from ansible_collections.inference.vllm.plugins.module_utils.files import write_if_changed
from ansible_collections.inference.vllm.plugins.module_utils.weights import progress
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import (
    COMMIT,
    FileSpec,
    Listing,
    Lock,
    check_paths,
    parse_lock,
    refuse,
)

READ_BYTES = 1 << 20
FILE_MODE = 0o444
FOLDER_MODE = 0o755
STATE_VERSION = 1
UNFINISHED, CONDEMNED = ".incomplete-", ".condemned-"


class Hash(Protocol):
    """What hashlib's objects have in common."""

    def update(self, data: bytes, /) -> None:
        """Take in more content."""

    def hexdigest(self) -> str:
        """The hash of all content so far, as hex."""


@dataclass(frozen=True)
class Seen:
    """How a file looked when its content was last hashed; any later change of it changes one of these."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Seen:
        """Take the four marks from a stat result."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class ContentHash:
    """Hashes of one content, fed in pieces: SHA-256, and Git's blob id where the hub gave one."""

    def __init__(self, spec: FileSpec) -> None:
        """Start empty; the size in Git's header comes from the specification."""
        self._spec = spec
        self._sha256: Hash = hashlib.sha256()
        self._blob: Hash | None = None
        if spec.blob_id is not None:
            self._blob = hashlib.sha1(b"blob %d\0" % spec.size, usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        """Take in the next piece of the content."""
        self._sha256.update(piece)
        if self._blob is not None:
            self._blob.update(piece)

    def sha256(self) -> str:
        """SHA-256 of all pieces so far, as hex."""
        return self._sha256.hexdigest()

    @property
    def is_blob(self) -> bool:
        """Whether this is the very content that the hub's blob id names."""
        return self._blob is not None and self._blob.hexdigest() == self._spec.blob_id

    def problem(self) -> str | None:
        """How the content differs from the specification; None when it does not, or nothing is known of it."""
        if self._spec.sha256 is not None and self.sha256() != self._spec.sha256:
            return f"its sha256 is {self.sha256()}, not {self._spec.sha256}"
        if self._blob is not None and not self.is_blob:
            return f"its git blob id is {self._blob.hexdigest()}, not {self._spec.blob_id}"
        return None


class Sink(Protocol):
    """What takes the content of one file, piece by piece."""

    hash: ContentHash
    offset: int

    def write(self, piece: bytes, /) -> None:
        """Add a piece at the end."""

    def restart(self) -> None:
        """Throw away all content."""


class HashOnly:
    """Takes a file's content to know its hash, and keeps none of it."""

    def __init__(self, spec: FileSpec) -> None:
        """Begin with nothing."""
        self._spec = spec
        self.restart()

    def write(self, piece: bytes) -> None:
        """Take in a piece."""
        self.hash.update(piece)
        self.offset += len(piece)

    def restart(self) -> None:
        """Forget all pieces."""
        self.hash = ContentHash(self._spec)
        self.offset = 0


@dataclass(frozen=True)
class Layout:
    """Paths of one repository below the root of all models."""

    root: Path
    repository: str

    @property
    def base(self) -> Path:
        """Folder of the repository: ``<root>/<org>/<name>``."""
        return self.root / self.repository

    @property
    def lock(self) -> Path:
        """The record of the last commit that was completed."""
        return self.base / "lock.json"

    @property
    def mutex(self) -> Path:
        """The file that a run holds locked while it changes anything."""
        return self.base / ".running"

    def folder(self, commit: str) -> Path:
        """The complete files of a commit; it exists only when all of them are verified."""
        return self.base / commit

    def incomplete(self, commit: str) -> Path:
        """All that an unfinished download has on disk."""
        return self.base / f"{UNFINISHED}{commit}"

    def staging(self, commit: str) -> Path:
        """Verified files of an unfinished commit; becomes ``folder`` by one rename."""
        return self.incomplete(commit) / "files"

    def part(self, commit: str, path: str) -> Path:
        """The bytes of one file so far, under a name that no path in a repository can reach."""
        return self.incomplete(commit) / "parts" / hashlib.sha256(path.encode()).hexdigest()

    def state(self, commit: str) -> Path:
        """What is known of a commit: the hub's list and the marks of each verified file."""
        return self.base / f".state-{commit}.json"

    @property
    def progress(self) -> Path:
        """The figures of the run that is under way."""
        return self.base / progress.FILE_NAME

    def commits(self) -> dict[str, float]:
        """The complete commits on disk, and when each was last found to be so, in seconds since 1970."""
        found = {p.name: p for p in self.base.glob("*") if COMMIT.fullmatch(p.name) and p.is_dir()}
        return {commit: _last_change(self.state(commit), folder) for commit, folder in found.items()}

    def unfinished(self) -> list[str]:
        """The commits that a download began and did not end."""
        return sorted(p.name.removeprefix(UNFINISHED) for p in self.base.glob(f"{UNFINISHED}*"))

    def candidates(self, folders: Sequence[Path], commit: str, path: str) -> Iterator[Path]:
        """Where a file may lie in local folders: laid out as here, as a cache of huggingface_hub, or as one model."""
        for folder in folders:
            yield folder / self.repository / commit / path
            yield folder / f"models--{self.repository.replace('/', '--')}" / "snapshots" / commit / path
            yield folder / path


class State:
    """What earlier runs found out about one commit; safe to use from several threads."""

    def __init__(self, path: Path, commit: str) -> None:
        """Read the state; one that is missing, damaged or of another version counts as empty."""
        self._path = path
        self.commit = commit
        self._mutex = threading.Lock()
        self.listing: Listing | None = None
        self._files: dict[str, tuple[Seen, str]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(path.read_text())
            if data["version"] == STATE_VERSION and data["commit"] == commit:
                self._files = {p: (Seen(*row[:4]), str(row[4])) for p, row in data["files"].items()}
                self.listing = _listing(data["listing"], commit)

    def known_sha256(self, path: str) -> str | None:
        """The hash that this file had when it was verified."""
        row = self._files.get(path)
        return row[1] if row else None

    def known(self) -> dict[str, str]:
        """Path and hash of every file that was verified."""
        return {path: sha256 for path, (_, sha256) in self._files.items()}

    def seen(self, path: str) -> Seen | None:
        """The marks of the file when it was verified."""
        row = self._files.get(path)
        return row[0] if row else None

    def record(self, path: str, found: os.stat_result, sha256: str) -> None:
        """Note that a file with these marks was verified."""
        with self._mutex:
            self._files[path] = (Seen.of(found), sha256)

    def forget(self, path: str) -> None:
        """Note that nothing is known of a file any more."""
        with self._mutex:
            self._files.pop(path, None)

    def save(self) -> None:
        """Write the state atomically, if it differs from what is on disk."""
        with self._mutex:
            rows = {
                path: [seen.size, seen.mtime_ns, seen.ctime_ns, seen.inode, sha256]
                for path, (seen, sha256) in sorted(self._files.items())
            }
            listing = self.listing and [[f.path, f.size, f.sha256, f.blob_id] for f in self.listing.files]
            data = {"version": STATE_VERSION, "commit": self.commit, "listing": listing, "files": rows}
            # Not durable: a state that a power cut takes costs a look at the files, and this comes after each file.
            write_if_changed(self._path, json.dumps(data, indent=1) + "\n", 0o600, durable=False)
            os.utime(self._path)  # the time of the last run tells which commits are the oldest


def _listing(rows: list[list[Any]] | None, commit: str) -> Listing | None:
    if rows is None:
        return None
    files = tuple(FileSpec(path, int(size), sha256, blob_id) for path, size, sha256, blob_id in rows)
    check_paths([spec.path for spec in files], "the recorded state")
    return Listing(commit, files)


def read_lock(path: Path) -> Lock | None:
    """The lock in a file; None when there is no such file. Raises RefusalError when it is damaged."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        refuse("bad_lock", f"The lock {path} cannot be read: {error}.", "Repair or remove it.")
    try:
        data = json.loads(text)
    except ValueError as error:
        refuse("bad_lock", f"The lock {path} is no JSON: {error}.", "Repair or remove it.")
    return parse_lock(data, str(path))


@contextlib.contextmanager
def only_one(layout: Layout, wait_seconds: float) -> Iterator[None]:
    """Hold a repository's folder for this run; others wait. The kernel lets go even when the run is killed.

    Raises:
        RefusalError: ``busy`` when another run holds it for longer than ``wait_seconds``.
    """
    handle = os.open(layout.mutex, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                    refuse(
                        "busy",
                        f"Another run (process {holder}) has held {layout.base} for more than {wait_seconds:g} s.",
                        "Wait until it ends, or end that process; then run again.",
                    )
                time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def make_folder(folder: Path, owner: int, group: int) -> None:
    """Make a folder and its missing parents, traversable whatever the umask says; -1 leaves owner or group."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        new.chmod(FOLDER_MODE)
        os.chown(new, owner, group)


def hash_file(path: Path, spec: FileSpec, count: Callable[[int], None]) -> ContentHash:
    """Read a file once, in pieces, and hash it; ``count`` is told of the bytes."""
    content_hash = ContentHash(spec)
    with path.open("rb", buffering=0) as content:
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while piece := content.read(READ_BYTES):
            content_hash.update(piece)
            count(len(piece))
    return content_hash


def is_good(folder: Path, spec: FileSpec, state: State, full: bool, count: Callable[[int], None]) -> bool:
    """Whether a file is there and is what it must be.

    A file whose marks are those of its last verification is not read again, unless ``full``. One that was read and
    found good is recorded with its new marks. ``count`` is told of the bytes that were read, or need not be.
    """
    path = folder / spec.path
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != spec.size:
        return False
    known = state.known_sha256(spec.path)
    if not full and state.seen(spec.path) == Seen.of(found) and known is not None and known == (spec.sha256 or known):
        count(spec.size)
        return True
    content_hash = hash_file(path, replace(spec, sha256=spec.sha256 or known), count)
    if content_hash.problem() is not None:
        return False
    state.record(spec.path, found, content_hash.sha256())
    return True


class PartFile:
    """The growing content of one file: what is on disk counts, is hashed, and is added to."""

    def __init__(self, path: Path, spec: FileSpec) -> None:
        """Open or create the part and hash what it holds."""
        self._spec = spec
        self._path = path
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "x+b", buffering=0)
        self.hash = ContentHash(spec)
        self.offset = 0
        while piece := self._file.read(READ_BYTES):
            self.hash.update(piece)
            self.offset += len(piece)
        if self.offset > spec.size:
            self.restart()

    def write(self, piece: bytes) -> None:
        """Add a piece at the end."""
        left = memoryview(piece)
        while left:  # an unbuffered write may take only a part
            left = left[self._file.write(left) :]
        self.hash.update(piece)
        self.offset += len(piece)

    def restart(self) -> None:
        """Throw away all content."""
        self._file.seek(0)
        self._file.truncate()
        self.hash = ContentHash(self._spec)
        self.offset = 0

    def finish(self, target: Path, owner: int, group: int) -> os.stat_result:
        """Make the content durable and read-only and move it to its place. Returns the marks it has there."""
        os.fsync(self._file.fileno())
        os.fchown(self._file.fileno(), owner, group)
        os.fchmod(self._file.fileno(), FILE_MODE)
        self._path.replace(target)
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file; its content stays for the next run."""
        self._file.close()


def strangers(folder: Path, wanted: Mapping[str, FileSpec]) -> list[str]:
    """Whatever lies below ``folder`` and does not belong there, by its topmost name; links never belong."""
    parents = {parent.as_posix() for path in wanted for parent in Path(path).parents}
    found = []
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        paths = {name: (here / name).as_posix() for name in [*folders, *files]}
        links = {name for name in paths if (folder / paths[name]).is_symlink()}
        good = {n for n in folders if paths[n] in parents} | {n for n in files if paths[n] in wanted}
        found += [path for name, path in paths.items() if name in links or name not in good]
        folders[:] = [name for name in folders if name in good - links]
    return sorted(found)


def wrong_modes(folder: Path, wanted: Sequence[FileSpec], owner: int, group: int) -> list[str]:
    """Wanted files, and the folders around them, that others could write or not read, or that have another owner."""
    parents = {parent.as_posix() for spec in wanted for parent in Path(spec.path).parents}
    found = []
    for path in sorted({*parents, *(spec.path for spec in wanted)}):
        try:
            marks = (folder / path).lstat()
        except FileNotFoundError:
            continue
        mode = FOLDER_MODE if stat.S_ISDIR(marks.st_mode) else FILE_MODE
        owners = (owner in (-1, marks.st_uid), group in (-1, marks.st_gid))
        if stat.S_IMODE(marks.st_mode) != mode or not all(owners):
            found.append(path)
    return found


def set_mode(path: Path, owner: int, group: int) -> None:
    """Give a file or folder the mode and owner that all weights have."""
    os.chown(path, owner, group)
    path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)


def remove(folder: Path, path: str) -> None:
    """Remove a file, a link or a folder with all below it."""
    target = folder / path
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def copy(source: Path, sink: Sink, count: Callable[[int], None]) -> OSError | None:
    """Feed a local file to a sink. Returns why the file could not be read to its end, if so."""
    try:
        content = source.open("rb", buffering=0)
    except OSError as error:
        return error
    with content:
        while True:
            try:
                piece = content.read(READ_BYTES)
            except OSError as error:
                return error
            if not piece:
                return None
            sink.write(piece)  # what goes wrong here is this disk's fault, not the source's
            count(len(piece))


def held(layout: Layout, but: str) -> dict[str, Path]:
    """The files of other complete commits, by the hash that they had when they were verified."""
    found = {}
    for commit in layout.commits():
        if commit != but:
            folder = layout.folder(commit)
            known = State(layout.state(commit), commit).known()
            found.update({sha256: folder / path for path, sha256 in known.items()})
    return found


def discard(layout: Layout, commit: str, complete: bool) -> None:
    """Remove what was begun of a commit, and with ``complete`` its files too.

    A folder loses its name first: what has a commit's name is always whole.
    """
    for folder in (layout.incomplete(commit), *([layout.folder(commit)] if complete else [])):
        if folder.is_dir():
            folder.rename(layout.base / f"{CONDEMNED}{commit}")
            sweep(layout)
    if not layout.folder(commit).is_dir():
        layout.state(commit).unlink(missing_ok=True)


def sweep(layout: Layout) -> None:
    """Remove what an earlier run condemned and could not finish."""
    for folder in layout.base.glob(f"{CONDEMNED}*"):
        shutil.rmtree(folder)


def _last_change(*paths: Path) -> float:
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def free_space(folder: Path) -> tuple[int, int | None]:
    """Bytes and inodes free for an ordinary user at a folder or its nearest parent; inodes None where unlimited."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
