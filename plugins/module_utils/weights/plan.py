"""Decisions about a model's files: the content of a lock, the wanted files, and their trust.

Pure functions over plain data, without disk or network access.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from ansible_collections.inference.vllm.plugins.module_utils.contracts import LockedFile, LockFile
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[A-Za-z0-9](?:[\w.-]*[\w-])?/[A-Za-z0-9](?:[\w.-]*[\w-])?", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")

# Formats that run code when they are loaded: Python pickles, bare or in a zip.
PICKLE_SUFFIXES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
NAME_BYTES = 255  # limit of file names in Linux file systems


@dataclass(frozen=True)
class FileSpec:
    """Expected properties of a file.

    Attributes:
        path: Name inside the repository, with ``/``.
        size: In bytes.
        sha256: Of the content, as hex; None while unknown.
        blob_id: Git's SHA-1 id of the content, from the hub for files outside LFS; None if unknown.
    """

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The file in the result of module hf_snapshot; ``sha256`` is null in check mode if the hash is unknown."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Lock:
    """The exact files of one commit of a repository; :class:`LockFile` is its file."""

    repo: str
    revision: str
    commit: str
    files: tuple[FileSpec, ...]

    def file(self) -> LockFile:
        """The lock in the format of ``lock.json``, with files by name; every file must have a hash."""
        rows = (LockedFile(spec.path, spec.size, spec.sha256 or "") for spec in self.files)
        return LockFile(self.repo, self.revision, self.commit, tuple(sorted(rows, key=lambda row: row.path)))


@dataclass(frozen=True)
class Listing:
    """The response of a hub for a revision: its commit and all its files."""

    commit: str
    files: tuple[FileSpec, ...]


def refuse(code: str, message: str, fix: str) -> NoReturn:
    """Raise a RefusalError with one refusal."""
    raise RefusalError(Refusal(code, message, fix))


def parse_lock(data: object, origin: str) -> Lock:
    """Read a lock from plain data.

    Args:
        data: The decoded JSON.
        origin: Its source, for messages.

    Raises:
        RefusalError: ``bad_lock`` when a part is missing or malformed, ``unsafe_path`` for a path outside the folder.
    """
    try:
        lock = LockFile.from_dict(data, origin)
    except RefusalError as error:
        raise _bad_lock(origin, f"cannot be read: {error.refusals[0].message}") from error
    for key, pattern in (("repo", REPOSITORY), ("revision", REVISION), ("commit", COMMIT)):
        if not pattern.fullmatch(getattr(lock, key)):
            raise _bad_lock(origin, f"has {key} {getattr(lock, key)!r}")
    if not lock.files:
        raise _bad_lock(origin, "lists no files")
    for row in lock.files:
        if row.size < 0 or not SHA256.fullmatch(row.sha256):
            raise _bad_lock(origin, f"has a row that is not {{path, size, sha256}}: {row!r}")
    check_paths([row.path for row in lock.files], origin)
    files = tuple(FileSpec(row.path, row.size, row.sha256) for row in lock.files)
    return Lock(lock.repo, lock.revision, lock.commit, files)


def _bad_lock(origin: str, problem: str) -> RefusalError:
    fix = "Write the lock again, or restore it from version control."
    return RefusalError(Refusal("bad_lock", f"The lock {origin} {problem}.", fix))


def check_source(repository: str, revision: str, lock: Lock | None) -> None:
    """Refuse an invalid repository or revision, or a lock of others.

    Raises:
        RefusalError: ``bad_repository``, ``bad_revision`` or ``stale_lock``.
    """
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        refuse("bad_repository", f"repository is {repository!r}.", "Write it as <org>/<name>, as on the hub.")
    if not REVISION.fullmatch(revision) or ".." in revision:
        refuse("bad_revision", f"revision is {revision!r}.", "Set a branch, a tag or a commit of 40 hex digits.")
    if lock is None:
        return
    if lock.repo != repository:
        refuse(
            "stale_lock",
            f"The lock is for {lock.repo}, but repository is {repository}.",
            "Set the lock of this repository, or none.",
        )
    if revision not in (lock.revision, lock.commit):
        refuse(
            "stale_lock",
            f"The lock of {repository} holds revision {lock.revision} (commit {lock.commit}), "
            f"but revision is {revision}.",
            "Set revision to the locked one, or write and review a new lock.",
        )


def pinned_commit(revision: str, lock: Lock | None) -> str | None:
    """The commit that is known without a hub: of the lock, or a revision that is a commit; otherwise None."""
    if lock is not None:
        return lock.commit
    return revision if COMMIT.fullmatch(revision) else None


def check_paths(paths: Iterable[str], origin: str) -> None:
    """Refuse a file list with a path outside its folder, or with conflicting paths.

    Raises:
        RefusalError: ``unsafe_path``, naming the path.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        parts = path.split("/")
        if (
            any(part in ("", ".", "..") or len(part.encode(errors="replace")) > NAME_BYTES for part in parts)
            or "\\" in path
            or not path.isprintable()
        ):
            _unsafe(path, origin, "leaves the folder or is not a plain name")
        if path in seen:
            _unsafe(path, origin, "is listed twice")
        seen.add(path)
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    for path in sorted(seen & folders):
        _unsafe(path, origin, "is both a file and a folder")


def _unsafe(path: str, origin: str, problem: str) -> NoReturn:
    refuse(
        "unsafe_path",
        f"{origin} lists the file {path!r}, which {problem}.",
        "Do not use this source; report the problem to its operator.",
    )


