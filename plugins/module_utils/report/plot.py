"""Plots of the report: from figures to lines, dots, marks and places on a page.

Places are shares of the plot in percent, so that lines and labels stay together at every width. Lines are drawn in an
SVG of 1000 x 1000 units that the page stretches; labels are text of the page and keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS = 1000
# Colours of lines that the page has.
COLOURS = 8
_TICKS = 5
_STEPS = (1, 2, 5, 10)

Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Scale:
    """The heights of a plot."""

    bottom: float
    top: float
    marks: tuple[float, ...]

    def from_top(self, value: float) -> float:
        """Where a value lies: 0 at the top, 1 at the bottom."""
        return (self.top - value) / (self.top - self.bottom)

    def heights(self) -> list[dict[str, str]]:
        """The marks as labels at their places."""
        return [{"at": f"{100 * self.from_top(mark):.2f}", "label": f"{mark:g}"} for mark in self.marks]


def scale_of(levels: Sequence[float]) -> Scale:
    """Round heights around the levels: from zero only where they are near it, or a full card would hide its changes."""
    lowest, highest = min(levels), max(levels)
    room = max(highest - lowest, 0.1 * highest, 0.01) / _TICKS
    step = step_of(highest - lowest + 2 * room)
    first, last = max(math.floor((lowest - room) / step), 0), math.ceil((highest + room) / step)
    marks = tuple(round(step * number, 6) for number in range(first, last + 1))
    return Scale(marks[0], marks[-1], marks)


def from_zero(levels: Sequence[float]) -> Scale:
    """Round heights from zero to above the highest level."""
    # A dot on the edge would be cut.
    highest = 1.05 * max(*levels, 1e-6)
    step = step_of(highest)
    marks = tuple(round(step * number, 6) for number in range(math.ceil(highest / step * 1.001) + 1))
    return Scale(marks[0], marks[-1], marks)


def step_of(highest: float) -> float:
    """A round distance between marks, so that about five of them reach the highest value."""
    rough = max(highest, 1e-6) / _TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    return next(step * size for step in _STEPS if step * size >= rough * 0.999)


def times_of(seconds: float) -> list[dict[str, str]]:
    """Marks below a plot over time."""
    step = step_of(seconds)
    return [
        {"at": share(place * step, seconds), "label": f"{place * step:g} s"}
        for place in range(math.floor(seconds / step) + 1)
    ]


def share(part: float, whole: float) -> str:
    """A part of a whole in percent."""
    return f"{100 * part / whole:.2f}"


def points_of(points: Points, width: float, scale: Scale) -> str:
    """The corners of a line, for an SVG of 1000 x 1000 units and a width in seconds."""
    return " ".join(f"{UNITS * at / width:.1f},{UNITS * scale.from_top(value):.1f}" for at, value in points)


def over_time(series: Mapping[str, Points], unit: str) -> dict[str, Any]:
    """Each series as dots over seconds, from zero up: for what happens many times and differs each time."""
    filled = {name: points for name, points in series.items() if points}
    if not filled:
        return empty(unit)
    seconds = max(*(at for points in filled.values() for at, _ in points), 0.1)
    scale = from_zero([value for points in filled.values() for _, value in points])
    return {
        "unit": unit,
        "lines": [],
        "dots": [
            {"name": name, "colour": str(number % COLOURS), "path": dots_of(points, seconds, scale)}
            for number, (name, points) in enumerate(filled.items())
        ],
        "heights": scale.heights(),
        "times": times_of(seconds),
    }


def over_steps(series: Mapping[str, Mapping[int, float]], unit: str, word: str) -> dict[str, Any]:
    """Each series over numbers at equal distances, such as 1, 8 and 16 concurrent requests."""
    filled = {name: values for name, values in series.items() if values}
    if not filled:
        return empty(unit)
    numbers = sorted({number for values in filled.values() for number in values})
    places = {number: (place + 0.5) / len(numbers) for place, number in enumerate(numbers)}
    scale = from_zero([value for values in filled.values() for value in values.values()])
    lines, dots = [], []
    for place, (name, values) in enumerate(filled.items()):
        points = [(places[number], values[number]) for number in sorted(values)]
        line = {"name": name, "colour": str(place % COLOURS)}
        lines.append(line | {"points": points_of(points, 1, scale)})
        dots.append(line | {"path": dots_of(points, 1, scale)})
    return {
        "unit": unit,
        "lines": lines,
        "dots": dots,
        "heights": scale.heights(),
        "times": [{"at": share(places[number], 1), "label": f"{number} {word}"} for number in numbers],
    }


def dots_of(points: Points, width: float, scale: Scale) -> str:
    """Dots as an SVG path of lines without length, whose round ends the page draws round at every width."""
    return "".join(f"M{UNITS * at / width:.1f} {UNITS * scale.from_top(value):.1f}h0" for at, value in points)


def empty(unit: str) -> dict[str, Any]:
    """A plot of nothing."""
    return {"unit": unit, "lines": [], "dots": [], "heights": [], "times": []}
