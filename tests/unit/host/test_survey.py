"""What preflight finds on a host, and the table that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.filter.preflight import preflight_row, preflight_table
from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import Machine, Output
from ansible_collections.inference.vllm.plugins.module_utils.host.survey import name_of, survey

MEMINFO = "MemTotal:       131926520 kB\nMemFree:         1000000 kB\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text(MEMINFO, encoding="utf-8")
    return Machine(lambda argv: Output(None, err="program_missing"), tmp_path)


def test_bare_host_has_nothing(machine: Machine, tmp_path: Path) -> None:
    found = survey(tmp_path / "vllm", lambda argv: None, machine)
    nothing = dict.fromkeys(("driver", "docker", "toolkit", "release"))
    assert found == {"memory_gib": 125.8, "gpus": [], **nothing}


def test_versions_and_release_are_found(machine: Machine, tmp_path: Path) -> None:
    home = tmp_path / "vllm"
    (home / "releases" / "model-v1-abc").mkdir(parents=True)
    (home / "current").symlink_to("releases/model-v1-abc")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (builder)\n",
        encoding="utf-8",
    )
    output = {"docker": "28.5.1\n", "nvidia-ctk": "NVIDIA Container Toolkit CLI version 1.19.1\ncommit: abc\n"}
    found = survey(home, lambda argv: output[argv[0]], machine)
    assert (found["driver"], found["docker"], found["toolkit"]) == ("580.95.05", "28.5.1", "1.19.1")
    assert found["release"] == "model-v1-abc"


@pytest.mark.parametrize(
    ("name", "device", "shown"),
    [("NVIDIA GeForce RTX 4090", "2684", "RTX 4090"), (None, "2684", "RTX 4090"), (None, "ffff", "PCI ffff")],
)
def test_name_of_a_gpu(name: str | None, device: str, shown: str) -> None:
    assert name_of({"name": name, "pci_device": device}) == shown


def test_table_lists_the_planned_changes() -> None:
    bare = {"memory_gib": 125.8, "gpus": [], "driver": None, "docker": None, "toolkit": None, "release": None}
    ready = bare | {"gpus": ["RTX 4090"] * 2, "driver": "580.95.05", "docker": "28.5.1", "release": "old"}
    models = [catalogue.load(name).as_dict() for name in ("qwen3-vl-32b-instruct-fp8", "tiny-qwen3-vl")]
    rows = [
        preflight_row({"free_gib": 800.04, "found": ready}, "gpu1", "Ubuntu 24", "nvidia", models[0]),
        preflight_row({"free_gib": 60.0, "found": bare}, "demo", "Debian 12", "cpu", models[1]),
    ]
    header, first, second = preflight_table(rows).splitlines()
    assert header.split()[0] == "HOST"
    assert " ".join(first.split()) == (
        "gpu1 Ubuntu 24 126 GiB 800 GiB free 2x RTX 4090 580.95.05, checked 28.5.1, checked install"
        " qwen3-vl-32b-instruct-fp8, 33.1 GiB replace old"
    )
    assert " ".join(second.split()) == (
        "demo Debian 12 126 GiB 60 GiB free not used - install - tiny-qwen3-vl, 3 MiB first release"
    )
