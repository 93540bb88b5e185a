"""The memory check: samples a server's memory before, under and after the heaviest load that it permits.

Whatever goes wrong, of server, driver or Docker, ends as a named failed check. What is judged, and how, is in
``judge``; what is sent, in ``load``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import ModuleType
from typing import Any, Literal, TypeVar

from ansible_collections.inference.vllm.plugins.module_utils.checks import verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session, Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.container import Container, ContainerError, State
from ansible_collections.inference.vllm.plugins.module_utils.checks.engine_counters import Counters, restarts_by_metrics
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sampler, Window
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import MemoryLoad, Sampling, VramResult
from ansible_collections.inference.vllm.plugins.module_utils.checks.steps import (
    Seen,
    Step,
    endpoint_step,
    engine_of,
    run_steps,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import judge as vram_judge
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import load as vram_load
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import Expected, Measured
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.load import Load, Round
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.memory import GpuMemory
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

# How long a container that ends may still count as running.
_DEATH_SECONDS = 10.0

Read = Callable[[], Mapping[str, float]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """How to check.

    Attributes:
        metrics_url: Address of the engine's metrics.
        container: Name of the engine's container; empty where it has none, or Docker cannot be asked.
        docker_host: Where Docker listens.
        interval: Seconds between two readings.
        tolerance: GiB that memory may grow, and exceed the plan.
        load: What is sent.
        gpus: GPUs of an engine without a container, by UUID or number; ``all`` for all of the host.
    """

    metrics_url: str
    container: str
    docker_host: str
    interval: float
    tolerance: float
    load: Load
    gpus: tuple[str, ...] = ()

    @property
    def bare(self) -> bool:
        """Whether there is no container to ask, but GPUs to read."""
        return bool(self.gpus) and not self.container


def row_json(row: Mapping[str, Any]) -> str:
    """A row of the calibration as a file in the form of catalogue/calibration.json."""
    about = "One boot, measured by role vram_check. To let the planner learn from it, add the row of boots to"
    about += " catalogue/calibration.json and run bench/plan_fit.py."
    return json.dumps({"about": about, "boots": [row]}, indent=2, ensure_ascii=False) + "\n"


@dataclass
class Source:
    """Where memory is read: a function, its name, and the limit."""

    read: Read
    name: Literal["nvml", "container", "processes"]
    limit: float
    limit_is: str
    gpus: tuple[Mapping[str, Any], ...] = ()


def run(
    target: Target, release: str, expected: Expected, settings: Settings, pynvml: ModuleType | None
) -> tuple[VramResult, dict[str, Any] | None]:
    """Check a server's memory; errors of the server, a driver or Docker become failed checks.

    Returns:
        The result, and a row for the planner's calibration; None if there is nothing to calibrate.

    Raises:
        ImportError: `openai`, `docker` or `PIL` is not installed.
    """
    started = verdict.now()
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(Container(settings.container, settings.docker_host))
        session = Session(target)
        # Without a container the engine's own counters replace those of Docker.
        counted = Counters.read(session, settings.metrics_url) if settings.bare else Counters()
        before = engine_of_gpus(settings.gpus) if settings.bare else state_now(container)
        source = source_of(stack, container, before, expected, pynvml)
        run = _Run(session, expected, settings, source)
        checks = run.checks()
        if settings.bare:
            after = counted_after(session, settings.metrics_url, checks)
            checks.append(restarts_by_metrics(counted, after, "restarts"))
        else:
            checks.append(restarts_of(before, state_after(container, before, checks)))
    gpus = () if isinstance(source, Failure) else source.gpus
    judged = Verdict(release, tuple(checks), engine_of(session), gpus, started, verdict.now())
    # Whether the engine survived the load does not depend on what the plan predicted.
    survives = all(check.ok for check in checks if check.code in ("load_answered", "vram_under_load", "restarts"))
    date = time.strftime("%Y-%m-%d", time.gmtime())
    row = vram_judge.calibration_row(expected, run.measured, gpus, date, survives)
    return run.result(judged), row


def engine_of_gpus(gpus: Sequence[str]) -> State:
    """An engine of which only the GPUs are known."""
    everything = "all" in gpus
    return State(True, 0, "", 0.0, () if everything else tuple(gpus), all_devices=everything)


def state_now(container: Container) -> State | Failure:
    """The container as Docker reports it, or the reason why it cannot."""
    try:
        return container.state()
    except ContainerError as error:
        return Failure("container_unreadable", str(error))


def state_after(container: Container, before: State | Failure, checks: Sequence[Check]) -> State | Failure:
    """The container after the load. Docker notices an exit later than a client does, so this waits for it."""
    return _settled(partial(state_now, container), lambda now: now == before and isinstance(now, State), checks)


def counted_after(session: Session, url: str, checks: Sequence[Check]) -> Counters:
    """What the engine counts after the load. The server of an engine that died goes on to answer for some seconds."""
    return _settled(partial(Counters.read, session, url), lambda now: now != Counters(), checks)


def _settled(read: Callable[[], _T], alive: Callable[[_T], bool], checks: Sequence[Check]) -> _T:
    """The value; after a failure of the engine it is read again until the engine is gone or the time is over."""
    lost = any(check.runbook in ("connection_lost", "endpoint_unreachable", "server_error") for check in checks)
    end = time.monotonic() + (_DEATH_SECONDS if lost else 0.0)
    seen = read()
    while alive(seen) and time.monotonic() < end:
        time.sleep(_DEATH_SECONDS / 40)
        seen = read()
    return seen


def source_of(
    stack: contextlib.ExitStack,
    container: Container,
    state: State | Failure,
    expected: Expected,
    pynvml: ModuleType | None,
) -> Source | Failure:
    """Where memory is read, or the reason why it cannot be read."""
    try:
        return _source(stack, container, state, expected, pynvml)
    except RefusalError as error:
        return Failure("gpu_unreadable", "; ".join(refusal.message for refusal in error.refusals))
    except ContainerError as error:
        return Failure("container_unreadable", str(error))


def _source(
    stack: contextlib.ExitStack,
    container: Container,
    state: State | Failure,
    expected: Expected,
    pynvml: ModuleType | None,
) -> Source:
    """The GPUs of the container; on a CPU host the container itself.

    Raises:
        RefusalError: NVML does not start, or does not know the GPUs.
        ContainerError: There is no container whose memory could be read.
    """
    if expected.accelerator == "nvidia":
        devices = () if isinstance(state, Failure) else _devices(state, expected)
        memory = stack.enter_context(GpuMemory(pynvml, devices))
        smallest = min(gpu["usable_gib"] for gpu in memory.gpus)
        # A plan for a smaller card is judged by that card.
        limit_is = "the card" if smallest <= expected.card else "the card of the plan"
        return Source(memory.used_gib, "nvml", min(smallest, expected.card), limit_is, memory.gpus)
    if isinstance(state, Failure):
        raise ContainerError(str(state))
    limit = state.limit_gib or expected.card
    limit_is = "the container's memory limit" if state.limit_gib else "the host's memory"
    container.choose_figure()
    name: Literal["processes", "container"] = "processes" if container.by_processes else "container"
    return Source(lambda: {container.name: container.used_gib()}, name, limit, limit_is)


def _devices(state: State, expected: Expected) -> tuple[str, ...]:
    """The GPUs of the engine, by UUID or number; empty for all of the host.

    Docker names them where they were requested by UUID. If only a number of GPUs was requested, the plan knows which
    ones; without a plan they are the first ones of the host.
    """
    if state.devices or state.all_devices:
        return state.devices
    return expected.gpus or tuple(map(str, range(state.device_count)))


def restarts_of(before: State | Failure, after: State | Failure, code: str = "restarts") -> Check:
    """Whether the container was restarted, by Docker's count and by its start time."""
    if isinstance(before, Failure):
        return failed(code, before, 0, "restarts")
    if isinstance(after, Failure):
        return failed(code, after, 0, "restarts")
    count = after.restarts - before.restarts
    if not after.running:
        failure = Failure("engine_restarted", "the container is not running any more", count)
    elif count or after.started != before.started:
        failure = Failure("engine_restarted", f"the container was started again at {after.started}", count)
    else:
        return Check(code, True, message=f"runs since {after.started}", value=0, limit=0, unit="restarts")
    return failed(code, failure, 0, "restarts")


