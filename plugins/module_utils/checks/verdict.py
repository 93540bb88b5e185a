"""The one shape of every check, and the rule by which checks become a verdict.

Every check of every role is a :class:`Check`; a :class:`Verdict` holds the checks of one release. A result file
(``smoke.json``) and the judgement over all result files (``verdict.json``) have the same shape, so one reader serves
both. Run as a program, the file judges a stored verdict for scripts and CI:

    python3 verdict.py reports/<release>/verdict.json     # exit code 0 good, 1 not good, 2 cannot be judged
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SEVERITIES = ("error", "warning")
EXIT_GOOD, EXIT_NOT_GOOD, EXIT_NOT_JUDGED = 0, 1, 2

Scalar = str | int | float | bool | None


class VerdictError(ValueError):
    """Raised when data is not a verdict; the message names the field and what it must be."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and whether it was as it must be.

    Attributes:
        code: What was checked, stable and in snake_case, e.g. ``reject_wrong_key``.
        ok: True only if the check ran and saw what it must see; a check that could not run is not ok.
        severity: ``error`` decides the verdict, ``warning`` is told and decides nothing.
        message: One sentence for people; for a failure it starts with the failure's name.
        value: What was seen: an answer, a status, a measured figure.
        limit: What ``value`` is held against.
        unit: Unit of ``value`` and ``limit``, e.g. ``GiB`` (2^30 bytes) or ``http status``.
        seconds: How long the check took, wall clock.
        runbook: Name of the failure, which is also the name of its runbook; None when ok.
    """

    code: str
    ok: bool
    severity: str = "error"
    message: str = ""
    value: Scalar = None
    limit: Scalar = None
    unit: str | None = None
    seconds: float = 0.0
    runbook: str | None = None

    def __post_init__(self) -> None:
        """Refuse what a reader could take for a good check."""
        if not isinstance(self.code, str) or not self.code:
            raise VerdictError(f"code of a check must be a name, not {self.code!r}")
        if not isinstance(self.ok, bool):
            raise VerdictError(f"ok of check {self.code} must be true or false, not {self.ok!r}")
        if self.severity not in SEVERITIES:
            raise VerdictError(
                f"severity of check {self.code} must be one of {', '.join(SEVERITIES)}, not {self.severity!r}"
            )

    @property
    def decides(self) -> bool:
        """Whether the verdict hangs on this check."""
        return self.severity == "error"

    def as_dict(self) -> dict[str, Any]:
        """The check as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Check:
        """Read a check; keys that this version does not know are left out.

        Raises:
            VerdictError: ``data`` is no mapping, or ``code``, ``ok`` or ``severity`` is missing or wrong.
        """
        if not isinstance(data, Mapping):
            raise VerdictError(f"a check must be a mapping, not {data!r}")
        known = {item.name for item in fields(cls)}
        missing = {"code", "ok", "severity"} - data.keys()
        if missing:
            raise VerdictError(f"a check lacks {', '.join(sorted(missing))}: {dict(data)!r}")
        return cls(**{str(key): value for key, value in data.items() if key in known})


