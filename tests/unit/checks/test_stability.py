"""The stability check against wrong servers, restarted engines and growing memory: each failure has a name."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.checks import engine_counters
from ansible_collections.inference.vllm.plugins.module_utils.checks import stability as stability_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sample
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import StabilityResult
from ansible_collections.inference.vllm.plugins.module_utils.checks.stability import Done, Settings
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import run as vram_run
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check
from support import fake_nvml
from support.fake_docker import NAME, FakeContainer, fake_docker
from support.fake_nvml import FakeGpu
from support.lying_server import KEY, MODEL, STABILITY_LIES, lying_server
from support.paths import FIXTURES

QUICK = Settings(
    requests=24,
    minutes=0,
    concurrency=4,
    images=4,
    max_pixels=65536,
    latency_drift=1.5,
    memory_drift=0.5,
    metrics_url="",
    container=NAME,
    docker_host="",
    accelerator="cpu",
    interval=0.01,
    timeout=5.0,
)
# A second of soak with as many requests as it holds; how even it is says more of this machine than of the check.
SOAK = replace(QUICK, requests=1, minutes=1 / 60, latency_drift=1000.0)


@pytest.fixture(autouse=True)
def docker_learns_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker is given 10 s to learn of a death; the fake one needs less."""
    monkeypatch.setattr(vram_run, "_DEATH_SECONDS", 0.4)


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with much else to do sends few requests in a second, and reads memory seldom; the check is the same."""
    monkeypatch.setattr(stability_run, "_LEAST_REQUESTS", 1)
    monkeypatch.setattr(stability_run, "_LEAST_READINGS", 1)


def checked(
    lie: str = "", container: FakeContainer | None = None, settings: Settings = QUICK, nvml: Any = pynvml
) -> StabilityResult:
    with fake_docker(container or FakeContainer()) as docker_host, lying_server(lie) as base_url:
        given = replace(settings, docker_host=docker_host, metrics_url=base_url.removesuffix("v1") + "metrics")
        return stability_run.run(Target(base_url, KEY, MODEL, timeout=settings.timeout), "r1", given, nvml)


def failed(result: StabilityResult) -> dict[str, str | None]:
    for item in result.verdict.checks:
        assert item.ok or item.message.startswith(f"{item.runbook}: ")
    assert KEY not in result.to_json()
    assert StabilityResult.from_json(result.to_json(), "stability.json") == result
    return {item.code: item.runbook for item in result.verdict.checks if not item.ok}


def check(result: StabilityResult, code: str) -> Check:
    return next(item for item in result.verdict.checks if item.code == code)


def test_an_honest_server_is_green_and_was_asked_in_every_way() -> None:
    result = checked()
    assert failed(result) == {}
    assert [item.code for item in result.verdict.checks] == [
        *("stability_endpoint", "stability_requests", "stability_restarts", "stability_preemptions")
    ]
    requests = check(result, "stability_requests")
    assert (requests.value, requests.limit) == (24, 24)
    assert set(result.latency_ms) == {"text", "image", "stream", "long_text", "json", "images"}
    assert all(times.count == 4 for times in result.latency_ms.values())
    assert (result.errors, result.requests) == (0, 24)


@pytest.mark.usefixtures("few_are_enough")
def test_a_soak_also_judges_drift() -> None:
    result = checked(settings=SOAK)
    assert failed(result) == {}
    assert int(str(check(result, "stability_requests").value)) > SOAK.requests
    assert check(result, "stability_latency").limit == 1000
    assert check(result, "stability_memory").value == 0
    assert result.samples[NAME]


@pytest.mark.parametrize(("images", "kinds"), [(0, 4), (1, 5), (4, 6)])
def test_a_model_is_shown_no_more_images_than_it_takes(images: int, kinds: int) -> None:
    assert len(stability_run.kinds_of(images)) == kinds
    assert failed(checked(settings=replace(QUICK, images=images))) == {}


LOAD = {
    "error_500": "server_error",
    "fails_at_times": "server_error",
    "refuses_all": "request_refused",
    "busy": "overloaded",
    "no_usage": "bad_response",
    "html": "bad_response",
    "cut_json": "bad_response",
    "dies_midway": "connection_lost",
    "resets": "connection_lost",
    "hang": "timeout",
    "drip": "timeout",
    "echoes_key": "server_error",
}


@pytest.mark.parametrize("lie", LOAD)
def test_every_lie_is_caught_and_named(lie: str) -> None:
    settings = replace(QUICK, timeout=0.4) if lie in ("hang", "drip") else QUICK
    assert failed(checked(lie, settings=settings))["stability_requests"] == LOAD[lie]


@pytest.mark.parametrize(("lie", "name"), [("wrong_key", "wrong_key"), ("other_model", "unknown_model")])
def test_a_wrong_server_is_sent_nothing(lie: str, name: str) -> None:
    result = checked(lie)
    assert failed(result)["stability_endpoint"] == failed(result)["stability_requests"] == name
    assert result.requests == 0


def test_some_errors_are_counted_and_the_rest_is_sent() -> None:
    result = checked("fails_at_times")
    errors = result.errors
    assert result.requests == 24
    # The server counts in threads.
    assert 1 <= errors <= 5
    assert f"{errors} of 24 requests failed: HTTP 500" in check(result, "stability_requests").message


def test_a_server_that_dies_is_not_asked_for_ever() -> None:
    result = checked("dies_midway", FakeContainer(stops_after=2), replace(QUICK, requests=1000))
    assert result.requests < 20
    assert failed(result)["stability_restarts"] == "engine_restarted"


def test_a_dead_address_is_named() -> None:
    settings = replace(QUICK, container="", metrics_url="http://127.0.0.1:9/metrics")
    result = stability_run.run(Target("http://127.0.0.1:9/v1", KEY, MODEL), "r1", settings, None)
    assert failed(result)["stability_requests"] == "endpoint_unreachable"
    assert not result.verdict.ok


def test_a_restart_is_noticed_though_every_request_was_answered() -> None:
    @dataclass
    class Restarted(FakeContainer):
        inspections: int = 0

        def inspected(self) -> dict[str, Any]:
            self.inspections += 1
            self.restarts = int(self.inspections > 1)
            return super().inspected()

    assert failed(checked(container=Restarted())) == {"stability_restarts": "engine_restarted"}


def test_without_a_container_the_metrics_tell_of_a_restart() -> None:
    alone = replace(QUICK, container="")
    assert failed(checked(settings=alone)) == {}
    assert failed(checked("forgets", settings=alone)) == {"stability_restarts": "engine_restarted"}
    result = checked("no_metrics", settings=alone)
    assert failed(result) == {
        "stability_restarts": "container_unreadable",
        "stability_preemptions": "metrics_missing",
    }
    assert [item.severity for item in result.verdict.checks if not item.ok] == ["warning", "warning"]


def test_preemptions_are_a_warning() -> None:
    result = checked("preempts")
    assert failed(result) == {"stability_preemptions": "preempted"}
    assert check(result, "stability_preemptions").value == 24
    assert result.verdict.ok


def test_every_lie_about_stability_is_tried() -> None:
    assert set(STABILITY_LIES) <= {"preempts", "forgets", *LOAD}


@pytest.mark.usefixtures("few_are_enough")
def test_memory_that_grows_in_a_soak_is_a_leak() -> None:
    assert failed(checked(container=FakeContainer(grows=0.1), settings=SOAK)) == {"stability_memory": "memory_leak"}


@pytest.mark.usefixtures("few_are_enough")
def test_a_container_that_is_not_there_is_named() -> None:
    found = failed(checked(settings=replace(SOAK, container="none")))
    assert found == dict.fromkeys(("stability_restarts", "stability_memory"), "container_unreadable")


@pytest.mark.usefixtures("few_are_enough")
def test_without_nvml_a_soak_is_not_green(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = replace(SOAK, accelerator="nvidia")
    assert failed(checked(settings=gpu, nvml=None)) == {"stability_memory": "gpu_unreadable"}
    fake_nvml.install(monkeypatch, FakeGpu(memory=(24564, 413, 21000)))
    assert failed(checked(settings=gpu)) == {}


def done(*seconds: float, kind: str = "text") -> list[Done]:
    return [Done(kind, float(place), length) for place, length in enumerate(seconds)]


def test_drift_compares_the_end_with_the_beginning() -> None:
    assert stability_run.drift_of(done(*[1.0] * 30)) == 1.0
    assert stability_run.drift_of(done(*[1.0] * 15, *[3.0] * 15)) == 3.0
    assert stability_run.drift_of(done(*[1.0] * 9)) is None
    assert stability_run.drift_of([]) is None
    # A failure took no time that counts, and a mix that changes is no drift.
    lost = [replace(item, failure=Failure("timeout", "none")) for item in done(*[9.0] * 30)]
    assert stability_run.drift_of([*done(*[1.0] * 30), *lost]) == 1.0
    mixed = [*done(*[1.0] * 15), *(replace(item, start=15 + item.start) for item in done(*[5.0] * 15, kind="images"))]
    assert stability_run.drift_of(mixed) == 1.0


def test_a_slow_end_is_named() -> None:
    check = stability_run._latency(done(*[1.0] * 15, *[3.0] * 15), 1.5)
    assert (check.ok, check.runbook, check.value) == (False, "latency_drift", 3.0)
    assert stability_run._latency([], 1.5).ok is False


def test_growth_leaves_the_first_third_to_the_caches() -> None:
    def samples(*gib: float) -> list[Sample]:
        return [Sample(float(place), {"GPU 0": 1.0, "GPU 1": level}) for place, level in enumerate(gib)]

    assert stability_run.growth_of(samples(*[1.0] * 10, *[9.0] * 20)) == ("GPU 0", 0.0)
    assert stability_run.growth_of(samples(*[1.0] * 20, *[3.0] * 10)) == ("GPU 1", 2.0)
    assert stability_run.growth_of(samples(*[1.0] * 5)) is None
    assert stability_run.growth_of([]) is None


@given(st.integers(1, 16), st.integers(1024, 2**24), st.integers(512, 2**18))
def test_images_fill_half_of_the_context_at_most(images: int, max_pixels: int, max_model_len: int) -> None:
    side = stability_run.side_of(images, max_pixels, max_model_len)
    assert side % 32 == 0
    assert side == 32 or (side**2 <= max_pixels and images * side**2 / 1024 <= max_model_len / 2)


def test_real_counters_are_read() -> None:
    page = (FIXTURES / "vllm_metrics/0.32.0-cpu.txt").read_text()
    assert engine_counters.counter_of(page, "vllm:no_such_thing") is None
    labelled = 'vllm:num_preemptions_total{engine="0"} 2.0\nvllm:num_preemptions_total{engine="1"} 1e+00\n'
    assert engine_counters.counter_of(page + labelled, "vllm:num_preemptions_total") == 3.0


def test_the_result_is_json_with_the_documented_keys() -> None:
    data = json.loads(checked().to_json())
    assert list(data)[8:] == [
        *("requests", "errors", "seconds", "concurrency", "minutes", "latency_drift", "memory_drift_gib"),
        *("latency_ms", "points", "source", "samples"),
    ]
