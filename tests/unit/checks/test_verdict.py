"""The verdict: what counts as good, and that nothing unproven, old or broken ever does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import exit_code, junit, redact, summary
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import ROOT

GOOD = Check("greeting", True, message="said hello", value="Hello!", seconds=0.1)
BAD = Check("colour_red", False, message="wrong_answer: blue", value="Blue", limit="Red", runbook="wrong_answer")
WARNING = Check("engine_version", False, "warning", "bad_response: no version", runbook="bad_response")


@pytest.mark.parametrize(
    ("found", "ok"),
    [
        ([], False),
        ([GOOD], True),
        ([GOOD, BAD], False),
        ([GOOD, WARNING], True),
        ([WARNING], False),
        ([replace(WARNING, ok=True)], False),
    ],
)
def test_good_means_that_something_was_proven_and_nothing_failed(found: list[Check], ok: bool) -> None:
    verdict = Verdict("r1", tuple(found))
    assert verdict.ok is ok
    assert exit_code(verdict) == (0 if ok else 1)


def test_the_json_has_the_documented_shape() -> None:
    data = json.loads(Verdict("r1", (BAD,), {"version": "0.32.0"}, ({"index": 0},), "s", "f").to_json())
    assert list(data) == ["schema_version", "ok", "release", "checks", "engine", "gpus", "started", "finished"]
    assert data["checks"] == [
        {
            "code": "colour_red",
            "ok": False,
            "severity": "error",
            "message": "wrong_answer: blue",
            "value": "Blue",
            "limit": "Red",
            "unit": None,
            "seconds": 0.0,
            "runbook": "wrong_answer",
        }
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ('{"ok": true, "release": "r1", "checks": [{"code": "x", "o', "is not JSON"),
        ("null", "must be a mapping"),
        ('{"ok": true, "checks": []}', "missing fields: release"),
        ('{"ok": true, "release": "r1", "checks": "none"}', "checks is 'none', but must be a list"),
        ('{"ok": true, "release": "r1", "checks": []}', "ok is True, but must be False"),
        ('{"release": "r1", "checks": [{"code": "x", "ok": true}]}', "ok is missing, but must be True"),
        ('{"ok": true, "release": "r1", "checks": [{"code": "x", "ok": false}]}', "ok is True, but must be False"),
        ('{"ok": true, "release": "r1", "checks": [{"code": "x", "ok": "yes"}]}', "checks[0].ok is 'yes'"),
        (
            '{"ok": true, "release": "r1", "checks": [{"code": "x", "ok": true, "severity": "fatal"}]}',
            "checks[0].severity is 'fatal', but must be one of error, warning",
        ),
        ('{"ok": true, "release": "r1", "checks": [{"code": "x", "ok": true, "value": []}]}', "checks[0].value is []"),
        ('{"ok": true, "release": "r1", "checks": [{"ok": true}]}', "missing fields: checks[0].code"),
        ('{"ok": true, "release": "r1", "checks": [7]}', "checks[0] is 7, but must be a mapping"),
        ('{"ok": true, "release": "r1", "checks": [{"code": "x", "ok": true}], "gpus": [7]}', "gpus[0] is 7"),
    ],
)
def test_what_is_not_a_verdict_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RefusalError) as refused:
        Verdict.from_json(text, "verdict.json")
    assert problem in str(refused.value)


def test_results_are_joined() -> None:
    smoke = Verdict("r1", (GOOD, WARNING), {"version": "0.32.0"}, (), "2026-01-01T00:00:05Z", "2026-01-01T00:00:09Z")
    vram = Verdict("r1", (BAD,), {}, ({"index": 0},), "2026-01-01T00:00:01Z", "2026-01-01T00:00:07Z")
    joined = combine("r1", {"smoke": smoke.to_json(), "other": vram.to_json()})
    assert joined == Verdict(
        "r1", (GOOD, WARNING, BAD), {"version": "0.32.0"}, ({"index": 0},), vram.started, smoke.finished
    )


@pytest.mark.parametrize(
    ("text", "code", "runbook"),
    [
        (None, "smoke_missing", "result_missing"),
        ('{"ok": tr', "smoke_unreadable", "result_unreadable"),
        (Verdict("r0", (GOOD,)).to_json(), "smoke_of_other_release", "result_of_other_release"),
        (Verdict("r1").to_json(), "smoke_empty", "result_empty"),
    ],
)
def test_a_result_that_proves_nothing_is_a_named_failure(text: str | None, code: str, runbook: str) -> None:
    good = Verdict("r1", (GOOD,)).to_json()
    joined = combine("r1", {"other": good, "smoke": text})
    assert not joined.ok
    assert [(check.code, check.runbook) for check in joined.failures] == [(code, runbook)]
    assert joined.failures[0].message.startswith(f"{runbook}: ")


def test_no_result_at_all_is_not_good() -> None:
    assert not combine("r1", {}).ok


def test_the_summary_names_what_failed_first() -> None:
    assert summary(Verdict("r1", (GOOD, WARNING, BAD))).splitlines() == [
        "release r1: 1 of 2 checks ok",
        "  FAILED  colour_red: wrong_answer: blue",
        "  warning engine_version: bad_response: no version",
    ]


def test_junit_counts_what_failed_and_survives_any_answer() -> None:
    odd = replace(BAD, message="answer \x00\x1b <&> \ufffe \ud800")
    root = ElementTree.fromstring(junit(Verdict("r1", (GOOD, WARNING, odd), started="s")))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", "1", "1")
    assert [child.tag for case in root for child in case] == ["skipped", "failure"]


def test_a_secret_is_taken_out_of_every_text() -> None:
    check = replace(BAD, message="sent Bearer sk-1", value="sk-1!")
    assert "sk-1" not in str(redact(check, "sk-1"))
    assert redact(check, "") == check


@pytest.mark.parametrize(
    ("text", "code"),
    [(Verdict("r1", (GOOD,)).to_json(), 0), (Verdict("r1", (BAD,)).to_json(), 1), ("{", 2), (None, 2)],
)
def test_the_command_exits_with_the_verdict(tmp_path: Path, text: str | None, code: int) -> None:
    path = tmp_path / "verdict.json"
    if text is not None:
        path.write_text(text)
    command = [sys.executable, str(ROOT / "bin" / "verdict"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (done.stdout if code < 2 else done.stderr).strip()
