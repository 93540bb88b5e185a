"""Modules smoke_test and verdict, run as Ansible runs them, against real servers and real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks import module as check_module
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import CheckResult
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.modules import smoke_test
from ansible_collections.inference.vllm.plugins.modules import verdict as verdict_module
from support.lying_server import IMAGE_CAP, KEY, MODEL, lying_server
from support.modules import run_module
from unit.checks.vram.test_run import CPU_MANIFEST

GOOD = Verdict("r1", (Check("greeting", True),))
BAD = Verdict("r1", (Check("greeting", False, message="timeout: none", runbook="timeout"),))


def run(module: Any, capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    return run_module(module, capsys, arguments, KEY)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "api_key"
    path.write_text(f"{KEY}\n")
    return path


def asked(base_url: str, key_file: Path, report: Path, **more: Any) -> dict[str, Any]:
    return {
        **{"base_url": base_url, "api_key_file": str(key_file), "model": MODEL, "timeout": 5, "release": "r1"},
        **{"report_path": str(report), **more},
    }


def test_a_good_server_gives_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path, key_file: Path) -> None:
    report = tmp_path / "smoke.json"
    with lying_server() as base_url:
        result = run(smoke_test, capsys, **asked(base_url, key_file, report))
    assert (result["failed"], result["changed"], result["failures"]) == (False, False, [])
    assert CheckResult.from_json(report.read_text(), "smoke.json").verdict.as_dict() == result["verdict"]
    assert report.stat().st_mode & 0o777 == 0o640
    assert KEY not in report.read_text()


def test_a_bad_server_fails_by_name_and_still_gives_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key_file: Path
) -> None:
    report = tmp_path / "smoke.json"
    with lying_server("echoes_key") as base_url:
        result = run(smoke_test, capsys, **asked(base_url, key_file, report))
        told = run(smoke_test, capsys, **asked(base_url, key_file, report, fail_on_verdict=False))
    assert result["failed"] is True
    assert "FAILED  greeting: server_error: HTTP 500" in result["msg"]
    assert f"Report: {report}" in result["msg"]
    assert (told["failed"], told["verdict"]["ok"]) == (False, False)
    assert KEY not in report.read_text()


def test_the_largest_image_is_sent_where_the_manifest_tells_its_cap(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key_file: Path
) -> None:
    manifest = tmp_path / "manifest.json"
    about = {"largest_pixels": 640 * 640, "manifest_path": str(manifest), "extent": "short", "concurrency": 8}

    def largest() -> dict[str, Any]:
        with lying_server("scales") as base_url:
            result = run(smoke_test, capsys, **asked(base_url, key_file, tmp_path / "smoke.json", **about))
        assert (result["failed"], result["failures"]) == (False, [])
        return next(check for check in result["verdict"]["checks"] if check["code"] == "largest_image")

    assert largest()["message"].startswith("not sent")
    flags = {**CPU_MANIFEST.flags, "mm-processor-kwargs": {"max_pixels": IMAGE_CAP * 1024}}
    manifest.write_text(replace(CPU_MANIFEST, flags=flags).to_json())
    assert largest()["value"] == IMAGE_CAP
    manifest.write_text("{}")
    with lying_server() as base_url:
        refused = run(smoke_test, capsys, **asked(base_url, key_file, tmp_path / "smoke.json", **about))
    assert [refusal["code"] for refusal in refused["refusals"]] == ["manifest_unusable"]


def test_check_mode_asks_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, key_file: Path) -> None:
    report = tmp_path / "folder that is not made yet" / "smoke.json"
    with lying_server() as base_url:
        result = run(smoke_test, capsys, **asked(base_url, key_file, report, _ansible_check_mode=True))
    assert result["verdict"]["ok"] is True
    assert not report.parent.exists()


def test_all_bad_input_is_refused_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run(
        smoke_test,
        capsys,
        base_url="localhost:8000",
        api_key_file=str(tmp_path / "none"),
        timeout=-1,
        max_images=-2,
        release=" ",
        report_path=str(tmp_path / "none" / "smoke.json"),
    )
    assert result["failed"] is True
    codes = ["bad_base_url", "bad_number", "bad_number", "no_release", "no_report_folder", "api_key_file_unreadable"]
    assert [refusal["code"] for refusal in result["refusals"]] == codes
    assert "'localhost:8000'" in result["msg"]
    assert "No such file or directory" in result["msg"]


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", "clé".encode(), b"\x00\x01"])
def test_a_key_file_without_a_key_is_refused_and_not_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "api_key"
    path.write_bytes(content)
    result = run(smoke_test, capsys, base_url="http://127.0.0.1:1/v1", api_key_file=str(path), release="r1")
    assert result["refusals"][0]["code"].startswith("api_key_file_un")
    assert "two words" not in result["msg"]


def test_a_full_disk_is_an_error_and_leaves_no_old_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "smoke.json"
    report.write_text("old")

    def full(_path: Path, _text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(check_module, "write_atomic", full)
    with lying_server() as base_url:
        result = run(smoke_test, capsys, **asked(base_url, key_file, report))
    assert result["failed"] is True
    assert "No space left on device" in result["msg"]
    assert not report.exists()


def test_a_verdict_is_joined_written_and_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "smoke.json").write_text(GOOD.to_json())
    path = tmp_path / "verdict.json"
    joined = run(
        verdict_module,
        capsys,
        **{"release": "r1", "path": str(path), "results": [str(tmp_path / "smoke.json")]},
        junit_path=str(tmp_path / "junit.xml"),
    )
    assert (joined["failed"], joined["changed"], joined["exit_code"]) == (False, False, 0)
    assert (tmp_path / "junit.xml").read_text().startswith("<?xml")
    assert run(verdict_module, capsys, release="r1", path=str(path))["verdict"] == joined["verdict"]


def test_a_bad_or_missing_result_makes_the_verdict_fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "smoke.json").write_text(BAD.to_json())
    arguments = {"release": "r1", "path": str(tmp_path / "verdict.json")}
    results = [str(tmp_path / "smoke.json"), str(tmp_path / "vram.json")]
    joined = run(verdict_module, capsys, **arguments, results=results)
    assert (joined["failed"], joined["exit_code"], joined["failures"]) == (True, 1, ["greeting", "vram_missing"])
    gate = run(verdict_module, capsys, **arguments)
    assert (gate["failed"], gate["failures"]) == (True, ["greeting", "vram_missing"])
    assert run(verdict_module, capsys, **arguments, fail_on_verdict=False)["failed"] is False


@pytest.mark.parametrize(
    ("text", "word"), [(None, "does not exist"), ("{", "is not JSON"), (GOOD.to_json(), "release r1")]
)
def test_a_gate_without_a_verdict_of_this_release_is_shut(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, word: str
) -> None:
    path = tmp_path / "verdict.json"
    if text is not None:
        path.write_text(text)
    gate = run(verdict_module, capsys, release="r2", path=str(path), fail_on_verdict=False)
    assert (gate["failed"], gate["exit_code"]) == (True, 2)
    assert word in gate["msg"]


def test_check_mode_of_the_verdict_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "smoke.json").write_text(GOOD.to_json())
    path = tmp_path / "verdict.json"
    arguments = {"release": "r1", "path": str(path), "results": [str(tmp_path / "smoke.json")]}
    assert run(verdict_module, capsys, **arguments, _ansible_check_mode=True)["verdict"]["ok"] is True
    assert not path.exists()


def test_an_old_result_does_not_outlive_a_refused_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key_file: Path
) -> None:
    report = tmp_path / "smoke.json"
    report.write_text(GOOD.to_json())
    result = run(smoke_test, capsys, **asked("no address", key_file, report))
    assert result["refusals"][0]["code"] == "bad_base_url"
    assert not report.exists()
