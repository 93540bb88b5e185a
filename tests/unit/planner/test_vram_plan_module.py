"""Module inference.vllm.vram_plan: CPU and GPU plans, check mode, diff, idempotence and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.contracts import PlanFile
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import Machine
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import run as run_program
from ansible_collections.inference.vllm.plugins.module_utils.planner import cpu
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements
from ansible_collections.inference.vllm.plugins.modules import vram_plan as module
from support.modules import run_module
from support.paths import FIXTURES

TINY = catalogue.load("tiny-qwen3-vl").as_dict()
LARGE = catalogue.load("qwen3-vl-32b-instruct-fp8").as_dict()
FOURS = [{"name": "RTX 4090", "count": 2}]
REPORT = FIXTURES / "nvidia_smi" / "550.127.05-rtx4090.xml"
SMI = f"""#!/bin/sh
case "$*" in
  "-q -x") while read -r line; do echo "$line"; done <"{REPORT}" ;;
  "--query-gpu=index,uuid,compute_cap --format=csv,noheader")
    echo "0, GPU-00000000-0000-0000-0000-000000000000, 8.9"
    echo "1, GPU-00000001-0000-0000-0000-000000000001, 8.9" ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 16 GiB without a GPU."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree:         1000 kB\n")
    monkeypatch.setattr(module, "MEMINFO", meminfo)
    monkeypatch.setattr(module, "this_machine", lambda: Machine(run_program, tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(**arguments: Any) -> dict[str, Any]:
        return run_module(module, capsys, arguments)

    return call


def test_cpu_plan_has_the_flags_that_a_cpu_needs(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "home" / "plan.json"
    result = run(model=TINY, accelerator="cpu", path=str(path))
    assert (result["changed"], result["failed"]) == (True, False)
    plan = json.loads(path.read_text())
    assert plan == result["plan"]
    assert plan["flags"] == {
        "max-model-len": 4096,
        "max-num-seqs": 4,
        "enforce-eager": True,
        "limit-mm-per-prompt": {"image": 4, "video": 0},
        "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    assert plan["environment"] == {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    assert (plan["starts"], plan["survives"], plan["refusals"], plan["gpus"]) == (True, True, [], [])
    assert path.stat().st_mode & 0o777 == 0o644
    assert not list(path.parent.glob(".plan-*"))


def test_second_run_changes_nothing(run: Any, tmp_path: Path) -> None:
    arguments = {"model": LARGE, "gpus": FOURS, "path": str(tmp_path / "plan.json")}
    assert run(**arguments)["changed"] is True
    assert run(**arguments)["changed"] is False


def test_check_mode_predicts_the_change_and_writes_nothing(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = run(model=TINY, accelerator="cpu", path=str(path), _ansible_check_mode=True)
    assert result["changed"] is True
    assert result["diff"]["before"] == ""
    assert '"max-model-len": 4096' in result["diff"]["after"]
    assert not path.exists()


def test_diff_shows_both_plans(run: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "plan.json")
    run(model=TINY, accelerator="cpu", path=path)
    result = run(model=TINY, accelerator="cpu", path=path, requirements={"max_model_len": 2048})
    assert '"max-model-len": 4096' in result["diff"]["before"]
    assert '"max-model-len": 2048' in result["diff"]["after"]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ({"cpu_kv_cache_gib": 99}, "host_memory_too_small", "vram_plan_cpu_kv_cache_gib 99"),
        ({"cpu_kv_cache_gib": -1}, "impossible_value", "vram_plan_cpu_kv_cache_gib"),
        ({"requirements": {"max_model_len": "300000"}}, "context_beyond_model", "vram_plan_max_model_len: 300000"),
        ({"requirements": {"max_model_len": "-3"}}, "impossible_value", "vram_plan_max_model_len"),
        ({"requirements": {"max_model_len": "many"}}, "impossible_value", "vram_plan_max_model_len"),
        ({"model": LARGE}, "model_not_for_cpu", "vllm_accelerator is cpu"),
        ({"model": TINY | {"variant": "chat"}}, "invalid_catalogue_entry", "variant"),
    ],
)
def test_refused_plan_changes_nothing(
    run: Any, tmp_path: Path, arguments: dict[str, Any], code: str, named: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("what was there")
    result = run(**{"model": TINY, "accelerator": "cpu", "path": str(path)} | arguments)
    assert result["failed"] is True
    assert result["plan"]["refusals"][0]["code"] == code
    assert named in result["msg"]
    assert path.read_text() == "what was there"


def test_cpu_cache_must_hold_one_request() -> None:
    plan = cpu.plan_cpu(
        catalogue.load("tiny-qwen3-vl"), Requirements(images_per_prompt=0), memory_gib=16, kv_cache_gib=0
    )
    assert [refusal.code for refusal in plan.refusals] == ["kv_cache_too_small"]
    assert plan.flags["limit-mm-per-prompt"] == {"image": 0, "video": 0}


def test_cpu_cache_must_hold_all_concurrent_requests() -> None:
    def plan(requests: int) -> PlanFile:
        asked = Requirements(max_model_len=4096, concurrent_requests=requests)
        return cpu.plan_cpu(catalogue.load("tiny-qwen3-vl"), asked, memory_gib=16, kv_cache_gib=1)

    most = plan(1).kv_cache_tokens // 4096
    assert plan(most).refusals == ()
    assert plan(most).flags["max-num-seqs"] >= most
    (reason,) = plan(most + 1).refusals
    assert reason.code == "kv_cache_too_small"
    assert f"{most + 1} requests may have 4096 each" in reason.message


def test_gpu_plan_from_facts(run: Any) -> None:
    result = run(model=LARGE, gpus=FOURS)
    assert (result["changed"], result["failed"]) == (False, False)
    plan = result["plan"]
    assert plan["accelerator"] == "nvidia"
    assert [(gpu["name"], gpu["uuid"], gpu["selected"]) for gpu in plan["gpus"]] == [("RTX 4090", None, True)] * 2
    assert plan["flags"]["tensor-parallel-size"] == 2
    assert "  --gpu-memory-utilization " in result["table"]


def test_gpu_plan_names_variables_and_walks_the_ladder(run: Any, tmp_path: Path) -> None:
    ladder = [catalogue.load(name).as_dict() for name in LARGE["alternatives"]]
    path, wanted = tmp_path / "plan.json", {"max_model_len": "131072"}
    result = run(model=LARGE, gpus=FOURS, alternatives=ladder, requirements=wanted, path=str(path))
    assert result["failed"] is True
    assert result["msg"].startswith("[context_too_long] vram_plan_max_model_len: 131072 tokens need 8.00 GiB")
    assert [rung["model"] for rung in result["plan"]["alternatives"] if rung["fits"]] == ["qwen3-vl-32b-instruct-awq"]
    assert not path.exists()


def test_gpus_of_the_host_by_its_driver(run: Any, machine: Path) -> None:
    program = machine / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    rows = run(model=LARGE)["plan"]["gpus"]
    assert [(row["index"], row["uuid"], row["name"], row["total_gib"]) for row in rows] == [
        (0, "GPU-00000000-0000-0000-0000-000000000000", "RTX 4090", 23.52),
        (1, "GPU-00000001-0000-0000-0000-000000000001", "RTX 4090", 23.52),
    ]


def test_gpus_of_the_host_by_its_pci_bus(run: Any, machine: Path) -> None:
    for slot, (vendor, kind, device) in {
        "0000:01:00.0": ("0x10de", "0x030000", "0x2684"),
        "0000:01:00.1": ("0x10de", "0x040300", "0x22ba"),
        "0000:02:00.0": ("0x10de", "0x030000", "0x2684"),
        "0000:03:00.0": ("0x1a03", "0x030000", "0x2000"),
    }.items():
        folder = machine / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("class", kind), ("device", device)):
            (folder / name).write_text(value + "\n")
    rows = run(model=LARGE)["plan"]["gpus"]
    assert [(row["name"], row["uuid"]) for row in rows] == [("RTX 4090", None)] * 2


def test_host_without_a_gpu_is_refused(run: Any) -> None:
    result = run(model=LARGE)
    assert result["failed"] is True
    assert "vram_plan_gpus" in result["msg"]


def test_engine_version_decides_what_is_counted(run: Any) -> None:
    requirements = {"max_pixels": "8388608", "gpu_memory_utilization": "0.85", "max_num_seqs": "32"}
    old, new = (
        run(model=LARGE, gpus=[{"name": "H100"}], engine_image={"tag": tag}, requirements=requirements)["plan"][
            "kv_cache_tokens"
        ]
        for tag in ("v0.26.0", "")
    )
    assert old > new


@pytest.mark.parametrize(
    ("image", "version"),
    [
        (None, versions.DEPLOYED),
        ({"tag": ""}, versions.DEPLOYED),
        ({"tag": "v0.40.0"}, "0.40.0"),
        ({"tag": "v0.32.1-cu129"}, "0.32.1"),
        ({"tag": "nightly", "vllm_version": "0.34.0"}, "0.34.0"),
        ({"source": "load", "tag": "v0.40.0", "archive_reference": "registry:5000/vllm:v0.36.0"}, "0.36.0"),
        # An image for CPUs: role engine_image refuses it on a host with GPUs.
        ({"source": "build", "tag": "v0.40.0"}, versions.DEPLOYED),
    ],
)
def test_the_plan_is_for_the_version_in_the_image(run: Any, image: dict[str, str] | None, version: str) -> None:
    result = run(model=LARGE, gpus=FOURS, **({} if image is None else {"engine_image": image}))
    assert result["plan"]["engine"]["version"] == version
    assert f"Engine   vLLM {version} (no boot of this version was measured; planned " in result["table"]


@pytest.mark.parametrize(
    ("image", "code", "named"),
    [
        ({"tag": "nightly"}, "vllm_version_unknown", "engine_image_tag is 'nightly'"),
        ({"tag": "v0.33.0rc1"}, "vllm_version_unknown", "engine_image_tag is 'v0.33.0rc1'"),
        (
            {"source": "load", "archive_reference": "localhost/vllm:latest"},
            "vllm_version_unknown",
            "engine_image_archive_reference is 'localhost/vllm:latest'",
        ),
        ({"vllm_version": "newest"}, "vllm_version_malformed", "engine_image_vllm_version is 'newest'"),
    ],
)
def test_an_image_that_tells_no_version_is_refused(run: Any, image: dict[str, str], code: str, named: str) -> None:
    result = run(model=LARGE, gpus=FOURS, engine_image=image)
    assert result["failed"] is True
    assert [refusal["code"] for refusal in result["plan"]["refusals"]] == [code]
    assert named in result["msg"]
    assert "engine_image_vllm_version" in result["msg"]
