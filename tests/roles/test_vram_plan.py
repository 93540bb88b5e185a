"""State of a host after role vram_plan."""

from __future__ import annotations

import json

import pytest

PLAN = "/opt/vllm/plan.json"


@pytest.fixture(scope="module")
def plan(host):
    return json.loads(host.file(PLAN).content_string)


@pytest.fixture(scope="module")
def on_cpu(host):
    return host.check_output("hostname") == "vram-plan-cpu"


def test_plan_is_world_readable_and_the_only_file(host):
    file = host.file(PLAN)
    assert file.is_file
    assert (file.user, oct(file.mode)) == ("root", "0o644")
    assert host.check_output("ls -A /opt/vllm") == "plan.json"


def test_plan_fits(plan):
    assert (plan["starts"], plan["survives"], plan["refusals"]) == (True, True, [])


def test_flags_belong_to_the_accelerator(plan, on_cpu):
    flags = plan["flags"]
    if on_cpu:
        assert (plan["accelerator"], plan["model"], plan["gpus"]) == ("cpu", "tiny-qwen3-vl", [])
        assert flags["enforce-eager"] is True
        assert flags["max-model-len"] == 4096
        assert plan["environment"] == {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
    else:
        assert (plan["accelerator"], plan["model"]) == ("nvidia", "qwen3-vl-32b-instruct-fp8")
        assert [(gpu["name"], gpu["selected"]) for gpu in plan["gpus"]] == [("RTX 4090", True)] * 2
        assert flags["tensor-parallel-size"] == 2
        assert flags["kv-cache-dtype"] == "fp8"
        assert 32_768 < flags["max-model-len"] < 131_072
        assert plan["per_gpu_gib"]["headroom"] > 0
