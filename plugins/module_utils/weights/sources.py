"""Sources of a model's bytes, in order: other commits on this host, folders, mirrors, the hub."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Hub
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import FileSpec, Lock
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import (
    HashOnly,
    Layout,
    Sink,
    copy,
    held,
    read_lock,
)

T = TypeVar("T")


class Hubs:
    """Mirrors and the hub, in order. One that fails is not used again in this run."""

    def __init__(self, hubs: Sequence[Hub], warn: Callable[[str], None]) -> None:
        """Use the hubs in this order; ``warn`` is called for each one that is dropped."""
        self._hubs, self._warn = list(hubs), warn
        self._mutex = threading.Lock()

    def ask(self, act: Callable[[Hub], T]) -> T:
        """The result of the first hub that succeeds; raises the refusal of the last one if none does."""
        while True:
            hub = self._hubs[0]
            try:
                return act(hub)
            except RefusalError as error:
                if not self._drop(hub, error):
                    raise

    def _drop(self, hub: Hub, error: RefusalError) -> bool:
        with self._mutex:
            if hub is self._hubs[0] and len(self._hubs) > 1:
                self._hubs.pop(0)
                self._warn(f"{error.refusals[0].message} Going on with {self._hubs[0].endpoint}.")
            return hub is not self._hubs[0]


class Folders:
    """Files on local disks that may be the wanted ones."""

    def __init__(self, layout: Layout, commit: str, folders: Sequence[Path], warn: Callable[[str], None]) -> None:
        """Search other commits of the same repository on this host, then these folders."""
        self._layout, self._commit, self._folders, self._warn = layout, commit, folders, warn
        self._held = held(layout, commit)

    def offers(self, spec: FileSpec) -> list[Path]:
        """Files of the right size that may be this one, most likely first."""
        own = [self._held[spec.sha256]] if spec.sha256 in self._held else []
        found = [*own, *self._layout.candidates(self._folders, self._commit, spec.path)]
        return [path for path in found if path.is_file() and path.stat().st_size == spec.size]

    def copy(self, spec: FileSpec, sink: Sink, count: Callable[[str, int], None]) -> bool:
        """Fill a sink from the first correct candidate; False, with an empty sink, if there is none."""
        for path in self.offers(spec):
            if sink.offset:  # keep bytes that a hub sent, unless this file is correct
                trial = HashOnly(spec)
                if _problem(path, spec, trial, lambda _: None) is not None:
                    continue
                sink.restart()
            problem = _problem(path, spec, sink, partial(count, str(self._root_of(path))))
            if problem is None:
                return True
            sink.restart()
            self._warn(f"{path} is not the wanted file: {problem}. It was not changed.")
        return False

    def _root_of(self, path: Path) -> Path:
        return next((f for f in self._folders if path.is_relative_to(f)), self._layout.base)


def _problem(path: Path, spec: FileSpec, sink: Sink, count: Callable[[int], None]) -> str | None:
    """Read a file into a sink. Returns its difference from the specification; None if there is none."""
    error = copy(path, sink, count)
    if error is not None:
        return str(error)
    return sink.hash.problem() if sink.offset == spec.size else f"it has {sink.offset:,} bytes"


def recorded_in(folders: Sequence[Path], repository: str, revision: str) -> tuple[Path, Lock] | None:
    """The first lock of a revision of a repository in these folders, with its path."""
    for folder in folders:
        path = Layout(folder, repository).lock
        lock = read_lock(path)
        if lock is not None and lock.repo == repository and revision in (lock.revision, lock.commit):
            return path, lock
    return None
