"""The benchmark against wrong servers and failing tools: each failure has a name, and the key is nowhere."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import run as benchmark_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import DRIVERS
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Goals, Workload
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.run import Comparison, Settings
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import BenchmarkResult
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check
from ansible_collections.inference.vllm.plugins.modules import benchmark
from support.fake_docker import IMAGE, NAME, FakeContainer, FakeTool, fake_docker
from support.lying_server import KEY, MODEL, lying_server
from support.modules import run_module
from support.paths import FIXTURES
from support.plans import cpu_plan, manifest

RAW = json.loads((FIXTURES / "vllm_bench/0.32.0-image.json").read_text())
WORKLOADS = (Workload("text", 64, 16, (1, 2)), Workload("image", 16, 8, (2,), images=1, side=256))
SETTINGS = Settings(
    driver=DRIVERS["vllm"],
    workloads=WORKLOADS,
    goals=Goals(2000, 200),
    again=True,
    seed=None,
    container=NAME,
    image="",
    tokenizer="",
    network="host",
    docker_host="",
    timeout=5.0,
    comparisons=(),
    tolerance=0.1,
    gate=False,
    key={"gpus": ["cpu"]},
)
RELEASE = manifest(cpu_plan())
POINTS = ["bench_text_1", "bench_text_2", "bench_text_2_again", "bench_image_2", "bench_image_2_again"]


def measured(lie: str = "", fake: FakeContainer | None = None, **changes: Any) -> BenchmarkResult:
    fake = fake or FakeContainer(tool=FakeTool(json.dumps(RAW)))
    with fake_docker(fake) as docker_host, lying_server(lie) as base_url:
        settings = replace(SETTINGS, **{"docker_host": docker_host, **changes})
        return benchmark_run.run(Target(base_url, KEY, MODEL, timeout=5.0), "r1", settings)


def failed(result: BenchmarkResult) -> dict[str, str | None]:
    for item in result.verdict.checks:
        assert item.ok or item.message.startswith(f"{item.runbook}: ")
    assert KEY not in result.to_json()
    assert BenchmarkResult.from_json(result.to_json(), "benchmark.json") == result
    return {item.code: item.runbook for item in result.verdict.checks if not item.ok}


def check(result: BenchmarkResult, code: str) -> Check:
    return next(item for item in result.verdict.checks if item.code == code)


def test_every_point_is_measured_and_kept() -> None:
    tool = FakeTool(json.dumps(RAW))
    result = measured(fake=FakeContainer(tool=tool))
    assert failed(result) == {}
    assert [item.code for item in result.verdict.checks] == ["benchmark_endpoint", "benchmark_tool", *POINTS]
    assert check(result, "bench_text_1").value == 51.1
    assert [point.concurrency for point in result.points] == [1, 2, 2, 2, 2]
    assert len(tool.made) == tool.removed == len(POINTS)
    assert result.tool == IMAGE
    assert all("bench serve" in point.command for point in result.points)


def test_the_tool_runs_closed_and_the_key_is_a_file_of_it_alone() -> None:
    tool = FakeTool(json.dumps(RAW))
    measured(fake=FakeContainer(tool=tool))
    made = tool.made[0]
    assert KEY not in json.dumps(made)
    with tarfile.open(fileobj=io.BytesIO(tool.archives[0])) as archive:
        (member,) = archive.getmembers()
        content = archive.extractfile(member)
        assert content
        assert content.read().decode() == KEY
    assert made["User"] == "2000:0"
    assert made["Image"] == IMAGE
    assert made["HostConfig"]["CapDrop"] == ["ALL"]
    assert made["HostConfig"]["Binds"] == ["/opt/vllm/models/a:/model:ro"]
    assert made["HostConfig"]["NetworkMode"] == "host"
    assert "/model" in made["Cmd"]


@pytest.mark.parametrize("name", DRIVERS)
def test_the_key_is_in_the_variable_that_the_tool_reads(name: str, tmp_path: Path) -> None:
    tool = FakeTool(json.dumps(RAW))
    measured(fake=FakeContainer(tool=tool), driver=DRIVERS[name])
    entry, command = tool.made[0]["Entrypoint"], tool.made[0]["Cmd"]
    assert command[0] == name
    # As a shell runs it, with a tool of that name in the folder of the published image and the key beside it.
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / name).write_text('#!/bin/sh\nenv; echo "$@"\n')
    (folder / name).chmod(0o755)
    (tmp_path / "vllm-bench-key").write_text(KEY)
    words = [part.replace("/tmp/", f"{tmp_path}/") for part in entry]
    words[-1] = str(folder)
    run = subprocess.run([*words, *command], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert f"{DRIVERS[name].key_variable}={KEY}" in run.stdout.splitlines()
    assert run.stdout.splitlines()[-1] == " ".join(command[1:])


def test_guidellm_measures_as_well() -> None:
    raw = (FIXTURES / "guidellm/0.8.1-image.json").read_text()
    tool = FakeTool(raw)
    result = measured(fake=FakeContainer(tool=tool), driver=DRIVERS["guidellm"], image=IMAGE)
    assert failed(result) == {}
    assert result.driver == "guidellm run"
    assert all(point.command.startswith("guidellm run ") for point in result.points)
    assert KEY not in json.dumps(tool.made)


def test_an_image_without_guidellm_is_named() -> None:
    for code, log in ((127, "sh: exec: guidellm: not found"), (2, "Error: No such command 'run'. Did you mean")):
        tool = FakeTool(code=code, log=log)
        found = measured(fake=FakeContainer(tool=tool), driver=DRIVERS["guidellm"])
        assert set(failed(found).values()) == {"bench_tool_missing"}
        assert "the image has no guidellm run" in check(found, "bench_text_1").message


def test_each_benchmark_has_new_prompts() -> None:
    assert measured().seed != measured().seed
    assert measured(seed=7).seed == 7


TOOLS = {
    "no_such_image": (FakeTool(image=False), "bench_tool_missing"),
    "no_bench_in_it": (FakeTool(code=127, log="vllm: not found"), "bench_tool_missing"),
    "dies": (FakeTool(code=1, log="Traceback\nValueError: no"), "bench_failed"),
    "no_result": (FakeTool(result=None), "bench_failed"),
    "not_json": (FakeTool(result="{"), "bench_failed"),
    "no_object": (FakeTool(result="[]"), "bench_failed"),
    "lacks_figures": (FakeTool(result="{}"), "bench_failed"),
    "half_answered": (FakeTool(json.dumps({**RAW, "failed": 2})), "bench_failed"),
    "none_sent": (FakeTool(json.dumps({**RAW, "completed": 0})), "bench_failed"),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_that_fails_is_named(name: str) -> None:
    tool, failure = TOOLS[name]
    found = failed(measured(fake=FakeContainer(tool=tool)))
    assert set(found.values()) == {failure}
    assert set(POINTS) <= set(found)


def test_a_tool_that_never_ends_is_stopped() -> None:
    tool = FakeTool(code=None)
    found = failed(measured(fake=FakeContainer(tool=tool), timeout=0.3, again=False, workloads=WORKLOADS[1:]))
    assert found == {"bench_image_2": "timeout"}
    assert tool.removed == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"container": "none"}, "No such container"),
        ({"container": ""}, "neither a container nor an image"),
        ({"docker_host": "unix:///nowhere.sock"}, "Docker at unix:///nowhere.sock fails"),
    ],
)
def test_without_a_tool_nothing_is_green(changes: dict[str, Any], word: str) -> None:
    result = measured(**changes)
    assert failed(result) == dict.fromkeys(("benchmark_tool", *POINTS), "bench_tool_missing")
    assert word in check(result, "benchmark_tool").message


def test_without_a_tokenizer_nothing_is_green_and_a_folder_can_be_named() -> None:
    tool = FakeTool(json.dumps(RAW))
    bare = FakeContainer(tool=tool, mounts=())
    assert "no folder with a tokenizer" in check(measured(fake=bare), "benchmark_tool").message
    assert failed(measured(fake=bare, tokenizer="/srv/tokenizer")) == {}
    assert tool.made[-1]["HostConfig"]["Binds"] == ["/srv/tokenizer:/tokenizer:ro"]


@pytest.mark.parametrize(
    ("lie", "name"), [("wrong_key", "wrong_key"), ("other_model", "unknown_model"), ("html_everywhere", "bad_response")]
)
def test_a_wrong_server_is_not_measured(lie: str, name: str) -> None:
    tool = FakeTool(json.dumps(RAW))
    assert set(failed(measured(lie, FakeContainer(tool=tool))).values()) == {name}
    assert not tool.made


@pytest.fixture
def former(tmp_path: Path) -> Path:
    path = tmp_path / "former.json"
    path.write_text(measured().to_json())
    return path


def slow() -> FakeContainer:
    return FakeContainer(tool=FakeTool(json.dumps({**RAW, "median_ttft_ms": 900.0})))


def test_what_is_slower_is_a_warning_and_with_the_gate_a_failure(former: Path) -> None:
    held = (Comparison("baseline", former),)
    assert failed(measured(comparisons=held)) == {}
    warned = measured(fake=slow(), comparisons=held)
    assert failed(warned) == {"benchmark_baseline": "slower"}
    assert check(warned, "benchmark_baseline").value == len(POINTS)
    assert "ttft_ms.median 215.9 -> 900 ms" in check(warned, "benchmark_baseline").message
    assert warned.verdict.ok
    assert not measured(fake=slow(), comparisons=held, gate=True).verdict.ok
    assert warned.comparisons["baseline"].release == "r1"


def test_a_comparison_of_texts_takes_texts_only(former: Path) -> None:
    result = measured(comparisons=(Comparison("text_regression", former, ("text",)),))
    assert {row.workload for row in result.comparisons["text_regression"].rows} == {"text"}


def test_a_former_result_may_be_missing_but_not_broken(tmp_path: Path) -> None:
    assert failed(measured(comparisons=(Comparison("baseline", tmp_path / "none.json"),))) == {}
    (tmp_path / "broken.json").write_text("{")
    broken = measured(comparisons=(Comparison("baseline", tmp_path / "broken.json"),))
    assert failed(broken) == {"benchmark_baseline": "result_unreadable"}


# --- The module -----------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "api_key").write_text(f"{KEY}\n")
    (tmp_path / "manifest.json").write_text(RELEASE.to_json())
    container = FakeContainer(tool=FakeTool(json.dumps(RAW)))
    with lying_server() as base_url, fake_docker(container) as docker_host:
        yield {
            **{"base_url": base_url, "model": MODEL, "api_key_file": str(tmp_path / "api_key"), "container": NAME},
            **{"docker_host": docker_host, "release": "r1", "report_path": str(tmp_path / "benchmark.json")},
            **{"manifest_path": str(tmp_path / "manifest.json"), "home": str(tmp_path), "timeout": 5},
            "workloads": [{"name": "text", "input_tokens": 8, "output_tokens": 8, "concurrency": [1]}],
            "comparisons": [{"name": "baseline", "against": "same"}],
        }


def run(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]) -> dict[str, Any]:
    return run_module(benchmark, capsys, arguments, KEY)


def test_the_first_good_result_is_the_baseline_of_the_next(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    first = run(capsys, arguments | {"save_as": "kept"})
    assert (first["failed"], first["changed"]) == (False, False)
    assert len(list((tmp_path / "baselines").glob("*.json"))) == 2
    assert (tmp_path / "baselines" / "kept.json").stat().st_mode & 0o777 == 0o640
    second = run(capsys, arguments | {"comparisons": [*arguments["comparisons"], {"name": "kept", "against": "kept"}]})
    codes = [item["code"] for item in second["verdict"]["checks"]]
    assert codes[-2:] == ["benchmark_baseline", "benchmark_kept"]
    # Another model is another service.
    other = replace(RELEASE, model=replace(RELEASE.model, commit="1" * 40))
    (tmp_path / "manifest.json").write_text(other.to_json())
    assert "benchmark_baseline" not in [item["code"] for item in run(capsys, arguments)["verdict"]["checks"]]


def test_the_current_release_can_be_the_measure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    run(capsys, arguments)
    (tmp_path / "reports" / "r0").mkdir(parents=True)
    (tmp_path / "releases" / "r0").mkdir(parents=True)
    (tmp_path / "benchmark.json").rename(tmp_path / "reports" / "r0" / "benchmark.json")
    (tmp_path / "current").symlink_to("releases/r0")
    result = run(capsys, arguments | {"comparisons": [{"name": "release", "against": "current"}]})
    assert result["verdict"]["checks"][-1]["code"] == "benchmark_release"


def test_a_text_model_is_measured_without_the_workloads_that_have_images(
    capsys: pytest.CaptureFixture[str], arguments: dict[str, Any]
) -> None:
    seeing = {"name": "image", "input_tokens": 8, "output_tokens": 8, "images": 1, "side": 32, "concurrency": [1]}
    both = arguments | {"workloads": [*arguments["workloads"], seeing]}

    def measured(images: int) -> set[str]:
        checks = run(capsys, both | {"max_images": images})["verdict"]["checks"]
        return {check["code"] for check in checks if check["code"] in ("bench_text_1", "bench_image_1")}

    assert measured(0) == {"bench_text_1"}
    assert measured(1) == measured(-1) == {"bench_text_1", "bench_image_1"}


def test_a_bad_result_is_kept_as_nobodys_baseline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    result = run(capsys, arguments | {"container": "none", "save_as": "kept"})
    assert result["failed"] is True
    assert not (tmp_path / "baselines").exists()
    assert json.loads((tmp_path / "benchmark.json").read_text())["ok"] is False


def test_all_bad_input_is_refused_and_leaves_no_old_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    for change, code in (
        ({"workloads": []}, "bad_workload"),
        ({"workloads": [*arguments["workloads"], *arguments["workloads"]]}, "bad_workload"),
        ({"workloads": [arguments["workloads"][0] | {"images": 1}]}, "bad_workload"),
        ({"workloads": [arguments["workloads"][0] | {"images": 1, "side": 32}], "max_images": 0}, "bad_workload"),
        ({"manifest_path": "/none"}, "manifest_unusable"),
        ({"tolerance": -1}, "bad_number"),
    ):
        (tmp_path / "benchmark.json").write_text("of another day")
        result = run(capsys, arguments | change)
        assert [refusal["code"] for refusal in result["refusals"]] == [code]
        assert not (tmp_path / "benchmark.json").exists()


def test_check_mode_measures_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any]
) -> None:
    assert run(capsys, arguments | {"_ansible_check_mode": True}).get("failed", False) is False
    assert not (tmp_path / "benchmark.json").exists()
