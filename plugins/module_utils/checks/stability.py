"""The stability check: mixed requests for some time, and whether the service stays stable.

Several clients send texts, streams, JSON, images and long prompts in turn. Every request must be answered and its
tokens counted; the engine must not restart; and, if the check lasts long enough, answers must not become
slower and memory must not grow.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import ModuleType
from typing import Literal

from ansible_collections.inference.vllm.plugins.module_utils.checks import verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import (
    GONE,
    Session,
    Target,
    classify,
    within,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.container import Container, State
from ansible_collections.inference.vllm.plugins.module_utils.checks.engine_counters import Counters, restarts_by_metrics
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sample, Sampler
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import Latency, Series, StabilityResult
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases
from ansible_collections.inference.vllm.plugins.module_utils.checks.steps import (
    HUNG_AFTER,
    Seen,
    Step,
    endpoint_step,
    engine_of,
    run_steps,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import judge as vram_judge
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import load as vram_load
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import run as vram_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import Expected
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.run import Source
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict

# Kinds of requests, in the order in which they are sent.
_KINDS = ("text", "image", "stream", "long_text", "json", "images")
_TEXT_WORDS = 24
_ANSWER_TOKENS = 16
_JSON_TOKENS = 64
# A word can be two tokens; an image in the grid of 32 x 32 pixels has one for each cell.
_LONG_SHARE = 4
_CELL = 32
# Minimum number of requests in a third of the time to judge latency, and of readings to judge memory.
_LEAST_REQUESTS = 8
_LEAST_READINGS = 6
MOST_POINTS = 600


@dataclass(frozen=True)
class Settings:
    """How to check.

    Attributes:
        requests: Minimum number of requests.
        minutes: Minimum duration; drift is judged unless this is 0.
        concurrency: Concurrent requests.
        images: Images that one request may hold; 0 for a model without vision.
        max_pixels: Pixels of the largest image that is sent.
        latency_drift: Limit of the latency at the end divided by that at the beginning.
        memory_drift: GiB that memory may grow from the middle third to the last.
        metrics_url: Address of the engine's metrics.
        container: Name of the engine's container; empty if Docker cannot be used.
        docker_host: Address of Docker.
        accelerator: ``nvidia`` or ``cpu``: what memory is read.
        interval: Seconds between two readings of the memory.
        timeout: Longest time for one request, seconds.
    """

    requests: int
    minutes: float
    concurrency: int
    images: int
    max_pixels: int
    latency_drift: float
    memory_drift: float
    metrics_url: str
    container: str
    docker_host: str
    accelerator: str
    interval: float
    timeout: float


@dataclass(frozen=True)
class Done:
    """One request: its kind, when it was sent (seconds since the first), how long it took, and why it failed."""

    kind: str
    start: float
    seconds: float
    failure: Failure | None = None


# --- What is sent ---------------------------------------------------------------------------------------------------


def kinds_of(images: int) -> tuple[str, ...]:
    """The kinds of requests, in order, for a server that accepts `images` images per request."""
    seeing = {0: (), 1: ("image",)}.get(images, ("image", "images"))
    return tuple(kind for kind in _KINDS if kind not in ("image", "images") or kind in seeing)


def side_of(images: int, max_pixels: int, max_model_len: int) -> int:
    """Side of an image in pixels, of which `images` fill at most half of the context; at least one cell."""
    room = max_model_len / 2 * _CELL**2 / max(images, 1)
    return max(math.floor(math.sqrt(min(max_pixels, room))) // _CELL * _CELL, _CELL)


def ask(session: Session, kind: str, settings: Settings) -> None:
    """Send one request; returns when its answer is there and counts its tokens.

    Raises:
        Exception: Whatever the client raises; `client.classify` names it.
    """
    images = {"image": 1, "images": settings.images}.get(kind, 0)
    side = side_of(images, settings.max_pixels, session.max_model_len) if images else 0
    words = session.max_model_len // _LONG_SHARE // 2 if kind == "long_text" else _TEXT_WORDS
    request = vram_load.request_of(session.model, images, side, words, _ANSWER_TOKENS)
    if kind == "stream":
        events = session.events(request | {"stream": True, "stream_options": {"include_usage": True}})
        vram_load.counted(next((event["usage"] for event in reversed(events) if event.get("usage")), None))
    elif kind == "json":
        schema = {"name": "shape", "schema": smoke_cases.SHAPE_SCHEMA, "strict": True}
        del request["extra_body"]
        vram_load.tokens_of(
            session,
            request | {"max_tokens": _JSON_TOKENS, "response_format": {"type": "json_schema", "json_schema": schema}},
        )
    else:
        vram_load.tokens_of(session, request)


class _Load:
    """Clients that send requests until the minimum number and duration are reached, or the server is gone."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self.session, self.settings = session, settings
        self.done: list[Done] = []
        self.stopped: Failure | None = None
        self._kinds: Iterator[tuple[int, str]] = enumerate(itertools.cycle(kinds_of(settings.images)))
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._hung = 0

    def run(self) -> None:
        """Send all requests."""
        self._begin = time.monotonic()
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.settings.concurrency)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _next(self) -> str | None:
        with self._lock:
            number, kind = next(self._kinds)
        enough = number >= self.settings.requests and self._now() >= 60 * self.settings.minutes
        return None if enough or self.stopped else kind

    def _now(self) -> float:
        return time.monotonic() - self._begin

    def _work(self) -> None:
        while kind := self._next():
            start = self._now()
            failure: Failure | None = None
            try:
                # The client stops first; the outer limit is for servers that send byte by byte.
                within(1.1 * self.settings.timeout, partial(ask, self.session, kind, self.settings))
            except Exception as error:
                failure = classify(error)
            self._note(Done(kind, round(start, 3), round(self._now() - start, 3), failure))

    def _note(self, done: Done) -> None:
        """Keep an outcome; stop everything when the server is gone or hangs."""
        name = done.failure.name if done.failure else ""
        with self._lock:
            self.done.append(done)
            self._hung = self._hung + 1 if name == "timeout" else 0
            hung = self._hung >= HUNG_AFTER
        if done.failure and (hung or (name in GONE and not self.session.answers())):
            self.stopped = self.stopped or done.failure


