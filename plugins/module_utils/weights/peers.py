"""Model files from the other hosts of a deployment, also while those are still fetching them.

Hosts need no agreement: all know the same order of hosts. Each takes from any other what that one holds, and asks a hub
itself only when no host before it in that order is at work any more. So the first host that lives fetches, the others
follow file by file, and each that has a file gives it on: a tree that forms by itself, and heals by itself.

A host is trusted with nothing but its bandwidth: what a file must be comes from the lock, or from the hub's list.
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
SURVEY_BYTES = 16 << 20  # of an answer that lists files; more cannot be meant
SURVEY_SECONDS = 3.0
SURVEYS_AT_ONCE = 16
LOST_SURVEYS = 3  # in a row, after which a host counts as dead
# Hosts that lose the one before them at the same time do not all turn to the hub: each gives the one before it time to
# begin, and to be seen at it. In looks at the others.
STAGGER = 5.0
BUSY_PART = 4  # one that is busy now is asked again after this part of a pause: files are short, or many wait for it
NOT_NOW = frozenset({"rate_limited", "file_not_found"})  # a host that has enough to do, or has just moved the file


@dataclass(frozen=True)
class Fleet:
    """The hosts that share what they hold.

    Attributes:
        own: Address of this host's own server, as in ``urls``.
        urls: Addresses of all hosts' servers, in the order that all know.
        token: Secret of this run.
        patience: Seconds without progress after which a host counts as not at work, and without enough bytes as slow.
        least_rate: Bytes per second of one file, below which a host counts as slow.
        pause: Seconds between two looks at what the others hold.
    """

    own: str = ""
    urls: Sequence[str] = ()
    token: str = ""
    patience: float = 30.0
    least_rate: float = 1e6
    pause: float = 1.0

    def check(self) -> None:
        """Refuse addresses that cannot be meant.

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
            refuse("bad_peers", "peers are given without peer_token.", "Give the token with which they were started.")


@dataclass
class Peer:
    """Another host, as last seen.

    Attributes:
        url: Address of its server.
        files: Names of the files that it holds.
        complete: Whether it holds all that it wants.
        changed_at: When it was last seen to have come further.
        lost: Looks at it that failed in a row.
        sending: Files that it is sending to this host.
        busy_until: When it may be asked again, because it had enough to do.
        usable: Whether it is still asked.
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
        """Take over what it reported."""
        seen = report["files"], report["complete"], report["progress"]
        if seen != self._seen:
            self.changed_at, self._seen = now, seen
        self.files, self.complete, self.lost = frozenset(map(str, seen[0])), bool(seen[1]), 0


class TooSlowError(Exception):
    """A host sends less than it should."""


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
        """Know them; nothing is sent yet. ``warn`` is told of each that is given up."""
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
        """Ask all of them what they hold."""
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
                self._give_up(peer, f"it does not say what it holds: {type(error).__name__}: {error}")

    def best(self, spec: FileSpec) -> Peer | None:
        """The host to take a file from: one that holds it, and of these one that sends least to this host."""
        now = self._clock()
        holders = [peer for peer in self._holding(spec) if peer.busy_until <= now]
        # Each host begins behind itself in the order, so that not all turn to the first.
        turn = {peer.url: (self._peers.index(peer) - self._rank) % len(self._peers) for peer in holders}
        return min(holders, key=lambda peer: (peer.sending, turn[peer.url]), default=None)

    def worth_waiting(self, specs: Collection[FileSpec]) -> bool:
        """Whether a host holds one of these files and is only busy, or one that goes first is at work on them."""
        if any(self._holding(spec) for spec in specs):
            return True
        since = self._clock() - self._patience
        return any(peer.usable and not peer.complete and peer.changed_at > since for peer in self._before)

    def pause(self, specs: Collection[FileSpec]) -> float:
        """Seconds until the next look: few when a host that has one of these files is only busy."""
        busy = any(self._holding(spec) for spec in specs)
        return self._fleet.pause / (BUSY_PART if busy else 1)

    def follow_all(self) -> None:
        """From now on wait for hosts behind this one too: no hub answers this one, and may answer them."""
        self._before = self._peers
        # They begin when their own patience with this host ends.
        self._patience += self._fleet.patience + len(self._peers) * STAGGER * self._fleet.pause
        for peer in self._peers:
            peer.changed_at = self._clock()

    def _holding(self, spec: FileSpec) -> list[Peer]:
        return [peer for peer in self._peers if peer.usable and spec.path in peer.files]

    def fetch(
        self, peer: Peer, spec: FileSpec, sink: Sink, stop: threading.Event, count: Callable[[str, int], None]
    ) -> bool:
        """Fill a sink from a host. False where that did not work; what came and may be good stays for the next source.

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
                self._give_up(peer, error.refusals[0].message)
            return False
        except TooSlowError as error:
            self._give_up(peer, f"it is slow ({error})")
            return False
        finally:
            with self._mutex:
                peer.sending -= 1
        problem = sink.hash.problem()
        if problem is None:
            return True
        sink.restart()
        if not held:  # else the bytes from before may be the wrong ones
            self._give_up(peer, f"{spec.path}: {problem}")
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

    def _give_up(self, peer: Peer, why: str) -> None:
        with self._mutex:
            given_up, peer.usable = not peer.usable, False
        if not given_up:
            self._warn(f"{peer.url} is not asked any more: {why}.")
