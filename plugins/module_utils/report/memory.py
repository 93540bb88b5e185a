"""The report's plot of memory over time: from ``vram.json`` to lines, marks and places on a page.

``plot`` describes how places are written.
"""

from __future__ import annotations

from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.results import Term, VramResult
from ansible_collections.inference.vllm.plugins.module_utils.report import plot as report_plot

# A limit is drawn up to this many times the memory in use; a higher one would flatten the lines at the bottom.
_FAR = 3.0
_WORDS = {
    "resident": "idle engine",
    "step": "largest images, on top",
    "peak": "idle engine and images",
    "kv_cache": "KV cache",
    "kv_cache_tokens": "tokens in the KV cache",
    "headroom": "head-room",
}


def view(data: VramResult) -> dict[str, Any]:
    """What the page shows of a memory check: strings, booleans, and lists and mappings of these."""
    return {"table": [_row(term) for term in data.terms], "about": _about(data), **_plot(data)}


def _about(data: VramResult) -> str:
    readings, seconds = data.sampling.readings, data.sampling.seconds
    source = {
        "nvml": "Memory of the GPUs, read by NVML",
        "container": "Memory of the engine's container, because the host has no GPU",
        "processes": "Resident memory of the engine's processes, because the host has no GPU",
    }.get(data.source, "Memory could not be read")
    limit = f" Limit: {data.limit_gib:.2f} GiB, {data.limit_is}." if data.limit_gib else ""
    return f"{source}; {readings} readings in {seconds} s.{limit}"


def _row(term: Term) -> dict[str, str]:
    predicted, measured, unit = term.predicted, term.measured, term.unit
    return {
        "term": _WORDS.get(term.term, term.term),
        "predicted": _figure(predicted, unit),
        "measured": _figure(measured, unit),
        "difference": "-" if predicted is None or measured is None else _figure(measured - predicted, unit, "+"),
    }


def _figure(value: float | None, unit: str, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}d} {unit}" if isinstance(value, int) else f"{value:{sign}.2f} {unit}"


def _plot(data: VramResult) -> dict[str, Any]:
    """Lines, rules and bands; empty where nothing was read."""
    series = {name: points for name, points in data.samples.items() if points}
    if not series:
        return {"lines": [], "rules": [], "bands": [], "heights": [], "times": []}
    levels = [gib for points in series.values() for _, gib in points]
    rules = [rule for rule in _rules(data) if rule[0] <= _FAR * max(levels)]
    seconds = max(*(points[-1][0] for points in series.values()), 0.1)
    scale = report_plot.scale_of([*levels, *(gib for gib, _, _ in rules)])
    return {
        "lines": [
            {
                "name": name,
                "colour": str(number % report_plot.COLOURS),
                "points": report_plot.points_of(points, seconds, scale),
            }
            for number, (name, points) in enumerate(series.items())
        ],
        "rules": [
            {"at": f"{100 * scale.from_top(gib):.2f}", "label": f"{label}, {gib:.2f} GiB", "kind": kind}
            for gib, label, kind in rules
        ],
        "bands": _bands(data, seconds),
        "heights": scale.heights(),
        "times": report_plot.times_of(seconds),
    }


def _rules(data: VramResult) -> list[tuple[float, str, str]]:
    """Level lines: what memory must stay below, and what the plan predicted."""
    predicted = {term.term: term.predicted for term in data.terms}
    named = (
        (data.limit_gib, data.limit_is, "limit"),
        (predicted.get("peak"), "planned under load", "plan"),
        (predicted.get("resident"), "planned for the idle engine", "idle"),
    )
    return [(float(gib), label, kind) for gib, label, kind in named if gib is not None]


def _bands(data: VramResult, seconds: float) -> list[dict[str, str]]:
    """The moments that were judged: at rest, and under load."""
    return [
        {
            "from": report_plot.share(moment.start, seconds),
            "width": report_plot.share(min(moment.end, seconds) - moment.start, seconds),
            "kind": "load" if name == "under_load" else "rest",
        }
        # The rest after the first round lies on the load, so it comes last.
        for name, moment in sorted(data.moments.items(), key=lambda item: item[0] != "under_load")
    ]
