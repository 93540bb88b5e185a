"""Model files on disk: their paths, their recorded state, and their verification."""

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
    """The common interface of hashlib's objects."""

    def update(self, data: bytes, /) -> None:
        """Take in more content."""

    def hexdigest(self) -> str:
        """The hash of all content so far, as hex."""


@dataclass(frozen=True)
class Seen:
    """Attributes of a file when its content was last hashed; every later change of the file changes one of them."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Seen:
        """Take the attributes from a stat result."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class ContentHash:
    """Hashes of content in pieces: SHA-256, and Git's blob id if the hub reported one."""

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
        """Whether the content matches the hub's blob id."""
        return self._blob is not None and self._blob.hexdigest() == self._spec.blob_id

    def problem(self) -> str | None:
        """Difference of the content from the specification; None if there is none, or if no hash is known."""
        if self._spec.sha256 is not None and self.sha256() != self._spec.sha256:
            return f"its sha256 is {self.sha256()}, not {self._spec.sha256}"
        if self._blob is not None and not self.is_blob:
            return f"its git blob id is {self._blob.hexdigest()}, not {self._spec.blob_id}"
        return None


class Sink(Protocol):
    """Receiver of the content of one file, in pieces."""

    hash: ContentHash
    offset: int

    def write(self, piece: bytes, /) -> None:
        """Add a piece at the end."""

    def restart(self) -> None:
        """Discard all content."""


class HashOnly:
    """Hashes a file's content without storing it."""

    def __init__(self, spec: FileSpec) -> None:
        """Start empty."""
        self._spec = spec
        self.restart()

    def write(self, piece: bytes) -> None:
        """Take in a piece."""
        self.hash.update(piece)
        self.offset += len(piece)

    def restart(self) -> None:
        """Discard all pieces."""
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
        """The record of the last completed commit."""
        return self.base / "lock.json"

    @property
    def mutex(self) -> Path:
        """The lock file of a run that makes changes."""
        return self.base / ".running"

    def folder(self, commit: str) -> Path:
        """The complete files of a commit; exists only after all of them are verified."""
        return self.base / commit

    def incomplete(self, commit: str) -> Path:
        """All files of an unfinished download."""
        return self.base / f"{UNFINISHED}{commit}"

    def staging(self, commit: str) -> Path:
        """Verified files of an unfinished commit; becomes ``folder`` by one rename."""
        return self.incomplete(commit) / "files"

    def part(self, commit: str, path: str) -> Path:
        """The partial content of one file, under a name that cannot collide with a path in a repository."""
        return self.incomplete(commit) / "parts" / hashlib.sha256(path.encode()).hexdigest()

    def state(self, commit: str) -> Path:
        """Recorded state of a commit: the hub's list and the attributes of each verified file."""
        return self.base / f".state-{commit}.json"

    @property
    def progress(self) -> Path:
        """The progress figures of the current run."""
        return self.base / progress.FILE_NAME

    def commits(self) -> dict[str, float]:
        """The complete commits on disk, with the time of their last verification, in seconds since 1970."""
        found = {p.name: p for p in self.base.glob("*") if COMMIT.fullmatch(p.name) and p.is_dir()}
        return {commit: _last_change(self.state(commit), folder) for commit, folder in found.items()}

    def unfinished(self) -> list[str]:
        """The commits with an unfinished download."""
        return sorted(p.name.removeprefix(UNFINISHED) for p in self.base.glob(f"{UNFINISHED}*"))

    def candidates(self, folders: Sequence[Path], commit: str, path: str) -> Iterator[Path]:
        """Candidate paths of a file in local folders: with this layout, of huggingface_hub's cache, or of one model."""
        for folder in folders:
            yield folder / self.repository / commit / path
            yield folder / f"models--{self.repository.replace('/', '--')}" / "snapshots" / commit / path
            yield folder / path


class State:
    """Recorded state of one commit from earlier runs; thread-safe."""

    def __init__(self, path: Path, commit: str) -> None:
        """Read the state; a missing or damaged one, or one of another version, counts as empty."""
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
        """The hash of this file at its verification."""
        row = self._files.get(path)
        return row[1] if row else None

    def known(self) -> dict[str, str]:
        """Path and hash of every file that was verified."""
        return {path: sha256 for path, (_, sha256) in self._files.items()}

    def seen(self, path: str) -> Seen | None:
        """The attributes of the file at its verification."""
        row = self._files.get(path)
        return row[0] if row else None

    def record(self, path: str, found: os.stat_result, sha256: str) -> None:
        """Record that a file with these attributes was verified."""
        with self._mutex:
            self._files[path] = (Seen.of(found), sha256)

    def forget(self, path: str) -> None:
        """Remove the record of a file."""
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
            # Not durable: it is written after each file, and after a power failure the files are verified again.
            write_if_changed(self._path, json.dumps(data, indent=1) + "\n", 0o600, durable=False)
            os.utime(self._path)  # the time of the last run orders the commits by age


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
        refuse("bad_lock", f"The lock {path} is not JSON: {error}.", "Repair or remove it.")
    return parse_lock(data, str(path))


