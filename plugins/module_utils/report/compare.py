"""Comparison of two releases: contents, checks, speed and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import figures as benchmark_figures
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    BenchmarkResult,
    CheckResult,
    StabilityResult,
    VramResult,
)
from ansible_collections.inference.vllm.plugins.module_utils.columns import columns
from ansible_collections.inference.vllm.plugins.module_utils.contracts import ManifestFile
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.report import load as report_load
from ansible_collections.inference.vllm.plugins.module_utils.report import view as report

Result = TypeVar("Result", bound=CheckResult)
#: A release and its files.
Side = tuple[str, Mapping[str, str]]
_NOTHING = "-"
_MS = "ms"
# Parts of the manifest that define a release.
_IDENTITY = ("accelerator", "environment", "flags", "image", "model")


def view(
    before: Mapping[str, str], after: Mapping[str, str], names: tuple[str, str], host: str, tolerance: float
) -> dict[str, Any]:
    """Everything that the comparison shows.

    Args:
        before: Name to text of the files of one release: manifest, verdict and results, as far as they are there.
        after: Those of the other.
        names: Identifiers of both.
        host: Name of the host in the inventory.
        tolerance: Fraction by which a figure may be worse.

    Returns:
        A mapping of strings, booleans, and lists and mappings of these.
    """
    both = ((names[0], before), (names[1], after))
    figures = [*_speed(*both, tolerance), *_load(*both, tolerance), *_memory(*both, tolerance)]
    return {
        "host": host,
        "before": names[0],
        "after": names[1],
        "verdicts": [_verdict(name, files) for name, files in both],
        "facts": list(_facts(before, after)),
        "checks": list(_checks(*both)),
        "figures": figures,
        "counts": {word: str(number) for word, number in report_load.counts(figures).items()},
        "tolerance": f"{100 * tolerance:g} %",
    }


def _verdict(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    verdict = report.verdict_of(name, files)
    good = sum(check.ok for check in verdict.checks if check.decides)
    return {
        "release": name,
        "ok": verdict.ok,
        "message": f"{good} of {sum(check.decides for check in verdict.checks)} checks ok",
        "finished": verdict.finished or _NOTHING,
    }


def _facts(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What differs between the manifests."""
    old, new = ({row["label"]: row["value"] for row in report.rows_of(_identity(files))} for files in (before, after))
    for label in dict.fromkeys([*old, *new]):
        if old.get(label) != new.get(label):
            yield {"label": label, "before": old.get(label, _NOTHING), "after": new.get(label, _NOTHING)}


def _identity(files: Mapping[str, str]) -> dict[str, Any]:
    """What a release is made of; empty without a manifest that can be read."""
    try:
        manifest = ManifestFile.from_json(files.get("manifest.json"), "manifest.json")
    except RefusalError:
        return {}
    data = manifest.as_dict()
    return {"gpus": benchmark_figures.gpus_of(manifest)} | {name: data[name] for name in _IDENTITY}


def _checks(before: Side, after: Side) -> Iterator[dict[str, str]]:
    """Checks with different results, or that only one release has; with the message of the failure if there is one."""
    old, new = ({check.code: check for check in report.verdict_of(*side).checks} for side in (before, after))
    for code in dict.fromkeys([*old, *new]):
        states = [_state(checks.get(code)) for checks in (old, new)]
        if states[0] != states[1]:
            found = [checks[code] for checks in (new, old) if code in checks]
            shown = next((check for check in found if not check.ok), found[0])
            yield {"code": code, "before": states[0], "after": states[1], "message": shown.message}


def _state(check: Any) -> str:
    return _NOTHING if check is None else "ok" if check.ok else "failed" if check.decides else "warning"


def _results(before: Side, after: Side, kind: type[Result], name: str) -> tuple[Result, Result] | None:
    """Both results; None unless both can be read."""
    old, new = (report.result_of(*side, kind, name) for side in (before, after))
    return (old, new) if old and new else None


def _speed(before: Side, after: Side, tolerance: float) -> list[dict[str, str]]:
    both = _results(before, after, BenchmarkResult, "benchmark.json")
    return [report_load.compared(row) for row in benchmark_figures.compare(*both, tolerance)] if both else []


def _load(before: Side, after: Side, tolerance: float) -> list[dict[str, str]]:
    """Latency of each kind of request in the stability check; empty if the number of clients differs."""
    both = _results(before, after, StabilityResult, "stability.json")
    if both is None or both[0].concurrency != both[1].concurrency:
        return []
    old, new = (result.latency_ms for result in both)
    return [
        _row(f"mixed requests, {kind}: median", old[kind].median, new[kind].median, _MS, tolerance)
        for kind in old
        if kind in new
    ]


def _memory(before: Side, after: Side, tolerance: float) -> list[dict[str, str]]:
    """Memory of the idle engine and under load, and the tokens of the KV cache."""
    words = {"resident": "memory of the idle engine", "peak": "memory under load", "kv_cache_tokens": "KV cache"}
    both = _results(before, after, VramResult, "vram.json")
    if both is None:
        return []
    old, new = ({term.term: term for term in result.terms} for result in both)
    return [
        _row(word, old[term].measured, new[term].measured, old[term].unit, tolerance,
             more_is_better=term == "kv_cache_tokens")
        for term, word in words.items()
        if term in old and term in new
    ]  # fmt: skip


def _row(
    what: str, before: Any, after: Any, unit: str, tolerance: float, *, more_is_better: bool = False
) -> dict[str, str]:
    """One figure of both releases; it is not judged if only one has it."""
    if before is None or after is None:
        shown = [_NOTHING if value is None else f"{value:g} {unit}" for value in (before, after)]
        return {"what": what, "before": shown[0], "after": shown[1], "change": _NOTHING, "judged": "same"}
    change = (after - before) / before if before else 0.0
    return {
        "what": what,
        "before": f"{before:g} {unit}",
        "after": f"{after:g} {unit}",
        "change": f"{100 * change:+.1f} %",
        "judged": benchmark_figures.judged(before, after, tolerance, more_is_better, unit),
    }


def text(seen: Mapping[str, Any]) -> str:
    """The comparison as plain text."""
    lines = [("FIGURE", "BEFORE", "AFTER", "CHANGE", "JUDGED")]
    lines += [tuple(row[key] for key in ("what", "before", "after", "change", "judged")) for row in seen["figures"]]
    verdicts = [
        f"{'PROVEN' if side['ok'] else 'NOT PROVEN'}: {side['release']}, {side['message']}, checked {side['finished']}"
        for side in seen["verdicts"]
    ]
    differing = [f"  {row['label']}: {row['before']} -> {row['after']}" for row in seen["facts"]]
    changed = [f"  {row['code']}: {row['before']} -> {row['after']}: {row['message']}" for row in seen["checks"]]
    counts = seen["counts"]
    return "\n".join(
        [
            *verdicts,
            "",
            *(["What differs:", *differing, ""] if differing else ["Both are made of the same.", ""]),
            *(["Checks that ended differently:", *changed, ""] if changed else []),
            *(columns(lines) if seen["figures"] else ["The releases have no figure in common."]),
            "",
            f"{counts['better']} better, {counts['worse']} worse, {counts['same']} within {seen['tolerance']}",
        ]
    )
