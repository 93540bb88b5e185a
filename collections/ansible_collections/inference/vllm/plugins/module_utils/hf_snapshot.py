"""Bring a model's folder to exactly the files of one commit, and prove it.

The way through: which commit, which files, what is already good on disk, is there room, fetch the rest, put it in
place. Each step leaves the disk so that a run that is cut off there can be repeated and continues.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils import weights_plan as plan
from ansible_collections.inference.vllm.plugins.module_utils import weights_store as store
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights_hub import (
    HUB,
    PASSING_CODES,
    Hub,
    Retry,
    StoppedError,
)
from ansible_collections.inference.vllm.plugins.module_utils.weights_plan import FileSpec, Listing, Lock
from ansible_collections.inference.vllm.plugins.module_utils.weights_store import Layout, PartFile, State

LOCK_MODE = 0o644
SPARE_INODES = 8
SPARE_BYTES = 4 << 20  # room for state, locks and the file system's own bookkeeping
FETCHES_PER_FILE = 2  # a second fetch helps against bits that flipped on the way; a third would not


@dataclass(frozen=True)
class Want:
    """What is wanted and how to get it.

    Attributes:
        repository: ``<org>/<name>``.
        root: Folder of all models.
        revision: Branch, tag or commit.
        lock: The files that are accepted, or None to accept and record what the hub gives.
        endpoint: Address of the hub; empty for huggingface_hub's default.
        token: Secret for ``token_endpoint``, or None.
        token_endpoint: The only place that may see the token.
        allow: Patterns of files to take; empty for all.
        ignore: Patterns of files to leave out.
        allow_pickle: Take files that can run code when loaded.
        full_check: Read every byte on disk instead of trusting files that look as when they were verified.
        owner: Numeric owner of all that is written; -1 for whoever runs this.
        group: Numeric group of all that is written; -1 for that of whoever runs this.
        workers: Files that are fetched at once.
        timeout: Seconds without a byte after which a connection counts as dead.
        retry: Patience with the hub.
        lock_timeout: Seconds to wait for another run on the same repository.
    """

    repository: str
    root: Path
    revision: str = "main"
    lock: Lock | None = None
    endpoint: str = ""
    token: str | None = None
    token_endpoint: str = HUB
    allow: Sequence[str] = ()
    ignore: Sequence[str] = ()
    allow_pickle: bool = False
    full_check: bool = False
    owner: int = -1
    group: int = -1
    workers: int = 4
    timeout: float = 30.0
    retry: Retry = field(default_factory=Retry)
    lock_timeout: float = 3600.0


@dataclass
class Outcome:
    """What a run found and did; in a dry run, what it would do.

    Attributes:
        commit: The commit that the folder holds.
        path: The folder.
        files: All files, with their hashes (None where a dry run cannot know one).
        fetched: Paths that came, or would come, from the hub.
        bytes_to_fetch: Bytes that were missing on disk before.
        bytes_fetched: Bytes received, with those received twice; 0 in a dry run.
        removed: Paths that did not belong into the folder.
        fixed: Paths whose owner or mode was not as it must be.
        recorded: Whether a new or different ``lock.json`` was written.
        placed: Whether the folder is new.
        warnings: What a person should know although it worked.
    """

    commit: str
    path: Path
    files: tuple[FileSpec, ...]
    fetched: tuple[str, ...] = ()
    bytes_to_fetch: int = 0
    bytes_fetched: int = 0
    removed: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    recorded: bool = False
    placed: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything that others read is different now."""
        return bool(self.fetched or self.removed or self.fixed or self.recorded or self.placed)


def ensure(want: Want, dry_run: bool = False) -> Outcome:
    """Make the folder hold exactly the wanted files.

    Args:
        want: What is wanted.
        dry_run: Only look; writes nothing and fetches no file.

    Raises:
        RefusalError: With a code that says what is wrong; the folder is as it was or has only gained verified files.
    """
    plan.check_source(want.repository, want.revision, want.lock)
    if not want.root.is_absolute():
        plan.refuse("bad_root", f"root is {str(want.root)!r}.", "Give an absolute path.")
    layout = Layout(want.root, want.repository)
    try:
        if not dry_run:
            store.make_folder(layout.base, want.owner, want.group)
        with nullcontext() if dry_run else store.only_one(layout, want.lock_timeout):
            return _Run(want, layout, dry_run).run()
    except OSError as error:
        raise RefusalError(explain_os_error(error, layout.base)) from error