@contextlib.contextmanager
def only_one(layout: Layout, wait_seconds: float) -> Iterator[None]:
    """Lock a repository's folder for this run; others wait. The kernel releases the lock if the run is killed.

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
    """Create a folder and its parents, traversable regardless of the umask; -1 keeps owner or group."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        new.chmod(FOLDER_MODE)
        os.chown(new, owner, group)


def hash_file(path: Path, spec: FileSpec, count: Callable[[int], None]) -> ContentHash:
    """Read a file once, in pieces, and hash it; ``count`` is called with the bytes of each piece."""
    content_hash = ContentHash(spec)
    with path.open("rb", buffering=0) as content:
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while piece := content.read(READ_BYTES):
            content_hash.update(piece)
            count(len(piece))
    return content_hash


def is_good(folder: Path, spec: FileSpec, state: State, full: bool, count: Callable[[int], None]) -> bool:
    """Whether a file exists and is correct.

    A file with the attributes of its last verification is not read again, unless ``full``. A file that was read and
    is correct is recorded with its new attributes. ``count`` is called with the bytes that were read or skipped.
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
    """The partial content of one file: existing content is hashed and extended."""

    def __init__(self, path: Path, spec: FileSpec) -> None:
        """Open or create the part and hash its content."""
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
        while left:  # an unbuffered write may be partial
            left = left[self._file.write(left) :]
        self.hash.update(piece)
        self.offset += len(piece)

    def restart(self) -> None:
        """Discard all content."""
        self._file.seek(0)
        self._file.truncate()
        self.hash = ContentHash(self._spec)
        self.offset = 0

    def finish(self, target: Path, owner: int, group: int) -> os.stat_result:
        """Flush the content, make it read-only and move it to its target. Returns its attributes there."""
        os.fsync(self._file.fileno())
        os.fchown(self._file.fileno(), owner, group)
        os.fchmod(self._file.fileno(), FILE_MODE)
        self._path.replace(target)
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file; its content is kept for the next run."""
        self._file.close()


def strangers(folder: Path, wanted: Mapping[str, FileSpec]) -> list[str]:
    """Unexpected files and folders below ``folder``, by their topmost path; links are always unexpected."""
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
    """Wanted files and their folders that have another owner, or that others can write or cannot read."""
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
    """Set the mode and owner of a file or folder to those of all weights."""
    os.chown(path, owner, group)
    path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)


def remove(folder: Path, path: str) -> None:
    """Remove a file, a link, or a folder with its content."""
    target = folder / path
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def copy(source: Path, sink: Sink, count: Callable[[int], None]) -> OSError | None:
    """Copy a local file to a sink. Returns the error if the file could not be read completely."""
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
            sink.write(piece)  # an error here is of the target disk, not of the source
            count(len(piece))


def held(layout: Layout, but: str) -> dict[str, Path]:
    """The files of other complete commits, by their hash at verification."""
    found = {}
    for commit in layout.commits():
        if commit != but:
            folder = layout.folder(commit)
            known = State(layout.state(commit), commit).known()
            found.update({sha256: folder / path for path, sha256 in known.items()})
    return found


def discard(layout: Layout, commit: str, complete: bool) -> None:
    """Remove the unfinished download of a commit, and with ``complete`` also its files.

    A folder is renamed first, so that a folder with the name of a commit is always complete.
    """
    for folder in (layout.incomplete(commit), *([layout.folder(commit)] if complete else [])):
        if folder.is_dir():
            folder.rename(layout.base / f"{CONDEMNED}{commit}")
            sweep(layout)
    if not layout.folder(commit).is_dir():
        layout.state(commit).unlink(missing_ok=True)


def sweep(layout: Layout) -> None:
    """Remove folders whose removal an earlier run did not finish."""
    for folder in layout.base.glob(f"{CONDEMNED}*"):
        shutil.rmtree(folder)


def _last_change(*paths: Path) -> float:
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def free_space(folder: Path) -> tuple[int, int | None]:
    """Free bytes and inodes for an unprivileged user at a folder or its nearest parent; None for unlimited inodes."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