def select(files: Iterable[FileSpec], allow: Sequence[str], ignore: Sequence[str]) -> tuple[FileSpec, ...]:
    """The files that match a pattern of ``allow`` (empty: all) and none of ``ignore``, by name.

    Patterns are shell wildcards in which ``*`` also matches ``/``; one that ends in ``/`` means all below that folder.
    """

    def matches(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, f"{p}*" if p.endswith("/") else p) for p in patterns)

    chosen = (f for f in files if (not allow or matches(f.path, allow)) and not matches(f.path, ignore))
    return tuple(sorted(chosen, key=lambda spec: spec.path))


def check_wanted(files: Sequence[FileSpec], repository: str, allow_pickle: bool) -> None:
    """Refuse an empty choice of files, and pickles unless they are allowed.

    Raises:
        RefusalError: ``no_files`` or ``pickle_refused``.
    """
    if not files:
        refuse(
            "no_files",
            f"allow_patterns and ignore_patterns exclude all files of {repository}.",
            "Extend allow_patterns or shorten ignore_patterns.",
        )
    pickles = [spec.path for spec in files if spec.path.lower().endswith(PICKLE_SUFFIXES)]
    if pickles and not allow_pickle:
        refuse(
            "pickle_refused",
            f"{repository} has files that can run code when they are loaded: {', '.join(pickles)}.",
            "Exclude them with ignore_patterns, or set allow_pickle: true if you trust their author.",
        )


def apply_lock(files: Sequence[FileSpec], expected: Mapping[str, FileSpec], origin: str) -> tuple[FileSpec, ...]:
    """Add the known hashes of a commit to the hub's list of files.

    Args:
        files: From the hub.
        expected: Known files by path; paths that the hub does not list are ignored.
        origin: Source of the expectation, for messages.

    Raises:
        RefusalError: ``lock_mismatch`` with the file, if the two differ.
    """
    merged = []
    for spec in files:
        known = expected.get(spec.path)
        if known is None:
            merged.append(spec)
            continue
        if known.size != spec.size:
            refuse_mismatch(spec.path, origin, f"{known.size} bytes", f"{spec.size} bytes on the hub")
        if known.sha256 and spec.sha256 and known.sha256 != spec.sha256:
            refuse_mismatch(spec.path, origin, f"sha256 {known.sha256}", f"{spec.sha256} on the hub")
        merged.append(replace(spec, sha256=known.sha256 or spec.sha256))
    return tuple(merged)


def refuse_mismatch(path: str, origin: str, expected: str, found: str) -> NoReturn:
    """Raise ``lock_mismatch`` for a file that differs from the lock."""
    refuse(
        "lock_mismatch",
        f"{path}: {origin} says {expected}, found {found}.",
        "Find the reason before you trust the file. If the change is intended, write and review a new lock.",
    )


def lock_files(lock: Lock, listing: Listing | None) -> tuple[FileSpec, ...]:
    """The files of a lock, compared with the hub's list if there is one.

    Raises:
        RefusalError: ``lock_mismatch`` if the hub has another commit, size or hash, or lacks a file.
    """
    if listing is None:
        return lock.files
    if listing.commit != lock.commit:
        refuse_mismatch(lock.repo, "the lock", f"commit {lock.commit}", f"{listing.commit} on the hub")
    offered = {spec.path: spec for spec in listing.files}
    for spec in lock.files:
        if spec.path not in offered:
            refuse_mismatch(spec.path, "the lock", f"{spec.size} bytes", "no such file on the hub")
    return apply_lock([offered[spec.path] for spec in lock.files], {spec.path: spec for spec in lock.files}, "the lock")


def check_space(need_bytes: int, need_inodes: int, free_bytes: int, free_inodes: int | None, folder: str) -> None:
    """Refuse a download that does not fit the disk.

    Args:
        need_bytes: Bytes to write.
        need_inodes: Files and folders to create.
        free_bytes: Free bytes for an unprivileged user.
        free_inodes: Free inodes; None if the file system has no limit.
        folder: The folder, for the message.

    Raises:
        RefusalError: ``disk_full`` or ``inodes_full``.
    """
    if need_bytes > free_bytes:
        refuse(
            "disk_full",
            f"{folder} has {free_bytes:,} bytes free; {need_bytes:,} more are needed.",
            f"Free at least {need_bytes - free_bytes:,} bytes there, or choose another root.",
        )
    if free_inodes is not None and need_inodes > free_inodes:
        refuse(
            "inodes_full",
            f"{folder} has {free_inodes:,} inodes free; {need_inodes:,} are needed.",
            "Remove small files there, or choose another root.",
        )


def superfluous(commits: Mapping[str, float], wanted: str, in_use: Iterable[str], keep: int) -> list[str]:
    """The commits to remove from the disk.

    Args:
        commits: All complete commits, with the time of their last verification.
        wanted: The commit of this run; it is kept, and counts.
        in_use: Other commits to keep in any case.
        keep: Number of commits to keep, newest first; 0 keeps all.
    """
    newest = sorted(commits, key=lambda commit: (commit != wanted, -commits[commit], commit))
    return sorted(set(newest[keep:]) - {wanted, *in_use}) if keep else []


def used_commit(manifest: object, repository: str) -> str | None:
    """The commit of a repository in a release's manifest; None if the release uses another repository.

    Raises:
        RefusalError: ``bad_manifest`` if the manifest names none.
    """
    match manifest:
        case {"model": {"repo": str(repo), "commit": str(commit)}} if COMMIT.fullmatch(commit):
            return commit if repo == repository else None
    refuse("bad_manifest", "The manifest of the release in use names no model and commit.", "Deploy again.")


def retry_after_seconds(header: str | None, now: str | None) -> float | None:
    """Seconds that a server asks to wait; None if it does not.

    Args:
        header: ``Retry-After``: seconds or an HTTP date.
        now: The server's ``Date``, the reference of a date, so that this host's clock does not matter.
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - parsedate_to_datetime(now or "")).total_seconds())
    except (TypeError, ValueError):
        return None