class _Run:
    """One check from its first reading to its last."""

    def __init__(self, session: Session, expected: Expected, settings: Settings, source: Source | Failure) -> None:
        self.session, self.expected, self.settings = session, expected, settings
        self.source = source
        self.measured = Measured()
        self.rounds: list[Round] = []
        self.sampler = Sampler(self._nothing if isinstance(source, Failure) else source.read, settings.interval)
        if isinstance(source, Failure):
            self.measured.failure = source
        else:
            self.measured.limit, self.measured.limit_is = source.limit, source.limit_is

    @staticmethod
    def _nothing() -> Mapping[str, float]:
        raise RuntimeError("there is nothing to read")

    def checks(self) -> list[Check]:
        """Check the server, its cache and the load, then the readings that were taken."""
        load = self.settings.load
        self.sampler.start()
        try:
            asked = run_steps(
                self.session,
                [
                    endpoint_step("vram_endpoint", self.session.model),
                    Step("kv_cache_tokens", self._cache, limit=self.expected.kv_cache_tokens, unit="tokens"),
                    Step(
                        "load_answered", self._load, limit=load.concurrency * load.rounds, unit="requests",
                        timeout=load.seconds,
                    ),
                ],
            )  # fmt: skip
        finally:
            self.sampler.stop()
        self.measured.samples = list(self.sampler.samples)
        self._blame(asked)
        return [*asked, *vram_judge.checks_of(self.expected, self.measured, self.settings.tolerance)]

    def _blame(self, asked: list[Check]) -> None:
        """Find why a moment was not measured: the readings ended, or the load did."""
        if self.measured.failure:
            return
        if self.sampler.failure:
            kind = "gpu_unreadable" if self.expected.accelerator == "nvidia" else "container_unreadable"
            self.measured.failure = Failure(kind, self.sampler.failure)
            return
        gone = next((check for check in asked if not check.ok and check.code != "kv_cache_tokens"), None)
        if gone:
            reason = gone.message.removeprefix(f"{gone.runbook}: ")
            self.measured.failure = Failure(str(gone.runbook), f"not judged, because {gone.code} failed: {reason}")

    def _cache(self, session: Session) -> Seen:
        tokens = vram_judge.cache_tokens(session.metrics(self.settings.metrics_url))
        self.measured.cache_tokens = tokens
        return Seen(*vram_judge.cache_check(self.expected, tokens))

    def _load(self, session: Session) -> Seen:
        load, measured, sampler = self.settings.load, self.measured, self.sampler
        measured.ready = sampler.rest(load.settle)
        cost = vram_load.cost_of(session, load.images, load.timeout, 0 if load.capped else load.max_pixels)
        self.rounds = [
            vram_load.round_of(cost, session.max_model_len, measured.cache_tokens, load, full=number == 0)
            for number in range(load.rounds)
        ]
        begin, answered, failures = sampler.now(), 0, []
        for number, sent_now in enumerate(self.rounds):
            try:
                failures = vram_load.send(session, sent_now, load.timeout)
            finally:
                measured.load = Window(begin, sampler.now())
            answered += load.concurrency - len(failures)
            if failures:
                break
            rest = sampler.rest(load.settle)
            measured.warm, measured.after = (rest, None) if number == 0 else (measured.warm, rest)
        if failures:
            sent = (number + 1) * load.concurrency
            # When an engine dies, some requests are cut off and later ones cannot connect; the former are the cause.
            worst = min(failures, key=lambda failure: failure.name == "endpoint_unreachable")
            raise Failure(worst.name, f"{sent - answered} of {sent} requests failed: {worst}", answered)
        return Seen(f"{describe(self.rounds)}: all answered", answered)

    def result(self, judged: Verdict) -> VramResult:
        """The content of ``vram.json``."""
        measured, load = self.measured, self.settings.load
        names = list(measured.samples[0].gib) if measured.samples else []
        spent = measured.samples[-1].seconds if measured.samples else 0.0
        return VramResult(
            *(getattr(judged, each.name) for each in fields(judged)),
            source="none" if isinstance(self.source, Failure) else self.source.name,
            limit_gib=round(measured.limit, 2) or None,
            limit_is=measured.limit_is,
            headroom_gib=vram_judge.headroom_of(measured),
            terms=vram_judge.terms_of(self.expected, measured),
            moments=vram_judge.moments_of(measured),
            load=MemoryLoad(load.concurrency, load.rounds, **(figures_of(self.rounds[0]) if self.rounds else {})),
            sampling=Sampling(
                interval_seconds=self.settings.interval,
                readings=len(measured.samples),
                seconds=round(spent, 1),
                cpu_share=round(self.sampler.cpu_seconds / spent, 4) if spent else None,
            ),
            samples={name: vram_judge.thinned(measured.samples, name) for name in names},
        )


def figures_of(sent: Round) -> dict[str, int]:
    """A round of the load in numbers."""
    return {
        "images": sent.images,
        "side": max(shape.side for shape in sent.shapes),
        "words": sum(shape.words for shape in sent.shapes),
        "tokens": sent.tokens,
        "longest": max(shape.tokens for shape in sent.shapes),
        "answer_tokens": sent.answer,
    }


def describe(rounds: Sequence[Round]) -> str:
    """The load in words."""
    first, *later = rounds
    sent = figures_of(first)
    images = f"{sent['images']} images of {sent['side']}x{sent['side']} pixels" if sent["images"] else "no image"
    about = f"{len(first.shapes)} requests at once with {images}, of {sent['tokens']} tokens, {sent['longest']} in one"
    return f"{about}; then {len(later)} times with {later[-1].tokens} tokens" if later else about
