"""What is measured, and what is better or worse: pure functions.

One **point** is one run of the tool: a workload at one number of requests at once, with new prompts or with the same
ones again. Times are milliseconds, rates are per second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Figures of a point that are compared: path, whether more is better, unit.
FIGURES: Mapping[str, tuple[bool, str]] = {
    "output_tokens_per_s": (True, "tokens/s"),
    "goodput_per_s": (True, "requests/s"),
    "ttft_ms.median": (False, "ms"),
    "tpot_ms.median": (False, "ms"),
    "itl_ms.p95": (False, "ms"),
}
# Below this many milliseconds a difference is the clock's, not the server's.
_CLOCK_MS = 1.0
_LEAST_REQUESTS = 8


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: What it is called in results and comparisons.
        input_tokens: Tokens of text in a prompt.
        output_tokens: Tokens of an answer, always so many.
        concurrency: Numbers of requests at once, each measured by itself.
        images: Images in a request.
        side: Side of an image in pixels.
        rounds: How often as many requests as are sent at once are sent, at least eight in all.
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
            raise ValueError(f"name is {name!r}; letters, digits and underscores are wanted")
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
        """How many requests are sent at this number at once."""
        return max(self.rounds * concurrency, _LEAST_REQUESTS)


@dataclass(frozen=True)
class Point:
    """One run of the tool: which workload, how many at once, with which seed, and whether the prompts are known."""

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
    """Every point, each with prompts that no other has; the largest of a workload once more with the same prompts."""
    points: list[Point] = []
    for workload in workloads:
        for concurrency in workload.concurrency:
            points.append(Point(workload, concurrency, seed + len(points)))
        if again:
            largest = max(points[-len(workload.concurrency) :], key=lambda point: point.concurrency)
            points.append(Point(workload, largest.concurrency, largest.seed, again=True))
    return points


# --- Comparison -----------------------------------------------------------------------------------------------------


def key_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs comparable without a word: GPUs, image, model and flags, from a release's manifest."""
    plan, image, model = (manifest.get(name) or {} for name in ("plan", "image", "model"))
    gpus = [f"{gpu.get('count', 1)}x {gpu.get('name')}" for gpu in plan.get("gpus") or ()]
    return {
        "gpus": gpus or [str(plan.get("accelerator") or manifest.get("accelerator") or "unknown")],
        "image": image.get("digest") or image.get("id") or "",
        "model": model.get("commit") or "",
        "flags": dict(manifest.get("flags") or {}),
    }


def key_name(key: Mapping[str, Any]) -> str:
    """Name of the file that keeps the baseline of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float, workloads: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Every figure that both results have, held against each other; none of results of different tools.

    Args:
        before: The content of one ``benchmark.json``.
        after: That of another.
        tolerance: Share by which a figure may be worse, e.g. 0.1.
        workloads: Only these; empty for all.

    Returns:
        Rows of ``workload``, ``concurrency``, ``again``, ``figure``, ``unit``, ``before``, ``after``, ``change`` (a
        share) and ``judged`` (``better``, ``worse`` or ``same``).
    """
    if before.get("driver") != after.get("driver"):
        return []
    known = {_place(point): point for point in before.get("points") or ()}
    rows = []
    for point in after.get("points") or ():
        former = known.get(_place(point))
        if former is None or (workloads and point["workload"] not in workloads):
            continue
        for figure, (more_is_better, unit) in FIGURES.items():
            old, new = _figure(former, figure), _figure(point, figure)
            if old is None or new is None:
                continue
            rows.append(
                {
                    **{name: point[name] for name in ("workload", "concurrency", "again")},
                    "figure": figure,
                    "unit": unit,
                    "before": old,
                    "after": new,
                    "change": round((new - old) / old, 4) if old else None,
                    "judged": judged(old, new, tolerance, more_is_better, unit),
                }
            )
    return rows


def _place(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two points have in common that can be compared: the same work, at the same number at once."""
    keys = ("workload", "input_tokens", "output_tokens", "images", "side", "concurrency", "again")
    return tuple(point.get(key) for key in keys)


def _figure(point: Mapping[str, Any], path: str) -> float | None:
    value: Any = point
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def judged(old: float, new: float, tolerance: float, more_is_better: bool, unit: str) -> str:
    """`better`, `worse` or `same`, for two values of a figure."""
    if abs(new - old) <= tolerance * old or (unit == "ms" and abs(new - old) < _CLOCK_MS):
        return "same"
    return "better" if (new > old) is more_is_better else "worse"


def described(row: Mapping[str, Any]) -> str:
    """A row of a comparison in words."""
    change = "" if row["change"] is None else f" ({100 * row['change']:+.0f} %)"
    again = " again" if row["again"] else ""
    return (
        f"{row['workload']} at {row['concurrency']}{again}: {row['figure']} {row['before']:g} -> {row['after']:g}"
        f" {row['unit']}{change}"
    )
