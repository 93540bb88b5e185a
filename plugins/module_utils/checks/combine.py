"""One verdict over the result files of a release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import RESULTS
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import CheckResult
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError


def combine(release: str, results: Mapping[str, str | None]) -> Verdict:
    """One verdict over the result files of a release.

    Args:
        release: The release that is judged.
        results: Text of each result file under the file's stem (``smoke``); None for a file that is not there.

    Returns:
        All checks of all results. A result that is missing, broken, empty, or of another release becomes a failed
        check (``<stem>_missing``, ``_unreadable``, ``_empty``, ``_of_other_release``), so that an old file never
        counts as a new one.
    """
    checks: list[Check] = []
    engine: dict[str, Any] = {}
    gpus: tuple[Mapping[str, Any], ...] = ()
    started: list[str] = []
    finished: list[str] = []
    for stem, text in results.items():
        try:
            part = _part(release, stem, text)
        except _PartError as error:
            checks.append(error.check)
            continue
        checks.extend(part.checks)
        engine.update(part.engine)
        gpus = part.gpus or gpus
        started.append(part.started)
        finished.append(part.finished)
    return Verdict(release, tuple(checks), engine, gpus, min(started, default=""), max(finished, default=""))


class _PartError(Exception):
    def __init__(self, check: Check) -> None:
        super().__init__(check.message)
        self.check = check


def _part(release: str, stem: str, text: str | None) -> Verdict:
    """The result of one file, or the failed check that stands for it."""

    def failed(failure: str, message: str) -> _PartError:
        name = f"result_{failure}"
        return _PartError(Check(f"{stem}_{failure}", False, message=f"{name}: {message}", runbook=name))

    if text is None:
        raise failed("missing", f"there is no {stem}.json for release {release}; run the {stem} check")
    try:
        part = RESULTS.get(f"{stem}.json", CheckResult).from_json(text, f"{stem}.json")
    except RefusalError as error:
        reasons = " ".join(refusal.message for refusal in error.refusals)
        raise failed("unreadable", f"{reasons} Run the {stem} check again.") from error
    if part.release != release:
        raise failed("of_other_release", f"{stem}.json is of release {part.release}, not of {release}")
    if not part.checks:
        raise failed("empty", f"{stem}.json contains no check; nothing was proven")
    return part
