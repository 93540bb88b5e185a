"""What is made of a verdict: exit code, summary, JUnit XML."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

EXIT_GOOD, EXIT_NOT_GOOD, EXIT_NOT_JUDGED = 0, 1, 2


def now() -> str:
    """The time as every verdict writes it: UTC, ISO 8601, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
    """Judge the stored verdict that the one argument names, and print its summary."""
    paths = list(arguments)
    if len(paths) != 1:
        print("usage: verdict PATH-OF-verdict.json", file=sys.stderr)
        return EXIT_NOT_JUDGED
    try:
        verdict = Verdict.from_json(Path(paths[0]).read_text(encoding="utf-8", errors="replace"), paths[0])
    except OSError as error:
        print(f"{paths[0]}: {error.strerror}", file=sys.stderr)
        return exit_code(None)
    except RefusalError as error:
        print(error, file=sys.stderr)
        return exit_code(None)
    print(summary(verdict))
    return exit_code(verdict)
