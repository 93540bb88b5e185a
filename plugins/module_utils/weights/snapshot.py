"""Make a model's folder contain exactly the files of one commit, and verify them.

Steps: resolve the commit, select the files, verify those on disk, check the free space, fetch the rest, move it into
place. After an interruption at any step, the next run continues.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from ansible_collections.inference.vllm.plugins.module_utils.files import sync_folder, write_if_changed
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights import plan, store
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import (
    HUB,
    PASSING_CODES,
    Hub,
    Retry,
    StoppedError,
)
from ansible_collections.inference.vllm.plugins.module_utils.weights.peers import Fleet, Peers
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import FileSpec, Listing, Lock
from ansible_collections.inference.vllm.plugins.module_utils.weights.progress import Pace, Progress
from ansible_collections.inference.vllm.plugins.module_utils.weights.sources import Folders, Hubs, recorded_in
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import (
    HashOnly,
    Layout,
    PartFile,
    Sink,
    State,
)

LOCK_MODE = 0o644
SPARE_INODES = 8
SPARE_BYTES = 4 << 20  # reserve for state, locks and metadata of the file system
FETCHES_PER_FILE = 2  # a second fetch helps against transmission errors; a third would not


@dataclass(frozen=True)
class Want:
    """The wanted files and their sources.

    Attributes:
        repository: ``<org>/<name>``.
        root: Folder of all models.
        revision: Branch, tag or commit.
        lock: The accepted files, or None to accept and record the hub's files.
        refresh: Resolve a branch at the hub, instead of using the commit of the last run.
        folders: Local folders, used before hubs.
        fleet: Other hosts, used before hubs.
        mirrors: Addresses of hubs to use before ``endpoint``, in this order.
        endpoint: Address of the hub; empty for huggingface_hub's default.
        token: Secret for ``token_endpoint``, or None.
        token_endpoint: The only address to which the token is sent.
        allow: Patterns of files to include; empty for all.
        ignore: Patterns of files to exclude.
        allow_pickle: Accept files that can run code when they are loaded.
        full_check: Read every byte on disk, also of files with unchanged attributes.
        owner: Numeric owner of all written files; -1 for the current user.
        group: Numeric group of all written files; -1 for the current group.
        workers: Number of concurrent downloads.
        bytes_per_second: Limit for all sources together; 0 for no limit.
        timeout: Seconds without a byte after which a connection is closed.
        retry: Limits of the retries at a hub.
        lock_timeout: Seconds to wait for another run on the same repository.
        keep: Number of commits of the repository to keep on disk; 0 for all.
        in_use: Manifest of the release in use; its commit is always kept.
        show_progress: Write the figures of :class:`Progress` during the run.
    """

    repository: str
    root: Path
    revision: str = "main"
    lock: Lock | None = None
    refresh: bool = True
    folders: Sequence[Path] = ()
    fleet: Fleet = field(default_factory=Fleet)
    mirrors: Sequence[str] = ()
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
    bytes_per_second: float = 0.0
    timeout: float = 30.0
    retry: Retry = field(default_factory=Retry)
    lock_timeout: float = 3600.0
    keep: int = 0
    in_use: Path | None = None
    show_progress: bool = False


@dataclass
class Outcome:
    """The result of a run; in a dry run, the expected result.

    Attributes:
        commit: The commit in the folder.
        path: The folder.
        files: All files, with their hashes (None if a dry run cannot determine one).
        fetched: Paths that were fetched, or would be.
        bytes_to_fetch: Bytes that were missing on disk before.
        bytes_fetched: Bytes received, including repeated ones; 0 in a dry run.
        sources: Received bytes by source: folder or address.
        removed: Unexpected paths in the folder.
        fixed: Paths with a wrong owner or mode.
        recorded: Whether a new or different ``lock.json`` was written.
        placed: Whether the folder is new.
        pruned: Old commits that were removed, or would be.
        warnings: Warnings for the operator.
    """

    commit: str
    path: Path
    files: tuple[FileSpec, ...]
    fetched: tuple[str, ...] = ()
    bytes_to_fetch: int = 0
    bytes_fetched: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    recorded: bool = False
    placed: bool = False
    pruned: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether any file for readers changed."""
        return bool(self.fetched or self.removed or self.fixed or self.recorded or self.placed or self.pruned)