# --- Evaluation -----------------------------------------------------------------------------------------------------


def drift_of(done: Sequence[Done]) -> float | None:
    """Latency in the last third of the time divided by that in the first, normalised by kind.

    None with too few requests.
    """
    good = [item for item in done if item.failure is None]
    if not good:
        return None
    usual = {
        kind: statistics.median(item.seconds for item in good if item.kind == kind)
        for kind in {item.kind for item in good}
    }
    end = max(item.start for item in good)
    first = [item.seconds / usual[item.kind] for item in good if item.start <= end / 3 and usual[item.kind]]
    last = [item.seconds / usual[item.kind] for item in good if item.start >= 2 * end / 3 and usual[item.kind]]
    if min(len(first), len(last)) < _LEAST_REQUESTS:
        return None
    return round(statistics.median(last) / statistics.median(first), 3)


def growth_of(samples: Sequence[Sample]) -> tuple[str, float] | None:
    """Which series grew most from the middle third of the time to the last, and by how many GiB.

    The first third is left for caches to fill. None with too few readings.
    """
    if not samples:
        return None
    end = samples[-1].seconds
    middle = [sample for sample in samples if end / 3 <= sample.seconds < 2 * end / 3]
    last = [sample for sample in samples if sample.seconds >= 2 * end / 3]
    if min(len(middle), len(last)) < _LEAST_READINGS:
        return None
    grown = {
        name: statistics.median(sample.gib[name] for sample in last)
        - statistics.median(sample.gib[name] for sample in middle)
        for name in samples[0].gib
    }
    name = max(grown, key=lambda key: grown[key])
    return name, round(grown[name], 3)


