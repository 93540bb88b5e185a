"""GPUs through the real bindings of nvidia-ml-py, with C functions of our own in the library's place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pynvml
import pytest

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import nvml
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import Missing, gpu_facts
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support import fake_nvml
from support.fake_nvml import MIB, NO_MEMORY_FIGURE, UNKNOWN, FakeGpu, FakeNvml

Install = Callable[..., FakeNvml]
RTX_4090: dict[str, Any] = {
    "name": "NVIDIA GeForce RTX 4090",
    "bus": "00000000:01:00.0",
    "device": 0x268410DE,
    "capability": (8, 9),
    "memory": (24564, 413, 1),
    "links": (),
    "ecc": None,
    "mig": None,
    "fabric": None,
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    return partial(fake_nvml.install, monkeypatch)


def test_data_centre_gpu(install: Install) -> None:
    library = install(FakeGpu(compute=((4711, 2048 * MIB),), graphics=((12, NO_MEMORY_FIGURE),)))
    gpus, problems = nvml.read(pynvml)
    assert problems == []
    gpu = gpu_facts(gpus[0])
    # The kernel log and the facts from nvidia-smi are added elsewhere.
    assert gpu.pop("missing") == {"xids": "not_reported"}
    assert gpu == {
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": "GPU-00000000",
        "pci_bus_id": "0000:53:00.0",
        "pci_device": "2330",
        "memory": {
            "total_mib": 81559,
            "total_gib": 79.65,
            "reserved_mib": 480,
            "reserved_gib": 0.47,
            "used_mib": 1010,
            "used_gib": 0.99,
            "free_mib": 80069,
            "free_gib": 78.19,
        },
        "compute_capability": 9.0,
        "driver_version": "580.105.08",
        "cuda_version": "13.0",
        "pcie": {"generation": 1, "generation_max": 5, "width": 8, "width_max": 16},
        "nvlink": {"present": True, "links": 18},
        "peers": [],
        "ecc": {"mode": True, "uncorrected_volatile": 2, "uncorrected_aggregate": 7},
        "mig": {"mode": False, "instances": 0},
        "persistence_mode": True,
        "fabric_state": "completed",
        "processes": [
            {"pid": 12, "name": None, "mib": None},
            {"pid": 4711, "name": "VLLM::EngineCore", "mib": 2048},
        ],
        "xids": None,
    }
    assert library.calls[-1] == "nvmlShutdown"


def test_consumer_gpus_lack_what_they_lack_and_say_so(install: Install) -> None:
    install(FakeGpu(**RTX_4090), FakeGpu(**RTX_4090 | {"bus": "00000000:41:00.0"}))
    gpus, problems = nvml.read(pynvml)
    gpu = gpu_facts(gpus[1])
    assert problems == []
    assert gpu["nvlink"] == {"present": False, "links": 0}
    assert gpu["peers"] == [{"index": 0, "path": "PHB", "p2p": "gpu_not_supported"}]
    assert gpu["missing"] == {
        "ecc.mode": "not_supported",
        "ecc.uncorrected_volatile": "not_supported",
        "ecc.uncorrected_aggregate": "not_supported",
        "mig.mode": "not_supported",
        "fabric_state": "not_supported",
        "xids": "not_reported",
    }


def test_peers_over_nvlink(install: Install) -> None:
    install(FakeGpu(), FakeGpu(bus="00000000:64:00.0"))
    gpus, _ = nvml.read(pynvml)
    assert gpus[0]["peers"] == [{"index": 1, "path": "NV", "p2p": "ok"}]


def test_some_links_down_and_mig_on(install: Install) -> None:
    install(FakeGpu(links=(1, 1, 0, 1), mig=1))
    gpu = nvml.read(pynvml)[0][0]
    assert (gpu["nvlink.present"], gpu["nvlink.links"], gpu["mig.mode"], gpu["mig.instances"]) == (True, 3, True, 2)


def test_driver_that_cannot_tell_reserved_memory(install: Install) -> None:
    install(FakeGpu(), nvmlDeviceGetMemoryInfo_v2=-1, nvmlDeviceGetGpuFabricInfoV=-1)
    gpu = nvml.read(pynvml)[0][0]
    assert gpu["memory.reserved_mib"] == Missing("not_in_this_driver")
    assert gpu["memory.used_mib"] == 480 + 1010
    assert gpu["fabric_state"] == Missing("not_in_this_driver")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (4, "gpu_no_permission"),
        (9, "driver_not_loaded"),
        (10, "driver_timeout"),
        (12, "driver_not_installed"),
        (18, "driver_library_mismatch"),
        (UNKNOWN, "nvml_error"),
    ],
)
def test_library_that_does_not_start(install: Install, code: int, problem: str) -> None:
    install(nvmlInitWithFlags=code)
    with pytest.raises(RefusalError) as caught:
        nvml.read(pynvml)
    assert [each.code for each in caught.value.refusals] == [problem]
    assert caught.value.refusals[0].fix


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (15, "gpu_lost"),
        (16, "gpu_needs_reset"),
        (11, "gpu_interrupt_fault"),
        (14, "gpu_corrupted_inforom"),
        (UNKNOWN, "gpu_unreachable"),
    ],
)
def test_one_gpu_that_cannot_be_opened(install: Install, code: int, problem: str) -> None:
    install(FakeGpu(), FakeGpu(broken={"*": code}))
    gpus, problems = nvml.read(pynvml)
    assert (gpus[0]["name"], gpus[1]) == ("NVIDIA H100 80GB HBM3", {"index": 1})
    assert [(each.code, "GPU 1" in each.message) for each in problems] == [(problem, True)]


def test_gpu_that_is_lost_while_it_is_read(install: Install) -> None:
    broken = dict.fromkeys(("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetEccMode"), 15)
    install(FakeGpu(broken=broken))
    gpus, problems = nvml.read(pynvml)
    assert gpus[0]["memory.total_mib"] == gpus[0]["ecc.mode"] == Missing("gpu_lost")
    assert [each.code for each in problems] == ["gpu_lost"]


def test_no_gpu(install: Install) -> None:
    install()
    gpus, problems = nvml.read(pynvml)
    assert (gpus, [each.code for each in problems]) == ([], ["no_devices_found"])
