"""Values of the host: read on this machine, and judged in the smoke test down to the report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks import host
from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.report import view as report
from ansible_collections.inference.vllm.plugins.modules import smoke_test
from support.lying_server import KEY, lying_server
from support.modules import run_module


def test_disk_left_is_what_df_shows(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["df", "--output=avail", "--block-size=1", tmp_path], capture_output=True, text=True, check=True
    )
    # Other programs write to the same disk.
    assert host.disk_left(tmp_path) == pytest.approx(int(shown.stdout.split()[-1]) / 2**30, rel=0.05)


def test_disk_left_of_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        host.disk_left(tmp_path / "none")


@pytest.mark.parametrize(
    ("limits", "state"),
    [({"warn": 0, "fail": 0}, "ok"), ({"warn": 1e9, "fail": 0}, "warning"), ({"warn": 1e9, "fail": 1e9}, "failed")],
)
def test_disk_left_is_in_the_verdict_and_in_the_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, limits: dict[str, Any], state: str
) -> None:
    (tmp_path / "api_key").write_text(f"{KEY}\n")
    result = tmp_path / "smoke.json"
    with lying_server() as base_url:
        arguments: dict[str, Any] = {"base_url": base_url, "api_key_file": str(tmp_path / "api_key"), "extent": "short"}
        arguments |= {"release": "r1", "report_path": str(result), "fail_on_verdict": False}
        arguments |= {"home": str(tmp_path), "host_limits": json.dumps({"disk_left": limits})}
        run_module(smoke_test, capsys, arguments, KEY)
    verdict = combine("r1", {"smoke": result.read_text()})
    assert verdict.ok is (state != "failed")
    seen = report.view({"verdict.json": verdict.to_json()}, "r1", "gpu1", "", "/r")
    (row,) = (check for check in seen["checks"] if check["code"] == "disk_left")
    assert row["status"] == state
    assert [problem["path"] for problem in seen["problems"]] == ["docs/runbooks/disk_low.md"] * (state == "failed")
