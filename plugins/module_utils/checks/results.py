"""The result files of the checks, as types. Each extends :class:`Verdict` by what the check measured.

A result is written by the module of its check, and read by :mod:`combine <checks.combine>` and the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ansible_collections.inference.vllm.plugins.module_utils.contracts import Upgrade, Verdict

#: Points of a plot: pairs of numbers.
Series = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CheckResult(Verdict):
    """The result of a check that has no data except its checks."""

    @property
    def verdict(self) -> Verdict:
        """The part that every result has."""
        return Verdict(self.release, self.checks, self.engine, self.gpus, self.started, self.finished)


# --- vram.json ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One term of the memory of a GPU, or on a CPU host of the container.

    Attributes:
        term: Name of the term.
        predicted: Value in the plan; null without one.
        measured: Measured value; null if it was not measured.
        unit: Unit of both: ``GiB`` or ``tokens``.
    """

    term: str
    predicted: float | int | None
    measured: float | int | None
    unit: Literal["GiB", "tokens"]


@dataclass(frozen=True)
class Moment:
    """A span of time in which memory was judged.

    Attributes:
        start: Start, in seconds since the first reading.
        end: End, in seconds since the first reading.
        gib: Memory in GiB, by the name of the GPU or container.
    """

    start: float
    end: float
    gib: Mapping[str, float]


@dataclass(frozen=True)
class MemoryLoad:
    """The load that was sent; all sizes are 0 if nothing was sent.

    Attributes:
        concurrency: Concurrent requests.
        rounds: Number of rounds.
        images: Images in a round.
        side: Side of the largest image, in pixels.
        words: Words in a round.
        tokens: Tokens of the prompts in a round.
        longest: Tokens of the longest prompt.
        answer_tokens: Tokens of each answer.
    """

    concurrency: int
    rounds: int
    images: int = 0
    side: int = 0
    words: int = 0
    tokens: int = 0
    longest: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Sampling:
    """How memory was sampled.

    Attributes:
        interval_seconds: Seconds between two readings.
        readings: Number of readings.
        seconds: Time of the last reading.
        cpu_share: CPU time of the sampler as a fraction of one core; null without readings.
    """

    interval_seconds: float
    readings: int
    seconds: float
    cpu_share: float | None


