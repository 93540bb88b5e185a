"""The memory check against wrong servers, missing GPUs and stopped containers: each failure has a name."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sampler, Window
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import VramResult
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import run as vram_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import Expected, expected_of, unplanned
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.load import Load
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.run import Settings
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, PlanFile, Verdict
from support import boots, fake_nvml
from support.fake_docker import NAME, FakeContainer, fake_docker, requesting
from support.fake_nvml import FakeGpu
from support.lying_server import KEY, KV_CACHE_TOKENS, MEMORY_LIES, MODEL, lying_server
from support.plans import compose, cpu_plan, gpu_plan, manifest, read_host, sized

# Checks that hang on the load.
LOADED = ("load_answered", "vram_under_load", "vram_after")


@pytest.fixture(autouse=True)
def docker_learns_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker is given 10 s to learn of a death; the fake one needs less."""
    monkeypatch.setattr(vram_run, "_DEATH_SECONDS", 1.0)


CODES = [
    *("vram_endpoint", "kv_cache_tokens", "load_answered"),
    *("vram_ready", "vram_under_load", "vram_after", "restarts"),
]
LIMITS = {"max-num-seqs": 4, "max-num-batched-tokens": 2048, "mm-processor-kwargs": {"max_pixels": 1048576}}


def nvidia_plan(host: Any = None, **requirements: Any) -> PlanFile:
    """A plan for two GPUs that predicts what the server reports."""
    plan = gpu_plan(host, **requirements)
    return sized(plan, kv_cache_tokens=KV_CACHE_TOKENS, flags={**plan.flags, **LIMITS})


NVIDIA_MANIFEST = manifest(nvidia_plan())
CPU_MANIFEST = manifest(replace(cpu_plan(), kv_cache_tokens=KV_CACHE_TOKENS))
NVIDIA, CPU = expected_of(NVIDIA_MANIFEST), expected_of(CPU_MANIFEST)
QUICK = Settings(
    metrics_url="",
    container=NAME,
    docker_host="",
    interval=0.01,
    tolerance=0.5,
    load=Load(concurrency=2, rounds=2, images=4, max_pixels=65536, timeout=5.0, settle=0.06),
)


@dataclass
class Outcome:
    """What the check returns, and its plain verdict."""

    file: VramResult
    row: dict[str, Any] | None

    @property
    def verdict(self) -> Verdict:
        return self.file.verdict


def checked(
    lie: str = "",
    container: FakeContainer | None = None,
    expected: Expected = CPU,
    **more: Any,
) -> Outcome:
    with fake_docker(container or FakeContainer()) as docker_host, lying_server(lie) as base_url:
        nvml = more.pop("nvml", pynvml)
        name = more.pop("name", NAME)
        settings = {
            "container": name,
            "docker_host": docker_host,
            "metrics_url": base_url.removesuffix("v1") + "metrics",
            **more,
        }
        target = Target(base_url, KEY, MODEL, timeout=settings.pop("timeout", 5.0))
        return Outcome(*vram_run.run(target, "r1", expected, replace(QUICK, **settings), nvml))


def check(result: Outcome, code: str) -> Check:
    return next(item for item in result.verdict.checks if item.code == code)


def failed(result: Outcome) -> dict[str, str | None]:
    assert [item.code for item in result.verdict.checks] == CODES
    for item in result.verdict.checks:
        assert item.ok or item.message.startswith(f"{item.runbook}: ")
    text = result.file.to_json()
    assert KEY not in text
    assert VramResult.from_json(text, "vram.json") == result.file
    return {item.code: item.runbook for item in result.verdict.checks if not item.ok}


def test_an_honest_server_on_the_cpu_is_green() -> None:
    container = FakeContainer()
    result = checked(container=container)
    assert failed(result) == {}
    assert result.verdict.ok
    assert check(result, "vram_under_load").value == 3.0
    assert check(result, "vram_under_load").limit == 32.0
    assert "the container's memory limit" in check(result, "vram_under_load").message
    assert check(result, "kv_cache_tokens").value == KV_CACHE_TOKENS
    assert check(result, "load_answered").value == check(result, "load_answered").limit == 4
    assert result.file.source == "container"
    assert result.file.headroom_gib == 29.0
    assert list(result.file.moments) == ["ready", "warm", "under_load", "after"]
    assert result.row is None
    assert container.paths[0].endswith("/version")
    assert any("one-shot=1" in path or "one-shot=True" in path for path in container.paths)


def test_the_load_is_the_heaviest_that_the_server_permits() -> None:
    load = checked().file.load
    # 256 x 256 pixels are 64 tokens, four of them fit into 512, and the rest are words. The cache has room for 16,000.
    assert (load.images, load.side) == (8, 256)
    assert 0.9 * 512 < load.longest < 512
    assert load.tokens == 2 * load.longest
    assert load.words > 2 * 150