def ensure(want: Want, dry_run: bool = False) -> Outcome:
    """Make the folder contain exactly the wanted files.

    Args:
        want: The wanted files and their sources.
        dry_run: Write nothing and fetch no file.

    Raises:
        RefusalError: With the code of the failure; the folder is unchanged or has additional verified files.
    """
    layout = _checked(want)
    try:
        if dry_run:
            return _Run(want, layout, dry_run, Progress(None)).run()
        store.make_folder(layout.base, want.owner, want.group)
        figures = layout.progress if want.show_progress else None
        with store.only_one(layout, want.lock_timeout), Progress(figures) as progress:
            return _Run(want, layout, dry_run, progress).run()
    except OSError as error:
        raise RefusalError(explain_os_error(error, layout.base)) from error


def write_lock(want: Want) -> tuple[Lock, tuple[str, ...]]:
    """The lock of the hub's current files, and warnings. Writes nothing; reads files for which the hub has no SHA-256.

    Raises:
        RefusalError: As for ``ensure``.
    """
    want = replace(want, lock=None)
    return _Run(want, _checked(want), dry_run=True, progress=Progress(None)).lock()


def _checked(want: Want) -> Layout:
    plan.check_source(want.repository, want.revision, want.lock)
    want.fleet.check()
    for name, folder in (("root", want.root), *(("folders", folder) for folder in want.folders)):
        if not folder.is_absolute():
            plan.refuse("bad_root", f"{name} is {str(folder)!r}.", "Set an absolute path.")
    return Layout(want.root, want.repository)


def explain_os_error(error: OSError, folder: Path) -> Refusal:
    """The refusal for a failed write."""
    place = error.filename or folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal(
            "disk_full",
            f"{place}: {error.strerror}; the space was used during the run.",
            "Free space there and run again: finished bytes are kept.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return Refusal(
            "not_writable",
            f"{place}: {error.strerror}.",
            "Make it writable for the user of the task, or choose another root.",
        )
    return Refusal("disk_error", f"{place}: {error}.", "Check the disk and the kernel's log, then run again.")


