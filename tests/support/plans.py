"""Files between the steps as their own writers make them, for tests of the parts that read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pynvml
import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.contracts import (
    ImageFile,
    LockFile,
    ManifestFile,
    PlanFile,
)
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import Machine, Output, read_gpus
from ansible_collections.inference.vllm.plugins.module_utils.image.settings import record
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.cpu import plan_cpu
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import solve
from ansible_collections.inference.vllm.plugins.module_utils.service import releases
from ansible_collections.inference.vllm.plugins.module_utils.service.design import Inputs, design
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import FileSpec, Lock
from support import fake_nvml
from support.fake_nvml import FakeGpu
from support.paths import ROLES, ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RTX_4090 = FakeGpu(
    name="NVIDIA GeForce RTX 4090",
    device=0x268410DE,
    capability=(8, 9),
    memory=(24564, 480, 4),
    links=(),
    ecc=None,
    mig=None,
    fabric=None,
)
CPU_MODEL, GPU_MODEL = "tiny-qwen3-vl", "qwen3-vl-32b-instruct-fp8"


def read_host(count: int, gpu: FakeGpu = RTX_4090) -> gpus.Host:
    """What the planner knows of a host with these GPUs, read through NVML."""
    with pytest.MonkeyPatch.context() as patch:
        fake_nvml.install(patch, *(replace(gpu, bus=f"00000000:{number + 1:02x}:00.0") for number in range(count)))
        machine = Machine(lambda _: Output(None, err="program_missing"), Path("/nonexistent"), pynvml)
        return gpus.from_host(read_gpus(machine))


def gpu_plan(host: gpus.Host | str | None = None, model: str = GPU_MODEL, **requirements: Any) -> PlanFile:
    """A plan for GPUs: two RTX 4090 that were read of a host, unless another host or ``"2x H100"`` is given."""
    where = gpus.parse(host) if isinstance(host, str) else host or read_host(2)
    loaded = from_entry(catalogue.load(model))
    engine = engines.engine(versions.DEPLOYED, is_moe=loaded.is_moe)
    return solve(Case(loaded, where, engine, str), Requirements(**requirements), []).file()


def sized(plan: PlanFile, **changed: Any) -> PlanFile:
    """The plan with round sizes of a GPU, for tests that compare measured memory with them."""
    sizes = {"kv_cache": 2.0, "card": 23.5, "resident": 20.5, "step": 1.5}
    return replace(plan, per_gpu_gib={**(plan.per_gpu_gib or {}), **sizes}, **changed)


def cpu_plan(model: str = CPU_MODEL) -> PlanFile:
    """A plan for the CPU of a host with 16 GiB, with all defaults."""
    return plan_cpu(catalogue.load(model), Requirements(), memory_gib=16.0, kv_cache_gib=1)


def pulled_image(version: str = versions.DEPLOYED) -> ImageFile:
    """The official image, by digest."""
    name = "docker.io/vllm/vllm-openai@sha256:" + "2" * 64
    return record(name, "pull", version, {"Id": "sha256:" + "3" * 64, "RepoDigests": [name]})


def built_image() -> ImageFile:
    """The CPU image that role engine_image builds."""
    return record("localhost/vllm-cpu:0.32.0-0123456789ab", "build", "0.32.0", {"Id": "sha256:" + "1" * 64})


def lock(model: str, commit: str = COMMIT) -> LockFile:
    """The lock of a model, with one file."""
    repository = catalogue.load(model).repository
    return Lock(repository, "main", commit, (FileSpec("config.json", 2, "4" * 64),)).file()


def settings(**changed: Any) -> dict[str, Any]:
    """Variables of roles vllm and vllm_service: their defaults, and what is changed."""
    files = (ROLES / role / "defaults" / "main.yml" for role in ("vllm", "vllm_service"))
    return {name: value for file in files for name, value in yaml.safe_load(file.read_text()).items()} | changed


def inputs(plan: PlanFile, image: ImageFile | None = None, **changed: Any) -> Inputs:
    """What a release of that plan is made from."""
    made = image or (pulled_image() if plan.accelerator == "nvidia" else built_image())
    return Inputs(catalogue.load(plan.model).as_dict(), plan, made, lock(plan.model), settings(**changed))


def compose(plan: PlanFile, **changed: Any) -> dict[str, Any]:
    """The compose file of a release of that plan, rendered as Ansible renders it."""
    loader = jinja2.FileSystemLoader(ROOT / "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    values = design(inputs(plan, **changed), "inference.vllm 0.0.0")["compose"]
    return dict(yaml.safe_load(environment.get_template("compose.yaml.j2").render(values)))


def manifest(plan: PlanFile, **changed: Any) -> ManifestFile:
    """The manifest of a release of that plan."""
    made = design(inputs(plan, **changed), "inference.vllm 0.0.0")
    release = releases.design(made["prefix"], {"vllm.yaml": made["vllm_yaml"]}, {}, made["manifest"])
    return ManifestFile.from_dict(release.manifest, "manifest.json")
