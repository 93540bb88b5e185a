"""What the report shows of the stability check and of the benchmark: from their results to tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    BenchmarkPoint,
    BenchmarkResult,
    ComparedFigure,
    StabilityResult,
)
from ansible_collections.inference.vllm.plugins.module_utils.report import plot as report_plot

_NOTHING = "-"
_KINDS = {
    "text": "text",
    "long_text": "long text",
    "stream": "stream",
    "json": "JSON",
    "image": "one image",
    "images": "several images",
}
_FIGURES = {
    "output_tokens_per_s": "output",
    "goodput_per_s": "goodput",
    "ttft_ms.median": "first token, median",
    "tpot_ms.median": "per further token, median",
    "itl_ms.p95": "between tokens, 95 %",
}


def stability(data: StabilityResult) -> dict[str, Any]:
    """The stability check: requests by kind, and their latency."""
    drift, growth = data.latency_drift, data.memory_drift_gib
    drifts = [
        *([] if drift is None else [f"the last third took {drift:.2f} times as long as the first"]),
        *([] if growth is None else [f"memory changed by {growth:+.2f} GiB from the middle third to the last"]),
    ]
    about = (
        f"{data.requests} requests in {data.seconds:.0f} s by {data.concurrency} concurrent clients,"
        f" {data.errors} errors."
    )
    if drifts:
        changes = "; ".join(drifts)
        about += f" {changes[0].upper()}{changes[1:]}."
    return {
        "about": about,
        "table": [
            {
                "kind": _KINDS.get(kind, kind),
                "count": str(times.count),
                "median": _figure(times.median, "ms"),
                "p95": _figure(times.p95, "ms"),
            }
            for kind, times in data.latency_ms.items()
        ],
        "plot": report_plot.over_time({_KINDS.get(kind, kind): points for kind, points in data.points.items()}, "s"),
    }


def benchmark(data: BenchmarkResult) -> dict[str, Any]:
    """The benchmark: each point, throughput and first token by the number of concurrent requests, and comparisons."""
    figures: tuple[tuple[str, str, Callable[[BenchmarkPoint], float]], ...] = (
        ("Output", "tokens/s", lambda point: point.output_tokens_per_s),
        ("First token, median", "ms", lambda point: point.ttft_ms["median"]),
    )
    return {
        "about": (
            f"{data.driver}, prompts of seed {data.seed}. A request counts as good with its first token within"
            f" {data.goals.ttft_ms:g} ms and {data.goals.tpot_ms:g} ms for each further one."
        ),
        "table": [_point(point) for point in data.points],
        "plots": [
            {"title": title, **report_plot.over_steps(_series(data.points, figure), unit, "concurrent")}
            for title, unit, figure in figures
            if data.points
        ],
        "comparisons": [
            {
                "title": f"{name.replace('_', ' ').capitalize()}: compared with release {comparison.release}",
                "rows": [compared(row) for row in comparison.rows],
            }
            for name, comparison in data.comparisons.items()
        ],
        "key": {name: value for name, value in data.key.items() if name != "flags"},
    }


def name_of(point: BenchmarkPoint) -> str:
    """Name of a point, with the sizes of its workload."""
    again = " again" if point.again else ""
    size = f", {point.images} x {point.side} px" if point.images else ""
    return f"{point.workload}{again} ({point.input_tokens} in, {point.output_tokens} out{size})"


def _point(point: BenchmarkPoint) -> dict[str, str]:
    return {
        "name": name_of(point),
        "concurrency": str(point.concurrency),
        "ttft": _times(point.ttft_ms, 0),
        "tpot": _times(point.tpot_ms, 1),
        "itl": _times(point.itl_ms, 1),
        "output": f"{point.output_tokens_per_s:.1f}",
        "requests": f"{point.requests_per_s:.2f}",
        "goodput": f"{point.goodput_per_s:.2f}",
    }


def _times(times: Mapping[str, float] | None, digits: int) -> str:
    return f"{times['median']:.{digits}f} / {times['p95']:.{digits}f}" if times else _NOTHING


def _series(points: Sequence[BenchmarkPoint], figure: Callable[[BenchmarkPoint], float]) -> dict[str, dict[int, float]]:
    """A figure of each workload by the number of concurrent requests."""
    found: dict[str, dict[int, float]] = {}
    for point in points:
        found.setdefault(point.workload + (" again" if point.again else ""), {})[point.concurrency] = figure(point)
    return found


def compared(row: ComparedFigure) -> dict[str, str]:
    """A row of a comparison."""
    again = " again" if row.again else ""
    return {
        "what": f"{row.workload}{again}, {row.concurrency} concurrent: {_FIGURES.get(row.figure, row.figure)}",
        "before": _figure(row.before, row.unit),
        "after": _figure(row.after, row.unit),
        "change": _NOTHING if row.change is None else f"{100 * row.change:+.1f} %",
        "judged": row.judged,
    }


def counts(rows: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """How many rows are better, worse and the same."""
    judged = [row["judged"] for row in rows]
    return {word: judged.count(word) for word in ("better", "worse", "same")}


def _figure(value: float | None, unit: str) -> str:
    return _NOTHING if value is None else f"{value:.4g} {unit}" if abs(value) < 1000 else f"{value:.0f} {unit}"  # noqa: PLR2004