class _Run:
    """One run for one repository: the steps and their state."""

    def __init__(self, want: Want, layout: Layout, dry_run: bool, progress: Progress) -> None:
        self._want, self._layout, self._dry_run, self._progress = want, layout, dry_run, progress
        self._opened: Hubs | None = None
        self._warnings: list[str] = []
        self._received: Counter[str] = Counter()
        self._pace = Pace(want.bytes_per_second)
        self._stop = threading.Event()
        self._mutex = threading.Lock()

    def run(self) -> Outcome:
        """All steps in order."""
        if not self._dry_run:
            store.sweep(self._layout)
        commit, wanted, state = self._choose()
        folder = self._layout.folder(commit)
        placed = not folder.is_dir()
        target = self._layout.staging(commit) if placed else folder
        removed, fixed = self._tidy(target, wanted)
        missing = self._missing(target, wanted, state)
        folders = Folders(self._layout, commit, self._want.folders, self._warnings.append)
        if not self._want.fleet.urls:  # otherwise other hosts may have all files, and no hub is needed
            missing = self._confirm_with_hub(missing, folders)
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
            self._progress.begin("fetch", left)
            if self._want.fleet.urls:
                self._fetch_with_fleet(target, missing, state, folders)
            else:
                self._fetch(target, missing, state, folders)
            outcome.sources, outcome.bytes_fetched = dict(self._received), self._received.total()
            outcome.files = tuple(replace(spec, sha256=state.known_sha256(spec.path)) for spec in wanted)
            outcome.recorded = self._place(target, outcome, state)
        outcome.pruned = self._prune(commit)
        outcome.warnings = tuple(self._warnings)
        return outcome

    def lock(self) -> tuple[Lock, tuple[str, ...]]:
        """The hub's current files, with the hash of every file."""
        want = self._want
        listing = self._hubs.ask(lambda hub: hub.listing(want.revision))
        wanted = plan.select(listing.files, want.allow, want.ignore)
        plan.check_wanted(wanted, want.repository, want.allow_pickle)
        files = tuple(spec if spec.sha256 else self._hashed(listing.commit, spec) for spec in wanted)
        return Lock(want.repository, want.revision, listing.commit, files), tuple(self._warnings)

    def _hashed(self, commit: str, spec: FileSpec) -> FileSpec:
        sink = HashOnly(spec)
        self._hubs.ask(lambda hub: self._download(hub, commit, spec, sink))
        return replace(spec, sha256=sink.hash.sha256())

    @property
    def _hubs(self) -> Hubs:
        """The hubs, opened on first use: a complete folder needs none."""
        if self._opened is None:
            want = self._want
            hubs = [
                Hub(
                    endpoint,
                    want.repository,
                    token=want.token,
                    token_endpoint=want.token_endpoint,
                    timeout=want.timeout,
                    retry=want.retry,
                )
                for endpoint in (*want.mirrors, want.endpoint)
            ]
            self._warnings += [
                f"{hub.endpoint} is not encrypted and there is no lock: an attacker in the network can change "
                f"{want.repository}."
                for hub in hubs
                if want.lock is None and not hub.is_protected
            ]
            self._opened = Hubs(hubs, self._warnings.append)
        return self._opened

    def _choose(self) -> tuple[str, tuple[FileSpec, ...], State]:
        """The commit, its wanted files, and their recorded state; contacts a source only for unknown facts."""
        want = self._want
        recorded = self._recorded()
        commit = plan.pinned_commit(want.revision, want.lock)
        if commit is not None and not want.refresh and not self._layout.folder(commit).is_dir():
            self._refuse_unknown(f"{self._layout.base} does not contain commit {commit}.")
        listing = None
        if want.lock is None:
            listing = self._listing_without_hub(commit, recorded)
            if listing is None and commit is None:
                same = recorded if recorded and recorded.revision == want.revision else None
                listing = self._listing(want.revision, same)
        commit = commit or (listing.commit if listing else "")
        state = State(self._layout.state(commit), commit)
        same = recorded if recorded and recorded.commit == commit else None
        if want.lock is not None:
            files = want.lock.files
        else:
            listing = listing or state.listing or self._listing(commit, same)
            if listing.commit != commit:
                plan.refuse(
                    "wrong_commit",
                    f"{want.repository}: the requested commit is {commit}, but the hub returned {listing.commit}.",
                    "Use an endpoint that serves this commit.",
                )
            state.listing = listing
            files = listing.files
        files = plan.select(files, want.allow, want.ignore)
        plan.check_wanted(files, want.repository, want.allow_pickle)
        if want.lock is None and same is not None:
            files = plan.apply_lock(files, {spec.path: spec for spec in same.files}, str(self._layout.lock))
        return commit, files, state

    def _listing_without_hub(self, commit: str | None, recorded: Lock | None) -> Listing | None:
        """The record to use instead of a hub's list: of the last run, or of a local folder."""
        want = self._want
        if not want.refresh and commit is None:
            if recorded is None or recorded.revision != want.revision:
                self._refuse_unknown(f"{self._layout.lock} records no commit of {want.repository} {want.revision}.")
            known = State(self._layout.state(recorded.commit), recorded.commit).listing
            return known or Listing(recorded.commit, recorded.files)
        found = recorded_in(want.folders, want.repository, want.revision)
        if found is None or commit not in (None, found[1].commit):
            return None
        self._warnings.append(f"There is no lock: {found[0]} alone defines the files of {want.repository}.")
        return Listing(found[1].commit, found[1].files)

    def _refuse_unknown(self, problem: str) -> NoReturn:
        plan.refuse("not_recorded", problem, "Deploy the weights first, or set refresh: true.")

    def _recorded(self) -> Lock | None:
        """The record of the last completed run; a damaged one causes a warning only."""
        try:
            return store.read_lock(self._layout.lock)
        except RefusalError as error:
            self._warnings.append(f"{error.refusals[0].message} It is written again.")
            return None

    def _listing(self, revision: str, fallback: Lock | None) -> Listing:
        """The hub's list; if the hub cannot answer, the record of the same revision."""
        try:
            return self._hubs.ask(lambda hub: hub.listing(revision))
        except RefusalError as error:
            if fallback is None or error.refusals[0].code not in PASSING_CODES:
                raise
            self._warnings.append(
                f"{error.refusals[0].message} Using commit {fallback.commit}, "
                f"to which {fallback.revision} pointed at the last fetch."
            )
            return State(self._layout.state(fallback.commit), fallback.commit).listing or Listing(
                fallback.commit, fallback.files
            )

    def _tidy(self, target: Path, wanted: Sequence[FileSpec]) -> tuple[list[str], list[str]]:
        """Remove unexpected files, correct modes and owners. Returns the removed and the corrected paths."""
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
        """The files that are missing or wrong."""
        self._progress.begin("check", sum(spec.size for spec in wanted))
        full = self._want.full_check
        with ThreadPoolExecutor(self._want.workers) as pool:
            good = pool.map(lambda spec: store.is_good(target, spec, state, full, self._progress.add), wanted)
            return [spec for spec, is_good in zip(wanted, good, strict=True) if not is_good]

    def _confirm_with_hub(self, missing: Sequence[FileSpec], folders: Folders) -> list[FileSpec]:
        """Compare the lock with the hub's list before the first download; adds the hub's facts about the files."""
        lock = self._want.lock
        if lock is None or all(folders.offers(spec) for spec in missing):  # no hub may be needed
            return list(missing)
        confirmed = self._hubs.ask(lambda hub: plan.lock_files(lock, hub.listing(lock.commit)))
        by_path = {spec.path: spec for spec in confirmed}
        return [by_path[spec.path] for spec in missing]

    def _left(self, commit: str, spec: FileSpec) -> int:
        """Bytes of a file that are missing on disk."""
        try:
            held = self._layout.part(commit, spec.path).stat().st_size
        except FileNotFoundError:
            held = 0
        return spec.size - min(held, spec.size)

    def _fetch_with_fleet(self, target: Path, missing: Sequence[FileSpec], state: State, folders: Folders) -> None:
        """Fetch files from other hosts, and the rest from a hub; if no hub answers, wait for the other hosts."""
        want = self._want
        peers = Peers(want.fleet, want.repository, state.commit, timeout=want.timeout, warn=self._warnings.append)
        refused: RefusalError | None = None
        while missing := self._fetch_from_fleet(peers, target, missing, state, folders):
            if refused is not None:
                raise refused
            try:
                self._fetch(target, self._confirm_with_hub(missing, folders), state, folders)
                return
            except RefusalError as error:
                if error.refusals[0].code not in PASSING_CODES:
                    raise
                refused = error
            self._warnings.append(f"{refused.refusals[0].message} Waiting for the other hosts.")
            peers.follow_all()
            self._stop.clear()
            missing = [spec for spec in missing if not store.is_good(target, spec, state, False, lambda _: None)]

    def _fetch_from_fleet(
        self, peers: Peers, target: Path, missing: Sequence[FileSpec], state: State, folders: Folders
    ) -> list[FileSpec]:
        """Take files from folders, and from other hosts as soon as these have them. Returns the missing files."""
        want, rest = self._want, {spec.path: spec for spec in sorted(missing, key=lambda spec: -spec.size)}
        local = {path for path, spec in rest.items() if folders.offers(spec)}
        running: dict[Future[bool], FileSpec] = {}
        self._make_parts_folder(state.commit)

        def source_of(spec: FileSpec) -> Callable[[PartFile], bool] | None:
            if spec.path in local:
                local.remove(spec.path)  # a wrong file is not tried again
                return lambda part: folders.copy(spec, part, self._count)
            peer = peers.best(spec)
            return None if peer is None else lambda part: peers.fetch(peer, spec, part, self._stop, self._count)

        with ThreadPoolExecutor(want.workers) as pool:
            try:
                while rest or running:
                    peers.look()
                    for spec in list(rest.values()):
                        if len(running) < want.workers and (fill := source_of(spec)) is not None:
                            running[pool.submit(self._fetch_file, target, spec, state, fill)] = rest.pop(spec.path)
                    if not running:
                        if not peers.worth_waiting(rest.values()):
                            break
                        time.sleep(peers.pause(rest.values()))
                    for future in wait(running, peers.pause(rest.values()), FIRST_COMPLETED).done:
                        spec = running.pop(future)
                        if not future.result():
                            rest[spec.path] = spec
            except BaseException:  # also when this thread is interrupted
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return list(rest.values())

    def _fetch(self, target: Path, missing: Sequence[FileSpec], state: State, folders: Folders) -> None:
        """Fetch files, largest first; the first failure stops all downloads."""
        if not missing:
            return
        want = self._want
        self._make_parts_folder(state.commit)

        def fill(spec: FileSpec, part: PartFile) -> bool:
            if not folders.copy(spec, part, self._count):
                self._hubs.ask(lambda hub: self._download(hub, state.commit, spec, part))
            return True

        def fetch(spec: FileSpec) -> None:
            if self._stop.is_set():
                raise StoppedError
            try:
                self._fetch_file(target, spec, state, partial(fill, spec))
            except BaseException:
                # At once: otherwise this thread begins the next file before the main thread sees the failure.
                self._stop.set()
                raise

        with ThreadPoolExecutor(want.workers) as pool:
            try:
                futures = [pool.submit(fetch, spec) for spec in sorted(missing, key=lambda spec: -spec.size)]
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also when this thread is interrupted
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        errors = [error for f in futures if not f.cancelled() and (error := f.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
            raise error

    def _make_parts_folder(self, commit: str) -> None:
        store.make_folder(self._layout.part(commit, "").parent, self._want.owner, self._want.group)

    def _fetch_file(self, target: Path, spec: FileSpec, state: State, fill: Callable[[PartFile], bool]) -> bool:
        """Fill a part with verified content and move it into ``target``; False if that failed."""
        want = self._want
        part = PartFile(self._layout.part(state.commit, spec.path), spec)
        try:
            if not fill(part):
                return False
            store.make_folder((target / spec.path).parent, want.owner, want.group)
            found = part.finish(target / spec.path, want.owner, want.group)
            state.record(spec.path, found, part.hash.sha256())
            state.save()
        finally:
            part.close()
        return True

    def _download(self, hub: Hub, commit: str, spec: FileSpec, sink: Sink) -> None:
        """Fill a sink from a hub until the content is correct."""
        for _ in range(FETCHES_PER_FILE):
            hub.download(commit, spec, sink, self._stop, lambda count: self._count(hub.endpoint, count))
            problem = sink.hash.problem()
            if problem is None:
                return
            as_hub_says = sink.hash.is_blob
            sink.restart()
            if as_hub_says:
                plan.refuse_mismatch(spec.path, "the lock", f"sha256 {spec.sha256}", f"another on the hub: {problem}")
        plan.refuse(
            "checksum_mismatch",
            f"{spec.path} was fetched {FETCHES_PER_FILE} times from {hub.endpoint}, but {problem}.",
            "Use another endpoint. If the official hub also returns this content, its file is damaged.",
        )

    def _count(self, source: str, received: int) -> None:
        """Count the bytes of a source, and wait as the bandwidth limit requires."""
        with self._mutex:
            self._received[source] += received
        self._progress.add(received)
        pause = self._pace.wait(received)
        if pause and self._stop.wait(pause):
            raise StoppedError

    def _place(self, target: Path, outcome: Outcome, state: State) -> bool:
        """Move the verified files into the commit's folder and record them. Returns whether the record is new."""
        folder = outcome.path
        if target != folder:
            for place, _folders, _files in os.walk(target):
                sync_folder(Path(place))
            target.rename(folder)
        store.remove(self._layout.base, self._layout.incomplete(outcome.commit).name)
        sync_folder(self._layout.base)
        state.save()
        lock = Lock(self._want.repository, self._want.revision, outcome.commit, outcome.files)
        return write_if_changed(self._layout.lock, lock.file().to_json(), LOCK_MODE)

    def _prune(self, commit: str) -> tuple[str, ...]:
        """Remove old commits and unfinished downloads of others; a dry run only returns them."""
        if not self._want.keep:
            return ()
        try:
            in_use = self._commit_in_use()
        except (OSError, ValueError) as error:
            self._warnings.append(f"Old commits are kept, because {self._want.in_use} cannot be read: {error}")
            return ()
        commits = {**self._layout.commits(), commit: float("inf")}
        old = plan.superfluous(commits, commit, in_use, self._want.keep)
        begun = [each for each in self._layout.unfinished() if each != commit]
        for each in () if self._dry_run else {*old, *begun}:
            store.discard(self._layout, each, complete=each in old)
        return tuple(sorted({*old, *(each for each in begun if each not in commits)}))

    def _commit_in_use(self) -> set[str]:
        manifest = self._want.in_use
        if manifest is None or not (manifest.exists() or manifest.parent.is_symlink()):
            return set()
        used = plan.used_commit(json.loads(manifest.read_text()), self._want.repository)
        return {used} if used else set()
