"""Workloads, points and the comparison of results: pure functions.

One **point** is one run of the tool: a workload with a number of concurrent requests, with new prompts or with the
same ones again. Times are milliseconds, rates are per second.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    BenchmarkPoint,
    BenchmarkResult,
    ComparedFigure,
)
from ansible_collections.inference.vllm.plugins.module_utils.contracts import ManifestFile

# Figures of a point that are compared: path, whether more is better, unit.
FIGURES: Mapping[str, tuple[bool, str]] = {
    "output_tokens_per_s": (True, "tokens/s"),
    "goodput_per_s": (True, "requests/s"),
    "ttft_ms.median": (False, "ms"),
    "tpot_ms.median": (False, "ms"),
    "itl_ms.p95": (False, "ms"),
}
# Differences below this many milliseconds are noise.
_CLOCK_MS = 1.0
_LEAST_REQUESTS = 8


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: Name in results and comparisons.
        input_tokens: Tokens of text in a prompt.
        output_tokens: Tokens of each answer.
        concurrency: Numbers of concurrent requests; each is a point.
        images: Images in a request.
        side: Side of an image in pixels.
        rounds: Requests of a point divided by its concurrency; a point has at least eight requests.
    """

    name: str
    input_tokens: int
    output_tokens: int
    concurrency: tuple[int, ...]
    images: int = 0
    side: int = 0
    rounds: int = 4

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workload:
        """Read a workload of the inventory.

        Raises:
            ValueError: A key is missing, unknown or of a wrong value; the message names it.
        """
        whole = ("input_tokens", "output_tokens", "images", "side", "rounds")
        unknown = set(data) - {"name", "concurrency", *whole}
        missing = {"name", "input_tokens", "output_tokens", "concurrency"} - set(data)
        if unknown or missing:
            raise ValueError(f"keys {', '.join(sorted(unknown | missing))} are {'unknown' if unknown else 'missing'}")
        name = str(data["name"])
        if not name.replace("_", "").isalnum():
            raise ValueError(f"name is {name!r}; use letters, digits and underscores")
        try:
            numbers = {key: int(data[key]) for key in whole if key in data}
            concurrency = tuple(int(number) for number in data["concurrency"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"a value of {name} is no whole number: {error}") from None
        if not concurrency or min(*concurrency, 1) < 1 or min(numbers["input_tokens"], numbers["output_tokens"]) < 1:
            raise ValueError(f"concurrency, input_tokens and output_tokens of {name} are at least 1")
        if numbers.get("images", 0) > 0 and numbers.get("side", 0) < 1:
            raise ValueError(f"{name} has images without a side")
        return cls(name=name, concurrency=concurrency, **numbers)

    def requests(self, concurrency: int) -> int:
        """Number of requests of a point with this concurrency."""
        return max(self.rounds * concurrency, _LEAST_REQUESTS)


@dataclass(frozen=True)
class Point:
    """One run of the tool: workload, concurrency, seed of the prompts, and whether they were sent before."""

    workload: Workload
    concurrency: int
    seed: int
    again: bool = False

    @property
    def code(self) -> str:
        """Name of its check."""
        return f"bench_{self.workload.name}_{self.concurrency}{'_again' if self.again else ''}"


@dataclass(frozen=True)
class Goals:
    """The service level: a request is good if its first token and the mean time per further token are below these."""

    ttft_ms: float
    tpot_ms: float


def points_of(workloads: Sequence[Workload], seed: int, again: bool) -> list[Point]:
    """Every point with its own prompts; with `again` the largest point of a workload is repeated."""
    points: list[Point] = []
    for workload in workloads:
        for concurrency in workload.concurrency:
            points.append(Point(workload, concurrency, seed + len(points)))
        if again:
            largest = max(points[-len(workload.concurrency) :], key=lambda point: point.concurrency)
            points.append(Point(workload, largest.concurrency, largest.seed, again=True))
    return points


# --- Comparison -----------------------------------------------------------------------------------------------------


def gpus_of(manifest: ManifestFile) -> list[str]:
    """The GPUs that a release runs on, counted by name, such as ``2x RTX 4090``; the accelerator without GPUs."""
    names = Counter(gpu.name for gpu in manifest.plan.selected)
    return [f"{count}x {name}" for name, count in names.items()] or [manifest.accelerator]


def key_of(manifest: ManifestFile) -> dict[str, Any]:
    """What makes two runs comparable: the GPUs, image, model and flags of a release."""
    return {
        "gpus": gpus_of(manifest),
        "image": manifest.image.digest or manifest.image.id,
        "model": manifest.model.commit,
        "flags": dict(manifest.flags),
    }


def key_name(key: Mapping[str, Any]) -> str:
    """Name of the file that keeps the baseline of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def compare(
    before: BenchmarkResult, after: BenchmarkResult, tolerance: float, workloads: Sequence[str] = ()
) -> tuple[ComparedFigure, ...]:
    """Compare every figure that both results have; none if their tools differ.

    Args:
        before: The earlier result.
        after: The later result.
        tolerance: Fraction by which a figure may be worse, such as 0.1.
        workloads: Only these; empty for all.
    """
    if before.driver != after.driver:
        return ()
    known = {_place(point): point for point in before.points}
    return tuple(
        row
        for point in after.points
        if _place(point) in known and (not workloads or point.workload in workloads)
        for row in _rows(known[_place(point)], point, tolerance)
    )


def _rows(before: BenchmarkPoint, after: BenchmarkPoint, tolerance: float) -> Iterator[ComparedFigure]:
    for figure, (more_is_better, unit) in FIGURES.items():
        old, new = _figure(before, figure), _figure(after, figure)
        if old is None or new is None:
            continue
        change = round((new - old) / old, 4) if old else None
        word = judged(old, new, tolerance, more_is_better, unit)
        yield ComparedFigure(after.workload, after.concurrency, after.again, figure, unit, old, new, change, word)


def _place(point: BenchmarkPoint) -> tuple[Any, ...]:
    """What must be equal for two points to be compared: the workload and the number of concurrent requests."""
    sizes = (point.input_tokens, point.output_tokens, point.images, point.side)
    return (point.workload, *sizes, point.concurrency, point.again)


def _figure(point: BenchmarkPoint, path: str) -> float | None:
    name, _, statistic = path.partition(".")
    value = getattr(point, name)
    if statistic:
        value = (value or {}).get(statistic)
    return None if value is None else float(value)


def judged(
    old: float, new: float, tolerance: float, more_is_better: bool, unit: str
) -> Literal["better", "worse", "same"]:
    """`better`, `worse` or `same`, for two values of a figure."""
    if abs(new - old) <= tolerance * old or (unit == "ms" and abs(new - old) < _CLOCK_MS):
        return "same"
    return "better" if (new > old) is more_is_better else "worse"


def described(row: ComparedFigure) -> str:
    """A row of a comparison in words."""
    change = "" if row.change is None else f" ({100 * row.change:+.0f} %)"
    again = " again" if row.again else ""
    figure = f"{row.figure} {row.before:g} -> {row.after:g} {row.unit}"
    return f"{row.workload} at {row.concurrency}{again}: {figure}{change}"