def test_a_server_that_dies_of_large_images_is_called_bad_where_they_are_not_capped() -> None:
    assert failed(checked("dies_of_large_image")) == {}
    uncapped = replace(QUICK.load, max_pixels=640 * 640)
    assert failed(checked("dies_of_large_image", load=uncapped)) == dict.fromkeys(LOADED, "connection_lost")


def test_images_that_the_server_scales_down_are_sent_as_large_as_they_may_be() -> None:
    large = replace(QUICK.load, max_pixels=1024 * 1024, images=1)
    result = checked("scales", load=large, expected=replace(CPU, max_pixels=0))
    assert failed(result) == {}
    load = result.file.load
    assert (load.images, load.side) == (2, 1024)
    assert load.longest < 512
    # One that takes them as they are gets what fits.
    assert checked(load=large).file.load.side == 672


def gpus(monkeypatch: pytest.MonkeyPatch, *used_gib: float) -> None:
    cards = [FakeGpu(name="NVIDIA GeForce RTX 4090", memory=(24564, 413, int(gib * 1024))) for gib in used_gib]
    fake_nvml.install(monkeypatch, *cards)


def test_gpus_within_the_plan_are_green_and_give_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, 21.0, 20.7)
    result = checked(expected=NVIDIA)
    assert failed(result) == {}
    assert result.file.source == "nvml"
    assert list(result.file.samples) == ["GPU 0", "GPU 1"]
    assert check(result, "vram_ready").value == 21.0
    assert check(result, "vram_ready").limit == 22.5
    assert check(result, "vram_under_load").limit == 23.5
    assert [gpu["index"] for gpu in result.verdict.gpus] == [0, 1]
    assert result.row
    path = tmp_path / "calibration.json"
    path.write_text(vram_run.row_json(result.row))
    (boot,) = boots.boots(path)
    assert boot.tokens == KV_CACHE_TOKENS
    assert boot.measured["survives"] is True
    assert boot.measured["resident_gib"] == 21.0
    assert boot.plan.settings.tensor_parallel == 2
    assert boot.plan.case.host.gpu.usable_gib == 23.5


def test_only_the_gpus_of_the_container_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 23.9, 20.7)
    result = checked(expected=NVIDIA, container=FakeContainer(compose=requesting(device_ids=["GPU-00000001"])))
    assert list(result.file.samples) == ["GPU 1"]
    gone = checked(expected=NVIDIA, container=FakeContainer(compose=requesting(device_ids=["GPU-00000009"])))
    assert failed(gone)["vram_ready"] == "gpu_unreadable"
    assert "GPU-00000009" in check(gone, "vram_ready").message


