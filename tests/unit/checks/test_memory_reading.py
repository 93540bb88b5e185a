"""Where memory is read: GPUs through nvidia-ml-py, containers through Docker's SDK, and the thread that does it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pynvml
import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks import container as container_state
from ansible_collections.inference.vllm.plugins.module_utils.checks.container import Container, ContainerError, State
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sampler
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.memory import GpuMemory
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support import fake_nvml
from support.fake_docker import NAME, FakeContainer, device_requests, fake_docker, requesting
from support.fake_nvml import FakeGpu
from support.plans import compose, gpu_plan

GIB = 2**30


def test_used_memory_is_that_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake_nvml.install(monkeypatch, FakeGpu(memory=(81559, 480, 1024)), FakeGpu(memory=(81559, 480, 2048)))
    with GpuMemory(pynvml) as memory:
        assert memory.used_gib() == {"GPU 0": 1.0, "GPU 1": 2.0}
        assert [gpu["usable_gib"] for gpu in memory.gpus] == [79.18, 79.18]
        assert memory.gpus[1]["uuid"] == "GPU-00000001"
    assert library.calls[-1] == "nvmlShutdown"


def test_a_driver_that_does_not_split_memory_is_read_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml.install(monkeypatch, FakeGpu(memory=(1024, 24, 100)), nvmlDeviceGetMemoryInfo_v2=-1)
    with GpuMemory(pynvml) as memory:
        assert memory.used_gib() == {"GPU 0": 124 / 1024}
        assert memory.gpus[0]["usable_gib"] == 1.0


@pytest.mark.parametrize("wanted", [("1",), ("GPU-00000001",)])
def test_gpus_are_chosen_by_number_or_uuid(monkeypatch: pytest.MonkeyPatch, wanted: tuple[str]) -> None:
    fake_nvml.install(monkeypatch, FakeGpu(), FakeGpu())
    with GpuMemory(pynvml, wanted) as memory:
        assert list(memory.used_gib()) == ["GPU 1"]


def test_a_gpu_that_cannot_be_opened_ends_nvml_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake_nvml.install(monkeypatch, FakeGpu(broken={"*": 15}))
    with pytest.raises(RefusalError, match="gpu_lost"), GpuMemory(pynvml):
        pass
    assert library.calls[-1] == "nvmlShutdown"


STARTED = "2026-01-01T00:00:00.5Z"


@pytest.mark.parametrize(
    ("compose", "state"),
    [
        ({}, State(True, 0, STARTED, 32.0)),
        (requesting(device_ids=["GPU-1", "GPU-2"]), State(True, 0, STARTED, 32.0, ("GPU-1", "GPU-2"))),
        (requesting(driver="cdi", device_ids=["nvidia.com/gpu=1"]), State(True, 0, STARTED, 32.0, ("1",))),
        (requesting(driver="cdi", device_ids=["nvidia.com/gpu=all"]), State(True, 0, STARTED, 32.0, all_devices=True)),
        (requesting(count=2), State(True, 0, STARTED, 32.0, device_count=2)),
        (requesting(count="all"), State(True, 0, STARTED, 32.0, all_devices=True)),
    ],
)
def test_state_of_a_container_by_the_gpus_that_its_compose_file_requests(compose: dict[str, Any], state: State) -> None:
    with fake_docker(FakeContainer(compose=compose)) as host, Container(NAME, host) as container:
        assert container.state() == state
        assert container.used_gib() == 3.0


def test_compose_files_of_releases_request_gpus_by_uuid_or_by_count() -> None:
    """By UUID where a driver listed the GPUs, else by count."""
    by_uuid, by_count = (device_requests(compose(gpu_plan(host))) for host in (None, "2x RTX 4090"))
    assert by_uuid and by_count
    assert (by_uuid[0]["DeviceIDs"], by_uuid[0]["Count"]) == (["GPU-00000000", "GPU-00000001"], 0)
    assert (by_count[0]["DeviceIDs"], by_count[0]["Count"]) == (None, 2)


@pytest.mark.parametrize(
    ("stats", "gib"),
    [
        ({"usage": 3 * GIB, "stats": {"inactive_file": GIB}}, 2.0),
        ({"usage": 3 * GIB, "stats": {"total_inactive_file": GIB, "inactive_file": 5}}, 2.0),
        ({"usage": 3 * GIB}, 3.0),
        ({"usage": GIB, "stats": {"inactive_file": 2 * GIB}}, 0.0),
    ],
)
def test_pages_that_the_kernel_may_drop_do_not_count(stats: dict[str, Any], gib: float) -> None:
    assert container_state.used_gib({"memory_stats": stats}) == gib


@pytest.mark.parametrize("stats", [{}, {"memory_stats": {}}, {"memory_stats": None}])
def test_a_container_without_figures_is_an_error(stats: dict[str, Any]) -> None:
    with pytest.raises(ContainerError, match="does not run"):
        container_state.used_gib(stats)


def test_an_unknown_container_and_a_dead_docker_are_told_apart() -> None:
    with fake_docker(FakeContainer()) as host, Container("none", host) as one, pytest.raises(ContainerError) as unknown:
        one.state()
    with Container(NAME, "unix:///nowhere.sock") as one, pytest.raises(ContainerError) as dead:
        one.state()
    assert "has no container none" in str(unknown.value)
    assert "unix:///nowhere.sock does not answer" in str(dead.value)


def test_a_sampler_reads_until_it_is_stopped() -> None:
    sampler = Sampler(lambda: {"x": 1.0}, 0.01)
    sampler.start()
    window = sampler.rest(0.05)
    sampler.stop()
    seen = list(sampler.samples)
    assert len(window.of(seen)) >= 2
    assert [sample.seconds for sample in seen] == sorted(sample.seconds for sample in seen)
    assert sampler.failure == ""
    assert sampler.cpu_seconds > 0


def test_a_slow_reading_is_waited_for() -> None:
    slow = threading.Event()

    def read() -> Mapping[str, float]:
        slow.wait(0.1)
        return {"x": 1.0}

    sampler = Sampler(read, 0.01)
    sampler.start()
    window = sampler.rest(0.0)
    sampler.stop()
    assert len(window.of(sampler.samples)) >= 2


def test_a_reading_that_fails_is_the_last_and_is_kept() -> None:
    def read() -> Mapping[str, float]:
        raise OSError("the driver is gone")

    sampler = Sampler(read, 0.01)
    sampler.start()
    sampler.rest(0.05)
    sampler.stop()
    assert (sampler.samples, sampler.failure) == ([], "the driver is gone")


def test_a_reading_that_hangs_does_not_hold_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{Sampler.__module__}._STUCK_SECONDS", 0.2)
    for_ever = threading.Event()

    def read() -> Mapping[str, float]:
        for_ever.wait(30)
        return {"x": 1.0}

    sampler = Sampler(read, 0.01)
    sampler.start()
    sampler.rest(0.05)
    sampler.stop()
    for_ever.set()
    assert "did not return" in sampler.failure