@dataclass(frozen=True)
class Verdict:
    """What the checks of one release say together.

    Attributes:
        release: Identifier of the release that was checked.
        checks: All checks, in the order in which they ran.
        engine: What the engine said about itself: ``version``, ``model``, ``max_model_len``, ``base_url``.
        gpus: One mapping per GPU; empty on a CPU host.
        started: Start of the first check, UTC, ISO 8601; empty if nothing ran.
        finished: End of the last check, UTC, ISO 8601; empty if nothing ran.
    """

    release: str
    checks: tuple[Check, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[Mapping[str, Any], ...] = ()
    started: str = ""
    finished: str = ""

    @property
    def ok(self) -> bool:
        """True if at least one deciding check ran and every deciding check is ok.

        No checks, or warnings only, prove nothing: that is not ok.
        """
        deciding = [check for check in self.checks if check.decides]
        return bool(deciding) and all(check.ok for check in deciding)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The deciding checks that are not ok."""
        return tuple(check for check in self.checks if check.decides and not check.ok)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that are not ok and decide nothing."""
        return tuple(check for check in self.checks if not check.decides and not check.ok)

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain data for JSON, ``ok`` first."""
        return {
            "ok": self.ok,
            "release": self.release,
            "checks": [check.as_dict() for check in self.checks],
            "engine": dict(self.engine),
            "gpus": [dict(gpu) for gpu in self.gpus],
            "started": self.started,
            "finished": self.finished,
        }

    def to_json(self) -> str:
        """The verdict as indented JSON text that ends with a newline."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: object) -> Verdict:
        """Read a verdict. ``ok`` is computed again; a stored ``ok`` that says otherwise is refused.

        Raises:
            VerdictError: ``data`` has not the shape, or contradicts itself.
        """
        if not isinstance(data, Mapping):
            raise VerdictError(f"a verdict must be a mapping, not {type(data).__name__}")
        release, checks = data.get("release"), data.get("checks")
        if not isinstance(release, str) or not release:
            raise VerdictError(f"release of a verdict must be a name, not {release!r}")
        if not isinstance(checks, Sequence) or isinstance(checks, str):
            raise VerdictError(f"checks of a verdict must be a list, not {checks!r}")
        engine, gpus = data.get("engine") or {}, data.get("gpus") or ()
        if not isinstance(engine, Mapping) or not all(isinstance(gpu, Mapping) for gpu in gpus):
            raise VerdictError("engine of a verdict must be a mapping, and gpus a list of mappings")
        verdict = cls(
            release=release,
            checks=tuple(Check.from_dict(check) for check in checks),
            engine=dict(engine),
            gpus=tuple(dict(gpu) for gpu in gpus),
            started=str(data.get("started", "")),
            finished=str(data.get("finished", "")),
        )
        if data.get("ok") is not verdict.ok:
            raise VerdictError(f"verdict says ok={data.get('ok')!r}, its checks say {verdict.ok}")
        return verdict

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """Read a verdict from JSON text.

        Raises:
            VerdictError: The text is not JSON (an interrupted write, for one) or not a verdict.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise VerdictError(f"not JSON: {error}") from error
        return cls.from_dict(data)


def now() -> str:
    """The time as every verdict writes it: UTC, ISO 8601, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def combine(release: str, results: Mapping[str, str | None]) -> Verdict:
    """One verdict over the result files of a release.

    Args:
        release: The release that is judged.
        results: Text of each result file under the file's stem (``smoke``); None for a file that is not there.

    Returns:
        All checks of all results. A result that is missing, broken, empty, or of another release becomes a failed
        check (``<stem>_missing``, ``_unreadable``, ``_empty``, ``_of_other_release``): an old file never passes for a
        new one.
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
        part = Verdict.from_json(text)
    except VerdictError as error:
        raise failed("unreadable", f"{stem}.json is not a result: {error}; run the {stem} check again") from error
    if part.release != release:
        raise failed("of_other_release", f"{stem}.json speaks of release {part.release}, not of {release}")
    if not part.checks:
        raise failed("empty", f"{stem}.json holds no check; nothing was proven")
    return part


def exit_code(verdict: Verdict | None) -> int:
    """0 good, 1 not good, 2 if there is no verdict that could be read."""
    if verdict is None:
        return EXIT_NOT_JUDGED
    return EXIT_GOOD if verdict.ok else EXIT_NOT_GOOD


def summary(verdict: Verdict) -> str:
    """Few lines for a person: how many checks are ok, then each failure and each warning on a line."""
    deciding = [check for check in verdict.checks if check.decides]
    good = sum(check.ok for check in deciding)
    lines = [f"release {verdict.release}: {good} of {len(deciding)} checks ok"]
    lines += [f"  FAILED  {check.code}: {check.message}" for check in verdict.failures]
    lines += [f"  warning {check.code}: {check.message}" for check in verdict.warnings]
    return "\n".join(lines)


def junit(verdict: Verdict, suite: str = "deployment") -> str:
    """The verdict as JUnit XML: one test case per check; a warning that is not ok counts as skipped."""
    root = ElementTree.Element(
        "testsuite",
        name=suite,
        tests=str(len(verdict.checks)),
        failures=str(len(verdict.failures)),
        skipped=str(len(verdict.warnings)),
        errors="0",
        time=f"{sum(check.seconds for check in verdict.checks):.3f}",
        timestamp=verdict.started,
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(
            root, "testcase", classname=f"{suite}.{verdict.release}", name=check.code, time=f"{check.seconds:.3f}"
        )
        if not check.ok:
            ElementTree.SubElement(case, "failure" if check.decides else "skipped", message=_xml_text(check.message))
    return str(ElementTree.tostring(root, encoding="unicode", xml_declaration=True)) + "\n"


def _xml_text(text: str) -> str:
    """Text without what XML 1.0 cannot carry, control characters and surrogates; a model may answer anything."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def redact(check: Check, secret: str) -> Check:
    """The check without ``secret`` in its texts: a server may echo the key it was sent."""
    if not secret:
        return check
    value = check.value.replace(secret, "***") if isinstance(check.value, str) else check.value
    return replace(check, message=check.message.replace(secret, "***"), value=value)


def main(arguments: Iterable[str]) -> int:
    """Judge the stored verdict that the one argument names; print its summary."""
    paths = list(arguments)
    if len(paths) != 1:
        print("usage: verdict.py PATH-OF-verdict.json", file=sys.stderr)
        return EXIT_NOT_JUDGED
    try:
        verdict = Verdict.from_json(Path(paths[0]).read_text(encoding="utf-8"))
    except (OSError, VerdictError) as error:
        print(f"{paths[0]}: {error}", file=sys.stderr)
        return exit_code(None)
    print(summary(verdict))
    return exit_code(verdict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