def test_the_gpus_of_a_release_are_read_and_not_those_of_other_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four GPUs hold the engine; another service fills the other two."""
    gpus(monkeypatch, 20.7, 20.7, 23.9, 23.9)
    by_uuid = nvidia_plan(read_host(4), tensor_parallel_size=2)
    by_count = nvidia_plan("4x RTX 4090", tensor_parallel_size=2)
    for plan in (by_uuid, by_count):
        container = FakeContainer(compose=compose(plan))
        result = checked(expected=expected_of(manifest(plan)), container=container)
        assert failed(result) == {}
        assert list(result.file.samples) == ["GPU 0", "GPU 1"]


def test_where_docker_names_no_gpus_those_that_the_plan_selects_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 20.7, 20.7, 20.7, 20.7)
    plan = nvidia_plan(read_host(4), tensor_parallel_size=2)
    moved = replace(plan, gpus=tuple(replace(gpu, selected=number > 1) for number, gpu in enumerate(plan.gpus)))
    result = checked(expected=expected_of(manifest(moved)), container=FakeContainer(compose=requesting(count=2)))
    assert list(result.file.samples) == ["GPU 2", "GPU 3"]
    everything = checked(
        expected=expected_of(manifest(moved)), container=FakeContainer(compose=requesting(count="all"))
    )
    assert list(everything.file.samples) == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]


def test_an_engine_without_a_container_is_read_by_its_gpus_and_its_own_counters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, 23.9, 20.7)
    bare: dict[str, Any] = {"name": "", "docker_host": "unix:///nowhere.sock", "expected": NVIDIA}
    assert list(checked(gpus=("all",), **bare).file.samples) == ["GPU 0", "GPU 1"]
    one = checked(gpus=("1",), **bare)
    assert failed(one) == {}
    assert list(one.file.samples) == ["GPU 1"]
    assert "by its metrics" in check(one, "restarts").message
    assert failed(checked("forgets", gpus=("1",), **bare)) == {"restarts": "engine_restarted"}
    assert failed(checked("dies_midway", gpus=("1",), **bare))["restarts"] == "metrics_missing"
    # The server of an engine that died still answers for a moment; one that lives goes on to count.
    assert failed(checked("fails_and_leaves", gpus=("1",), **bare))["restarts"] == "metrics_missing"
    assert "restarts" not in failed(checked("error_500", gpus=("1",), **bare))
    # Without a container the GPUs must be set.
    assert failed(checked(**bare))["restarts"] == "container_unreadable"


def test_memory_over_the_plan_or_the_card_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 20.7, 22.9)
    over_plan = checked(expected=NVIDIA)
    assert failed(over_plan) == {"vram_ready": "memory_over_limit"}
    assert "GPU 1 holds 22.90 GiB" in check(over_plan, "vram_ready").message
    # The card is larger than the one that the plan is for.
    gpus(monkeypatch, 23.55)
    over_card = checked(expected=NVIDIA)
    assert failed(over_card)["vram_under_load"] == "memory_over_limit"
    assert over_card.row
    assert over_card.row["measured"]["survives"] is False
    assert failed(checked(container=FakeContainer(limit=2.9))) == dict.fromkeys(
        ("vram_ready", "vram_under_load"), "memory_over_limit"
    )


def test_a_container_without_a_limit_is_held_to_the_host() -> None:
    assert check(checked(container=FakeContainer(limit=0)), "vram_under_load").limit == 16.0


def test_where_docker_has_no_figures_the_processes_are_read() -> None:
    result = checked(container=FakeContainer(figures=False))
    assert failed(result) == {}
    assert (result.file.source, check(result, "vram_ready").value) == ("processes", 3.0)
    dead = checked(container=FakeContainer(running=False))
    assert failed(dead)["vram_ready"] == "container_unreadable"


def test_memory_that_grows_is_a_leak() -> None:
    assert failed(checked(container=FakeContainer(grows=0.2))) == {"vram_after": "memory_leak"}


def test_what_the_first_round_took_is_no_leak() -> None:
    """The readings of the first rest are low, all later ones high: caches that were filled."""

    class Filled(FakeContainer):
        def stats(self) -> dict[str, Any]:
            self.used = 3.0 if self.readings < 3 else 5.0
            return super().stats()

    result = checked(container=Filled(), interval=0.03, load=replace(QUICK.load, settle=0.09))
    assert failed(result) == {}
    assert check(result, "vram_under_load").value == 5.0


CAUGHT: dict[str, dict[str, str]] = {
    "no_metrics": {"kv_cache_tokens": "metrics_missing"},
    "odd_metrics": {"kv_cache_tokens": "metrics_missing"},
    "small_cache": {"kv_cache_tokens": "plan_missed"},
    "counts_nothing": dict.fromkeys(LOADED, "bad_response"),
    "skips_images": dict.fromkeys(LOADED, "bad_response"),
    "truncates": dict.fromkeys(LOADED, "bad_response"),
    "fails_and_leaves": dict.fromkeys(LOADED, "server_error"),
    "dies_of_large_image": dict.fromkeys(LOADED, "connection_lost"),
    "error_500": dict.fromkeys(LOADED, "server_error"),
    "refuses_all": dict.fromkeys(LOADED, "request_refused"),
    "no_usage": dict.fromkeys(LOADED, "bad_response"),
    "odd_types": dict.fromkeys(LOADED, "bad_response"),
    "html": dict.fromkeys(LOADED, "bad_response"),
    "echoes_key": dict.fromkeys(LOADED, "server_error"),
    "dies_midway": dict.fromkeys(LOADED, "connection_lost"),
    "hang": dict.fromkeys(LOADED, "timeout"),
    "drip": dict.fromkeys(LOADED, "timeout"),
    "wrong_key": dict.fromkeys(
        ("vram_endpoint", "kv_cache_tokens", "load_answered", "vram_ready", "vram_under_load", "vram_after"),
        "wrong_key",
    ),
    "other_model": dict.fromkeys(
        ("vram_endpoint", "kv_cache_tokens", "load_answered", "vram_ready", "vram_under_load", "vram_after"),
        "unknown_model",
    ),
}


@pytest.mark.parametrize("lie", CAUGHT)
def test_every_lie_is_caught_and_named(lie: str) -> None:
    load = replace(QUICK.load, timeout=0.5) if lie in ("hang", "drip") else QUICK.load
    if lie == "dies_of_large_image":
        load = replace(load, max_pixels=640 * 640)
    assert failed(checked(lie, load=load, timeout=load.timeout)) == CAUGHT[lie]


def test_every_lie_about_memory_is_tried() -> None:
    assert set(MEMORY_LIES) <= set(CAUGHT)


def test_a_dead_address_is_named_and_quick() -> None:
    with fake_docker(FakeContainer()) as docker_host:
        settings = replace(QUICK, docker_host=docker_host, metrics_url="http://127.0.0.1:9/metrics")
        target = Target("http://127.0.0.1:9/v1", KEY, MODEL)
        result = Outcome(*vram_run.run(target, "r1", CPU, settings, None))
    assert set(failed(result).values()) == {"endpoint_unreachable"}
    assert set(failed(result)) == set(CODES) - {"restarts"}


def test_metrics_at_a_dead_address_do_not_hide_the_rest() -> None:
    result = checked(metrics_url="http://127.0.0.1:9/metrics")
    assert failed(result) == {"kv_cache_tokens": "endpoint_unreachable"}


def test_a_container_that_is_started_again_is_noticed() -> None:
    assert failed(checked(container=FakeContainer(restarts_after=2))) == {"restarts": "engine_restarted"}


def test_a_container_that_somebody_restarted_is_noticed() -> None:
    """Docker counts only its own restarts; the start time shows the others."""

    @dataclass
    class Restarted(FakeContainer):
        def stats(self) -> dict[str, Any]:
            self.started = "2026-01-01T00:07:00Z"
            return super().stats()

    assert failed(checked(container=Restarted())) == {"restarts": "engine_restarted"}


def test_a_server_that_does_not_count_words_is_named() -> None:
    assert "twice as long" in check(checked("counts_nothing"), "load_answered").message


def test_a_container_that_dies_under_load_is_noticed() -> None:
    found = failed(checked("dies_midway", FakeContainer(stops_after=8)))
    assert (found["load_answered"], found["restarts"]) == ("connection_lost", "engine_restarted")


def test_a_death_that_docker_notices_late_is_noticed() -> None:
    @dataclass
    class Late(FakeContainer):
        inspections: int = 0

        def inspected(self) -> dict[str, Any]:
            self.inspections += 1
            self.running = self.inspections < 4
            return super().inspected()

    assert failed(checked("dies_midway", Late()))["restarts"] == "engine_restarted"


@pytest.mark.parametrize("settings", [{"name": "none"}, {"docker_host": "unix:///nowhere.sock"}])
def test_without_the_container_nothing_is_green(settings: dict[str, Any]) -> None:
    found = failed(checked(**settings))
    assert found == dict.fromkeys(("vram_ready", "vram_under_load", "vram_after", "restarts"), "container_unreadable")


def test_without_nvml_nothing_is_green() -> None:
    result = checked(expected=NVIDIA, nvml=None)
    assert failed(result) == dict.fromkeys(("vram_ready", "vram_under_load", "vram_after"), "gpu_unreadable")
    assert result.row is None


@pytest.mark.parametrize("code", [9, 15, 999])
def test_nvml_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fake_nvml.install(monkeypatch, nvmlInitWithFlags=code)
    assert failed(checked(expected=NVIDIA))["vram_ready"] == "gpu_unreadable"


def test_a_gpu_that_vanishes_is_named_and_what_was_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeGpu(name="NVIDIA GeForce RTX 4090", memory=(24564, 413, int(20.7 * 1024)))
    fake_nvml.install(monkeypatch, card)
    rested = Sampler.rest

    def rest(sampler: Sampler, seconds: float) -> Window:
        """Falls off the bus once it was at rest."""
        window = rested(sampler, seconds)
        card.broken = {"nvmlDeviceGetMemoryInfo_v2": 15}
        return window

    monkeypatch.setattr(Sampler, "rest", rest)
    result = checked(expected=NVIDIA)
    assert failed(result) == dict.fromkeys(("vram_under_load", "vram_after"), "gpu_unreadable")
    assert "has fallen off the PCI bus: GPU 0" in check(result, "vram_under_load").message
    assert result.file.samples["GPU 0"]


def test_the_result_is_json_with_the_documented_keys() -> None:
    data = json.loads(checked().file.to_json())
    assert list(data) == [
        *("schema_version", "ok", "release", "checks", "engine", "gpus", "started", "finished"),
        *("source", "limit_gib", "limit_is", "headroom_gib", "terms", "moments", "load", "sampling", "samples"),
    ]
    assert data["sampling"]["readings"] == len(data["samples"][NAME])


def test_without_a_plan_memory_is_held_against_the_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 21.0)
    result = checked(expected=unplanned("nvidia", 64.0, 4, 8))
    assert failed(result) == {}
    assert check(result, "vram_ready").limit == check(result, "vram_under_load").limit == 23.58
    assert check(result, "kv_cache_tokens").value == KV_CACHE_TOKENS
    assert result.row is None
    assert {term.predicted for term in result.file.terms} == {None}
    gpus(monkeypatch, 23.9)
    assert failed(checked(expected=unplanned("nvidia", 64.0, 4, 8)))["vram_under_load"] == "memory_over_limit"
    on_cpu = checked(expected=unplanned("cpu", 64.0, 4, 8), container=FakeContainer(limit=0))
    assert check(on_cpu, "vram_ready").limit == 64.0