def requests_check(done: Sequence[Done], wanted: int, stopped: Failure | None) -> Seen:
    """Whether every request was answered.

    Raises:
        Failure: The most frequent reason.
    """
    bad = [item.failure for item in done if item.failure]
    answered = len(done) - len(bad)
    if not bad and answered >= wanted:
        mixed = ", ".join(f"{count} {kind}" for kind, count in Counter(item.kind for item in done).items())
        return Seen(f"{answered} mixed requests, all answered: {mixed}", answered)
    # When an engine dies, some requests are cut off and later ones cannot connect; the former are the cause.
    names = Counter(failure.name for failure in bad if failure.name != "endpoint_unreachable")
    name = names.most_common(1)[0][0] if names else bad[0].name
    worst = next(failure for failure in bad if failure.name == name)
    rest = "; then nothing more was sent" if stopped else ""
    raise Failure(name, f"{len(bad)} of {len(done)} requests failed{rest}: {worst}", answered)


def _preemptions(before: Counters, after: Counters) -> Check:
    code = "stability_preemptions"
    if before.preemptions is None or after.preemptions is None:
        failure = Failure("metrics_missing", "the metrics have no vllm:num_preemptions_total")
        return failed(code, failure, 0, "preemptions", severity="warning")
    count = int(after.preemptions - before.preemptions)
    if count > 0:
        failure = Failure("preempted", f"{count} requests were preempted and computed again", count)
        return failed(code, failure, 0, "preemptions", severity="warning")
    return Check(code, True, "warning", "no request was preempted", 0, 0, "preemptions")


def _latency(done: Sequence[Done], limit: float, unsent: Failure | None = None) -> Check:
    code, unit = "stability_latency", "times as long"
    ratio = drift_of(done)
    if ratio is None:
        few = Failure("client_error", "too few requests were answered to compare the end with the beginning")
        return failed(code, unsent or few, limit, unit)
    message = f"in the last third answers took {ratio:.2f} times as long as in the first"
    if ratio > limit:
        return failed(code, Failure("latency_drift", f"{message}; allowed are {limit:g}", ratio), limit, unit)
    return Check(code, True, message=message, value=ratio, limit=limit, unit=unit)


def _memory(samples: Sequence[Sample], failure: Failure | None, limit: float, unsent: Failure | None = None) -> Check:
    code, unit = "stability_memory", vram_judge.GIB_UNIT
    if failure:
        return failed(code, failure, limit, unit)
    growth = growth_of(samples)
    if growth is None:
        seldom = Failure("client_error", "there are too few readings to judge the growth of memory")
        return failed(code, unsent or seldom, limit, unit)
    name, gib = growth
    message = f"{name} holds {gib:+.2f} GiB in the last third, compared with the middle one"
    if gib > limit:
        return failed(code, Failure("memory_leak", f"{message}; allowed are {limit:.2f} GiB", gib), limit, unit)
    return Check(code, True, message=message, value=gib, limit=limit, unit=unit)


def _unseen(check: Check) -> Failure:
    return Failure(str(check.runbook), f"not measured, because {check.code} failed")


# --- The run --------------------------------------------------------------------------------------------------------


def run(target: Target, release: str, settings: Settings, pynvml: ModuleType | None) -> StabilityResult:
    """Check a server; never raises for what a server, a driver or Docker does.

    Raises:
        ImportError: `openai`, `docker` or `PIL` is not installed.
    """
    started = verdict.now()
    session = Session(target)
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(Container(settings.container, settings.docker_host))
        unnamed = Failure("container_unreadable", "no container is named")
        before: State | Failure = unnamed
        source: Source | Failure = unnamed
        if settings.container:
            before = vram_run.state_now(container)
            expected = Expected(settings.accelerator, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)
            source = vram_run.source_of(stack, container, before, expected, pynvml)
        run = _Run(session, settings, source)
        checks = run.checks()
        if settings.container:
            after = vram_run.state_after(container, before, checks)
            checks.insert(2, vram_run.restarts_of(before, after, "stability_restarts"))
    gpus = () if isinstance(source, Failure) else source.gpus
    return run.result(Verdict(release, tuple(checks), engine_of(session), gpus, started, verdict.now()))


