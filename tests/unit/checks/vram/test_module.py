"""Module vram_check, run as Ansible runs it, against a real server, files, and Docker's SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.results import VramResult
from ansible_collections.inference.vllm.plugins.modules import vram_check
from support import fake_nvml
from support.fake_docker import NAME, FakeContainer, fake_docker
from support.fake_nvml import FakeGpu
from support.lying_server import KEY, MODEL, lying_server
from support.modules import run_module
from unit.checks.vram.test_run import CPU_MANIFEST, NVIDIA_MANIFEST


def run(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]) -> dict[str, Any]:
    return run_module(vram_check, capsys, arguments, KEY)


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "api_key").write_text(f"{KEY}\n")
    (tmp_path / "manifest.json").write_text(CPU_MANIFEST.to_json())
    with lying_server() as base_url, fake_docker(FakeContainer()) as docker_host:
        yield {
            **{"base_url": base_url, "metrics_url": base_url.removesuffix("v1") + "metrics", "model": MODEL},
            **{"api_key_file": str(tmp_path / "api_key"), "manifest_path": str(tmp_path / "manifest.json")},
            **{"container": NAME, "docker_host": docker_host, "max_pixels": 65536, "release": "r1", "timeout": 5},
            **{"interval": 0.01, "settle": 0.05, "concurrency": 8},
            **{"report_path": str(tmp_path / "vram.json"), "calibration_path": str(tmp_path / "calibration.json")},
        }


def test_a_good_server_gives_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    result = run(capsys, arguments)
    assert (result["failed"], result["changed"], result["failures"]) == (False, False, [])
    report = tmp_path / "vram.json"
    assert VramResult.from_json(report.read_text(), "vram.json").verdict.as_dict() == result["verdict"]
    assert report.stat().st_mode & 0o777 == 0o640
    # No more than the engine computes at once.
    assert json.loads(report.read_text())["load"]["concurrency"] == 4
    assert not (tmp_path / "calibration.json").exists()


def test_on_gpus_a_row_for_the_calibration_is_left(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_nvml.install(monkeypatch, FakeGpu(memory=(24564, 413, 21000)), FakeGpu(memory=(24564, 413, 21000)))
    (tmp_path / "manifest.json").write_text(NVIDIA_MANIFEST.to_json())
    assert run(capsys, arguments)["failures"] == []
    (row,) = json.loads((tmp_path / "calibration.json").read_text())["boots"]
    assert row["settings"]["max_num_batched_tokens"] == 2048


def test_a_bad_server_fails_by_name(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]) -> None:
    with lying_server("error_500") as base_url:
        result = run(capsys, arguments | {"base_url": base_url})
        told = run(capsys, arguments | {"base_url": base_url, "fail_on_verdict": False})
    assert result["failed"] is True
    assert "FAILED  load_answered: server_error: HTTP 500" in result["msg"]
    assert (told["failed"], told["verdict"]["ok"]) == (False, False)


@pytest.mark.parametrize(
    "manifest", [None, "", "{", "[]", "{}", '{"plan": {}, "flags": {}}', '{"plan": 1, "flags": 2}']
)
def test_a_manifest_that_cannot_be_used_is_refused_and_leaves_no_old_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any], manifest: str | None
) -> None:
    for name in ("vram.json", "calibration.json"):
        (tmp_path / name).write_text("of another day")
    if manifest is None:
        (tmp_path / "manifest.json").unlink()
    else:
        (tmp_path / "manifest.json").write_text(manifest)
    result = run(capsys, arguments)
    assert result["failed"] is True
    assert [refusal["code"] for refusal in result["refusals"]] == ["manifest_unusable"]
    assert sorted(path.suffix for path in tmp_path.glob("*.json")) == ([] if manifest is None else [".json"])


def test_all_bad_input_is_refused_at_once(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]) -> None:
    wrong = {"base_url": "localhost", "rounds": 1, "interval": 0, "concurrency": 0, "max_pixels": 0, "release": " "}
    result = run(capsys, arguments | wrong)
    assert [refusal["code"] for refusal in result["refusals"]] == ["bad_base_url", *["bad_number"] * 4, "no_release"]


def test_check_mode_sends_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    (tmp_path / "vram.json").write_text("of another day")
    result = run(capsys, arguments | {"base_url": "http://127.0.0.1:9/v1", "_ansible_check_mode": True})
    assert (result["changed"], result.get("failed", False)) == (False, False)
    assert (tmp_path / "vram.json").read_text() == "of another day"


def test_without_a_manifest_the_arguments_describe_the_engine(
    capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]
) -> None:
    bare = {name: value for name, value in arguments.items() if name != "manifest_path"}
    result = run(capsys, bare | {"accelerator": "cpu", "images": 2, "concurrency": 3})
    assert result["failures"] == []
    load = json.loads(Path(arguments["report_path"]).read_text())["load"]
    # Two for each of three clients.
    assert (load["concurrency"], load["images"]) == (3, 3 * 2)