def _vram_from_0(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Moments had the keys ``from`` and ``to``."""
    moments = {
        name: {"start": moment["from"], "end": moment["to"], "gib": moment["gib"]}
        for name, moment in data["moments"].items()
    }
    return {**data, "moments": moments}


@dataclass(frozen=True, kw_only=True)
class VramResult(CheckResult):
    """``vram.json``: memory before, under and after the heaviest load.

    Attributes:
        source: Where memory was read.
        limit_gib: Limit of the memory in GiB; null if memory could not be read.
        limit_is: What the limit is, such as ``the card``.
        headroom_gib: GiB that were left below the limit at the peak; null if the peak was not measured.
        terms: Terms of the memory, predicted and measured.
        moments: The spans that were judged: ``ready``, ``warm``, ``under_load`` and ``after``.
        load: The load.
        sampling: How memory was sampled.
        samples: Readings by the name of the GPU or container: seconds since the first reading, and GiB.
    """

    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: _vram_from_0}

    source: Literal["nvml", "container", "processes", "none"]
    limit_gib: float | None
    limit_is: str
    headroom_gib: float | None
    terms: tuple[Term, ...]
    moments: Mapping[str, Moment]
    load: MemoryLoad
    sampling: Sampling
    samples: Mapping[str, Series]


# --- stability.json -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Duration of the requests of one kind.

    Attributes:
        count: Number of requests that were answered.
        median: Median in milliseconds.
        p95: 95th percentile in milliseconds.
    """

    count: int
    median: int | None = None
    p95: int | None = None


@dataclass(frozen=True, kw_only=True)
class StabilityResult(CheckResult):
    """``stability.json``: mixed requests over some time.

    Attributes:
        requests: Number of requests that were sent.
        errors: Number of those that failed.
        seconds: Time from the first request to the last answer.
        concurrency: Concurrent requests.
        minutes: Minimum duration that was requested; 0 judges no drift.
        latency_drift: Latency in the last third of the time divided by that in the first; null with too few requests.
        memory_drift_gib: Growth of memory from the middle third to the last, in GiB; null with too few readings.
        latency_ms: Latency by kind of request.
        points: Requests by kind: start in seconds since the first request, and duration in seconds.
        source: Where memory was read.
        samples: Readings by the name of the GPU or container: seconds since the first reading, and GiB.
    """

    requests: int
    errors: int
    seconds: float
    concurrency: int
    minutes: float
    latency_drift: float | None
    memory_drift_gib: float | None
    latency_ms: Mapping[str, Latency]
    points: Mapping[str, Series]
    source: Literal["nvml", "container", "processes", "none"]
    samples: Mapping[str, Series]


# --- benchmark.json -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServiceLevel:
    """Goals of a good request.

    Attributes:
        ttft_ms: Longest time to the first token, in milliseconds.
        tpot_ms: Longest mean time per further token, in milliseconds.
    """

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True)
class BenchmarkPoint:
    """One run of the benchmark tool: a workload with a number of concurrent requests.

    Attributes:
        workload: Name of the workload.
        input_tokens: Tokens of text in a prompt.
        output_tokens: Tokens of an answer.
        images: Images in a request.
        side: Side of an image in pixels.
        concurrency: Concurrent requests.
        again: Whether the prompts were sent before, so that the prefix cache holds them.
        seed: Seed of the prompts.
        requests: Number of requests.
        failed: Number of requests that failed.
        seconds: Duration of the run.
        requests_per_s: Answered requests per second.
        output_tokens_per_s: Generated tokens per second.
        total_tokens_per_s: Tokens of prompts and answers per second.
        goodput_per_s: Requests per second that met the service level.
        ttft_ms: Time to the first token in milliseconds, by statistic.
        tpot_ms: Mean time per further token in milliseconds, by statistic.
        command: Command of the tool.
        itl_ms: Time between two tokens in milliseconds, by statistic; not all tools measure it.
        e2el_ms: Duration of a request in milliseconds, by statistic.
    """

    workload: str
    input_tokens: int
    output_tokens: int
    images: int
    side: int
    concurrency: int
    again: bool
    seed: int
    requests: int
    failed: int
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float
    ttft_ms: Mapping[str, float]
    tpot_ms: Mapping[str, float]
    command: str = ""
    itl_ms: Mapping[str, float] | None = None
    e2el_ms: Mapping[str, float] | None = None


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of two benchmarks.

    Attributes:
        workload: Name of the workload.
        concurrency: Concurrent requests.
        again: Whether the prompts were sent before.
        figure: Name of the figure, such as ``ttft_ms.median``.
        unit: Its unit.
        before: Value in the earlier result.
        after: Value in this result.
        change: Relative change; null if the earlier value is 0.
        judged: Whether this result is better or worse by more than the tolerance.
    """

    workload: str
    concurrency: int
    again: bool
    figure: str
    unit: str
    before: float
    after: float
    change: float | None
    judged: Literal["better", "worse", "same"]


@dataclass(frozen=True)
class BenchmarkComparison:
    """A comparison with an earlier result.

    Attributes:
        release: Release of the earlier result.
        tolerance: Fraction by which a figure may be worse.
        rows: All figures that both results have.
    """

    release: str
    tolerance: float
    rows: tuple[ComparedFigure, ...]


def _benchmark_from_0(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The release of a comparison had the key ``with``."""
    comparisons = {
        name: {"release": comparison["with"], "tolerance": comparison["tolerance"], "rows": comparison["rows"]}
        for name, comparison in data["comparisons"].items()
    }
    return {**data, "comparisons": comparisons}


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult(CheckResult):
    """``benchmark.json``: latency and throughput, and comparisons with earlier results.

    Attributes:
        key: What makes two results comparable: GPUs, image, model, flags and tool.
        driver: The benchmark tool.
        seed: Seed of the first point.
        tool: Image of the tool; null if there was none.
        goals: The service level.
        points: All points that were measured.
        comparisons: Comparisons by name.
    """

    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: _benchmark_from_0}

    key: Mapping[str, Any]
    driver: str
    seed: int
    tool: str | None
    goals: ServiceLevel
    points: tuple[BenchmarkPoint, ...]
    comparisons: Mapping[str, BenchmarkComparison]