class _Run:
    """One check from its first reading to its last."""

    def __init__(self, session: Session, settings: Settings, source: Source | Failure) -> None:
        self.session, self.settings = session, settings
        self.failure = source if isinstance(source, Failure) else None
        self.name: Literal["nvml", "container", "processes", "none"] = "none"
        if not isinstance(source, Failure):
            self.name = source.name
        read: Callable[[], Mapping[str, float]] = dict if isinstance(source, Failure) else source.read
        self.sampler = Sampler(read, settings.interval)
        self.load = _Load(session, settings)

    def checks(self) -> list[Check]:
        """Send the requests, then check the engine."""
        settings = self.settings
        limit = 60 * settings.minutes + (settings.requests / settings.concurrency + 2) * settings.timeout * 1.2
        if not self.failure:
            self.sampler.start()
        before = Counters.read(self.session, settings.metrics_url)
        try:
            checks = run_steps(
                self.session,
                [
                    endpoint_step("stability_endpoint", self.session.model),
                    Step("stability_requests", self._send, limit=settings.requests, unit="requests", timeout=limit),
                ],
            )
        finally:
            if not self.failure:
                self.sampler.stop()
        after = Counters.read(self.session, settings.metrics_url)
        # Where the load failed, drift cannot be measured, for the same reason.
        unsent = next((_unseen(check) for check in checks if check.runbook), None)
        if not settings.container:
            checks.append(restarts_by_metrics(before, after, "stability_restarts"))
        checks.append(_preemptions(before, after))
        if settings.minutes:
            checks.append(_latency(self.load.done, settings.latency_drift, unsent))
            if settings.container:
                checks.append(_memory(self.sampler.samples, self._unread(), settings.memory_drift, unsent))
        return checks

    def _unread(self) -> Failure | None:
        """Why memory was not read to the end."""
        if self.failure or not self.sampler.failure:
            return self.failure
        kind = "gpu_unreadable" if self.settings.accelerator == "nvidia" else "container_unreadable"
        return Failure(kind, self.sampler.failure)

    def _send(self, session: Session) -> Seen:
        self.load.run()
        return requests_check(self.load.done, self.settings.requests, self.load.stopped)

    def result(self, judged: Verdict) -> StabilityResult:
        """The content of ``stability.json``."""
        done, samples = list(self.load.done), list(self.sampler.samples)
        names = list(samples[0].gib) if samples else []
        growth = growth_of(samples)
        return StabilityResult(
            *(getattr(judged, each.name) for each in fields(judged)),
            requests=len(done),
            errors=sum(item.failure is not None for item in done),
            seconds=round(max((item.start + item.seconds for item in done), default=0.0), 1),
            concurrency=self.settings.concurrency,
            minutes=self.settings.minutes,
            latency_drift=drift_of(done),
            memory_drift_gib=growth[1] if growth else None,
            latency_ms={kind: _latencies(done, kind) for kind in dict.fromkeys(item.kind for item in done)},
            points={
                kind: _thinned([item for item in done if item.kind == kind and item.failure is None])
                for kind in dict.fromkeys(item.kind for item in done)
            },
            source=self.name,
            samples={name: vram_judge.thinned(samples, name) for name in names},
        )


def _latencies(done: Sequence[Done], kind: str) -> Latency:
    """Count, median and 95th percentile of one kind, milliseconds."""
    times = sorted(item.seconds for item in done if item.kind == kind and item.failure is None)
    if not times:
        return Latency(0)
    late = times[min(math.ceil(0.95 * len(times)), len(times)) - 1]
    return Latency(len(times), round(1000 * statistics.median(times)), round(1000 * late))


def _thinned(done: Sequence[Done]) -> Series:
    """Start and duration of requests, seconds; at most some hundred, evenly thinned."""
    points = sorted((item.start, item.seconds) for item in done)
    step = max(math.ceil(len(points) * len(_KINDS) / MOST_POINTS), 1)
    return tuple(points[::step])