def explain_os_error(error: OSError, folder: Path) -> Refusal:
    """The refusal for a disk that does not take what is written."""
    place = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal(
            "disk_full",
            f"{place}: {error.strerror}; the space was taken while this ran.",
            "Free space there and run again: finished bytes are kept.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Refusal(
            "not_writable",
            f"{place}: {error.strerror}.",
            "Make it writable for the user that runs this, or choose another root.",
        )
    return Refusal("disk_error", f"{place}: {error}.", "Look at the disk and the kernel's log, then run again.")


class _Run:
    """One run over one repository: the steps, and what they pass on."""

    def __init__(self, want: Want, layout: Layout, dry_run: bool) -> None:
        self._want, self._layout, self._dry_run = want, layout, dry_run
        self._opened: Hub | None = None
        self._warnings: list[str] = []
        self._received = 0
        self._mutex = threading.Lock()

    def run(self) -> Outcome:
        """All steps in order."""
        commit, wanted, state = self._choose()
        folder = self._layout.folder(commit)
        placed = not folder.is_dir()
        target = self._layout.staging(commit) if placed else folder
        removed, fixed = self._tidy(target, wanted)
        missing = self._missing(target, wanted, state)
        if missing and self._want.lock is not None:
            missing = self._confirm_with_hub(self._want.lock, missing)
        left = sum(self._left(commit, spec) for spec in missing)
        outcome = Outcome(
            commit,
            folder,
            wanted,
            fetched=tuple(spec.path for spec in missing),
            bytes_to_fetch=left,
            removed=() if placed else tuple(removed),
            fixed=() if placed else tuple(fixed),
            placed=placed,
        )
        if missing:
            free_bytes, free_inodes = store.free_space(self._layout.base)
            inodes = len(missing) + len({Path(spec.path).parent for spec in missing}) + SPARE_INODES
            plan.check_space(left + SPARE_BYTES, inodes, free_bytes, free_inodes, str(self._layout.base))
        if not self._dry_run:
            self._fetch(target, missing, state)
            outcome.bytes_fetched = self._received
            outcome.files = tuple(replace(spec, sha256=state.known_sha256(spec.path)) for spec in wanted)
            outcome.recorded = self._place(target, outcome, state)
        outcome.warnings = tuple(self._warnings)
        return outcome

    @property
    def _hub(self) -> Hub:
        """The hub, opened when it is needed for the first time: a complete folder needs none."""
        if self._opened is None:
            want = self._want
            self._opened = Hub(
                want.endpoint,
                want.repository,
                token=want.token,
                token_endpoint=want.token_endpoint,
                timeout=want.timeout,
                retry=want.retry,
            )
            if want.lock is None and not self._opened.is_protected:
                self._warnings.append(
                    f"{self._opened.endpoint} is not encrypted and there is no lock: "
                    f"whoever stands between can change {want.repository}."
                )
        return self._opened

    def _choose(self) -> tuple[str, tuple[FileSpec, ...], State]:
        """The commit, its wanted files, and what is known of them; asks the hub only for what is not known yet."""
        want = self._want
        recorded = self._recorded()
        commit = plan.pinned_commit(want.revision, want.lock)
        listing: Listing | None = None
        if commit is None:
            listing = self._listing(
                want.revision, recorded if recorded and recorded.revision == want.revision else None
            )
            commit = listing.commit
        state = State(self._layout.state(commit), commit)
        same = recorded if recorded and recorded.commit == commit else None
        if want.lock is not None:
            files = want.lock.files
        else:
            listing = listing or state.listing or self._listing(commit, same)
            if listing.commit != commit:
                plan.refuse(
                    "wrong_commit",
                    f"{want.repository}: asked for commit {commit}, {self._hub.endpoint} gave {listing.commit}.",
                    "Use an endpoint that serves this commit.",
                )
            state.listing = listing
            files = listing.files
        files = plan.select(files, want.allow, want.ignore)
        plan.check_wanted(files, want.repository, want.allow_pickle)
        if want.lock is None and same is not None:
            files = plan.apply_lock(files, {spec.path: spec for spec in same.files}, str(self._layout.lock))
        return commit, files, state

    def _recorded(self) -> Lock | None:
        """What the last completed run recorded; a damaged record is worth a warning, no more."""
        try:
            return store.read_lock(self._layout.lock)
        except RefusalError as error:
            self._warnings.append(f"{error.refusals[0].message} It is written again.")
            return None

    def _listing(self, revision: str, fallback: Lock | None) -> Listing:
        """The hub's list; while the hub cannot answer, the record of the same revision stands in for it."""
        try:
            return self._hub.listing(revision)
        except RefusalError as error:
            if fallback is None or error.refusals[0].code not in PASSING_CODES:
                raise
            self._warnings.append(
                f"{error.refusals[0].message} Using commit {fallback.commit}, "
                f"which {fallback.revision} was when it was last fetched."
            )
            return State(self._layout.state(fallback.commit), fallback.commit).listing or Listing(
                fallback.commit, fallback.files
            )

    def _tidy(self, target: Path, wanted: Sequence[FileSpec]) -> tuple[list[str], list[str]]:
        """Remove what does not belong, set modes and owners. Returns the paths removed and the paths set right."""
        removed = store.strangers(target, {spec.path: spec for spec in wanted})
        if not self._dry_run:
            store.make_folder(target, self._want.owner, self._want.group)
            for path in removed:
                store.remove(target, path)
        fixed = store.wrong_modes(target, wanted, self._want.owner, self._want.group)
        if not self._dry_run:
            for path in fixed:
                store.set_mode(target / path, self._want.owner, self._want.group)
        return removed, fixed

    def _missing(self, target: Path, wanted: Sequence[FileSpec], state: State) -> list[FileSpec]:
        """The files that are absent or not what they must be."""
        with ThreadPoolExecutor(self._want.workers) as pool:
            good = pool.map(lambda spec: store.is_good(target, spec, state, self._want.full_check), wanted)
            return [spec for spec, is_good in zip(wanted, good, strict=True) if not is_good]

    def _confirm_with_hub(self, lock: Lock, missing: Sequence[FileSpec]) -> list[FileSpec]:
        """Compare the lock with the hub's list before the first byte; adds what else the hub knows of the files."""
        confirmed = {spec.path: spec for spec in plan.lock_files(lock, self._hub.listing(lock.commit))}
        return [confirmed[spec.path] for spec in missing]

    def _left(self, commit: str, spec: FileSpec) -> int:
        """Bytes of a file that are not on disk yet."""
        try:
            held = self._layout.part(commit, spec.path).stat().st_size
        except FileNotFoundError:
            held = 0
        return spec.size - min(held, spec.size)

    def _fetch(self, target: Path, missing: Sequence[FileSpec], state: State) -> None:
        """Fetch files, the largest first; the first failure ends all."""
        if not missing:
            return
        want, stop = self._want, threading.Event()
        store.make_folder(self._layout.part(state.commit, "").parent, want.owner, want.group)
        _ = self._hub  # opened here, once, before the threads share it
        with ThreadPoolExecutor(want.workers) as pool:
            try:
                futures: list[Future[None]] = [
                    pool.submit(self._fetch_file, target, spec, state, stop)
                    for spec in sorted(missing, key=lambda spec: -spec.size)
                ]
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also when this thread is interrupted
                stop.set()
                pool.shutdown(cancel_futures=True)
        errors = [error for f in futures if not f.cancelled() and (error := f.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
            raise error

    def _fetch_file(self, target: Path, spec: FileSpec, state: State, stop: threading.Event) -> None:
        """Fetch one file, verify it and move it to its place below ``target``."""
        commit = state.commit
        part = PartFile(self._layout.part(commit, spec.path), spec)
        try:
            for _ in range(FETCHES_PER_FILE):
                self._hub.download(commit, spec, part, stop, self._count)
                problem = part.hash.problem()
                if problem is None:
                    store.make_folder((target / spec.path).parent, self._want.owner, self._want.group)
                    found = part.finish(target / spec.path, self._want.owner, self._want.group)
                    state.record(spec.path, found, part.hash.sha256())
                    state.save()
                    return
                as_hub_says = part.hash.is_blob
                part.restart()
                if as_hub_says:
                    plan.refuse_mismatch(
                        spec.path, "the lock", f"sha256 {spec.sha256}", f"another on the hub: {problem}"
                    )
            plan.refuse(
                "checksum_mismatch",
                f"{spec.path} came {FETCHES_PER_FILE} times from {self._hub.endpoint}, but {problem}.",
                "Use another endpoint; if the hub itself gives this, its file is damaged.",
            )
        finally:
            part.close()

    def _count(self, received: int) -> None:
        with self._mutex:
            self._received += received

    def _place(self, target: Path, outcome: Outcome, state: State) -> bool:
        """Make the verified files the commit's folder and record them. Returns whether the record is new."""
        folder = outcome.path
        if target != folder:
            for place, _folders, _files in os.walk(target):
                store.sync_folder(Path(place))
            target.rename(folder)
        store.remove(self._layout.base, self._layout.incomplete(outcome.commit).name)
        store.sync_folder(self._layout.base)
        state.save()
        lock = Lock(self._want.repository, self._want.revision, outcome.commit, outcome.files)
        return store.write_atomically(self._layout.lock, json.dumps(lock.as_dict(), indent=2) + "\n", LOCK_MODE)
