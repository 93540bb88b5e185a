"""Download model files from the other hosts of a deployment, also while these still fetch them.

Hosts do not coordinate: all have the same ordered list of hosts. Each takes files from any host that has them, and uses
a hub only if no host before it in the list is active. So the first live host fetches from the hub, the others follow
file by file, and each host with a file serves it. A host that fails is replaced by the next one in the list.

The content from other hosts is not trusted: size and hash of a file come from the lock or from the hub's list.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Hub, Retry, check_endpoint
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import FileSpec, refuse
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import Sink
from ansible_collections.inference.vllm.plugins.module_utils.weights.stream import BrokenStreamError

OK = 200
SURVEY_BYTES = 16 << 20  # limit of a response that lists files
SURVEY_SECONDS = 3.0
SURVEYS_AT_ONCE = 16
LOST_SURVEYS = 3  # consecutive failures after which a host counts as dead
# When a host fails, the hosts after it must not all use the hub: each waits for the one before it to start. In surveys
# of the others.
STAGGER = 5.0
BUSY_PART = 4  # a busy host is asked again after this fraction of a pause
NOT_NOW = frozenset({"rate_limited", "file_not_found"})  # a host that is busy, or has just moved the file


@dataclass(frozen=True)
class Fleet:
    """The hosts that share their files.

    Attributes:
        own: Address of this host's own server, as in ``urls``.
        urls: Addresses of all hosts' servers, in the same order on all hosts.
        token: Secret of this run.
        patience: Seconds without progress after which a host counts as inactive, and without enough bytes as slow.
        least_rate: Bytes per second of one file, below which a host counts as slow.
        pause: Seconds between two surveys of the others' files.
    """

    own: str = ""
    urls: Sequence[str] = ()
    token: str = ""
    patience: float = 30.0
    least_rate: float = 1e6
    pause: float = 1.0

    def check(self) -> None:
        """Refuse invalid addresses.

        Raises:
            RefusalError: ``bad_endpoint`` or ``bad_peers``.
        """
        for url in self.urls:
            check_endpoint("peers", url)
        if self.urls and self.own not in self.urls:
            refuse(
                "bad_peers",
                f"peer_self is {self.own!r}, which is not one of peers: {', '.join(self.urls)}.",
                "Set peer_self to the address of this host, written as in peers.",
            )
        if self.urls and not self.token:
            refuse(
                "bad_peers", "peers are set without peer_token.", "Set the token with which the servers were started."
            )


@dataclass
class Peer:
    """Another host, as of the last survey.

    Attributes:
        url: Address of its server.
        files: Names of its files.
        complete: Whether it has all files that it wants.
        changed_at: Time of its last observed progress.
        lost: Number of consecutive failed surveys.
        sending: Files that it is sending to this host.
        busy_until: Time at which it may be asked again after it was busy.
        usable: Whether it is still used.
    """

    url: str
    files: Collection[str] = ()
    complete: bool = False
    changed_at: float = 0.0
    lost: int = 0
    sending: int = 0
    busy_until: float = 0.0
    usable: bool = True
    _seen: object = field(default=None, repr=False)

    def note(self, report: dict[str, Any], now: float) -> None:
        """Update from its report."""
        seen = report["files"], report["complete"], report["progress"]
        if seen != self._seen:
            self.changed_at, self._seen = now, seen
        self.files, self.complete, self.lost = frozenset(map(str, seen[0])), bool(seen[1]), 0


class TooSlowError(Exception):
    """A host sends too slowly."""


class Peers:
    """The other hosts, for one commit."""

    def __init__(
        self,
        fleet: Fleet,
        repository: str,
        commit: str,
        *,
        timeout: float,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the hosts without connecting. ``warn`` is called for each host that is dropped."""
        self._fleet, self._repository, self._commit = fleet, repository, commit
        self._timeout, self._warn, self._clock = min(timeout, fleet.patience), warn, clock
        self._mutex = threading.Lock()
        now = clock()
        self._rank = list(fleet.urls).index(fleet.own) if fleet.urls else 0
        self._peers = [Peer(url, changed_at=now) for url in fleet.urls if url != fleet.own]
        self._before = self._peers[: self._rank]
        self._patience = fleet.patience + self._rank * STAGGER * fleet.pause
        self._hubs: dict[str, Hub] = {}

    def look(self) -> None:
        """Survey the files of all hosts."""
        asked = [peer for peer in self._peers if peer.usable]
        if asked:
            with ThreadPoolExecutor(min(len(asked), SURVEYS_AT_ONCE)) as pool:
                list(pool.map(self._look_at, asked))

    def _look_at(self, peer: Peer) -> None:
        url = f"{peer.url}/api/held/{self._repository}/{self._commit}"
        try:
            with self._hub(peer).stream(url, timeout=min(self._timeout, SURVEY_SECONDS)) as answer:
                if answer.status != OK:
                    raise ValueError(f"status {answer.status}")
                text = b""
                for piece in answer.pieces:
                    text += piece
                    if len(text) > SURVEY_BYTES:
                        raise ValueError("an endless list")
            peer.note(json.loads(text), self._clock())
        except (BrokenStreamError, KeyError, TypeError, ValueError) as error:
            peer.lost += 1
            if peer.lost >= LOST_SURVEYS:
                self._drop(peer, f"it does not list its files: {type(error).__name__}: {error}")

    def best(self, spec: FileSpec) -> Peer | None:
        """The host to take a file from: of those that have it, the one that sends least to this host."""
        now = self._clock()
        holders = [peer for peer in self._holding(spec) if peer.busy_until <= now]
        # Each host starts after its own position in the list, so that not all use the first host.
        turn = {peer.url: (self._peers.index(peer) - self._rank) % len(self._peers) for peer in holders}
        return min(holders, key=lambda peer: (peer.sending, turn[peer.url]), default=None)

    def worth_waiting(self, specs: Collection[FileSpec]) -> bool:
        """Whether a host with one of these files is only busy, or an earlier host is active."""
        if any(self._holding(spec) for spec in specs):
            return True
        since = self._clock() - self._patience
        return any(peer.usable and not peer.complete and peer.changed_at > since for peer in self._before)

    def pause(self, specs: Collection[FileSpec]) -> float:
        """Seconds until the next survey; fewer if a host with one of these files is only busy."""
        busy = any(self._holding(spec) for spec in specs)
        return self._fleet.pause / (BUSY_PART if busy else 1)

    def follow_all(self) -> None:
        """From now on also wait for later hosts: no hub answers this host, but one may answer them."""
        self._before = self._peers
        # They start after their own timeout for this host.
        self._patience += self._fleet.patience + len(self._peers) * STAGGER * self._fleet.pause
        for peer in self._peers:
            peer.changed_at = self._clock()

    def _holding(self, spec: FileSpec) -> list[Peer]:
        return [peer for peer in self._peers if peer.usable and spec.path in peer.files]

    def fetch(
        self, peer: Peer, spec: FileSpec, sink: Sink, stop: threading.Event, count: Callable[[str, int], None]
    ) -> bool:
        """Fill a sink from a host; False if that failed. Content that may be correct is kept for the next source.

        Raises:
            StoppedError: When ``stop`` was set.
        """
        held, hub = sink.offset, self._hub(peer)
        begin, received = self._clock(), 0

        def counted(number: int) -> None:
            nonlocal begin, received
            received += number
            count(peer.url, number)
            seconds = self._clock() - begin
            if seconds > self._fleet.patience:
                if received < self._fleet.least_rate * seconds:
                    raise TooSlowError(f"{received / seconds:,.0f} bytes/s")
                begin, received = self._clock(), 0

        with self._mutex:
            peer.sending += 1
        try:
            hub.download(self._commit, spec, sink, stop, counted)
        except RefusalError as error:
            if error.refusals[0].code in NOT_NOW:
                peer.busy_until = self._clock() + self._fleet.pause / BUSY_PART
            else:
                self._drop(peer, error.refusals[0].message)
            return False
        except TooSlowError as error:
            self._drop(peer, f"it is slow ({error})")
            return False
        finally:
            with self._mutex:
                peer.sending -= 1
        problem = sink.hash.problem()
        if problem is None:
            return True
        sink.restart()
        if not held:  # otherwise earlier bytes may be the wrong ones
            self._drop(peer, f"{spec.path}: {problem}")
        return False

    def _hub(self, peer: Peer) -> Hub:
        with self._mutex:
            if peer.url not in self._hubs:
                self._hubs[peer.url] = Hub(
                    peer.url,
                    self._repository,
                    token=self._fleet.token,
                    token_endpoint=peer.url,
                    timeout=self._timeout,
                    retry=Retry(0),
                    direct=True,
                    headers={"X-Peer": self._fleet.own},
                )
            return self._hubs[peer.url]

    def _drop(self, peer: Peer, why: str) -> None:
        with self._mutex:
            given_up, peer.usable = not peer.usable, False
        if not given_up:
            self._warn(f"{peer.url} is no longer used: {why}.")
