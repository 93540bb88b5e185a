"""What is made of readings, metrics and manifests: pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sample, Window
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import Term
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import judge as vram_judge
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import (
    Measured,
    cache_tokens,
    expected_of,
)
from ansible_collections.inference.vllm.plugins.module_utils.contracts import ManifestFile
from support.paths import FIXTURES
from support.plans import cpu_plan, gpu_plan, manifest, read_host, sized

FIXTURES = FIXTURES / "vllm_metrics"
MANIFEST = manifest(sized(gpu_plan(), kv_cache_tokens=32000))
EXPECTED = expected_of(MANIFEST)


def measured(ready: float, peak: float, warm: float, after: float, **more: Any) -> Measured:
    levels = [ready, ready, peak, warm, warm, peak, after, after]
    samples = [Sample(float(second), {"GPU 0": level}) for second, level in enumerate(levels)]
    return Measured(
        samples,
        **{
            **{"ready": Window(0, 1), "load": Window(2, 5), "warm": Window(3, 4), "after": Window(6, 7)},
            **{"limit": 23.5, "limit_is": "the card", "cache_tokens": 32000, **more},
        },
    )


def failures(seen: Measured) -> dict[str, str | None]:
    return {check.code: check.runbook for check in vram_judge.checks_of(EXPECTED, seen, 0.5) if not check.ok}


@pytest.mark.parametrize(
    ("levels", "wrong"),
    [
        ((20.5, 22.0, 22.0, 22.0), {}),
        ((22.5, 22.5, 22.5, 22.5), {}),
        ((22.51, 22.6, 22.5, 22.5), {"vram_ready": "memory_over_limit"}),
        ((20.5, 23.5, 22.0, 22.0), {}),
        ((20.5, 23.52, 22.0, 22.0), {"vram_under_load": "memory_over_limit"}),
        ((20.5, 23.0, 22.0, 22.5), {}),
        ((20.5, 23.0, 22.0, 22.52), {"vram_after": "memory_leak"}),
        ((20.5, 23.0, 22.0, 20.5), {}),
    ],
)
def test_each_moment_has_its_own_limit(levels: tuple[float, float, float, float], wrong: dict[str, str]) -> None:
    assert failures(measured(*levels)) == wrong


def test_terms_are_predicted_against_measured() -> None:
    terms = {term.term: term for term in vram_judge.terms_of(EXPECTED, measured(20.6, 22.4, 22.3, 22.3))}
    assert terms["resident"] == Term("resident", 20.5, 20.6, "GiB")
    assert terms["step"] == Term("step", 1.5, 1.8, "GiB")
    assert terms["peak"] == Term("peak", 22.0, 22.4, "GiB")
    assert terms["headroom"] == Term("headroom", 1.5, 1.1, "GiB")
    assert terms["kv_cache"] == Term("kv_cache", 2.0, 2.0, "GiB")
    assert terms["kv_cache_tokens"] == Term("kv_cache_tokens", 32000, 32000, "tokens")


def test_what_was_not_measured_is_null_and_never_green() -> None:
    seen = Measured(failure=Failure("timeout", "not judged"))
    assert failures(seen) == dict.fromkeys(("vram_ready", "vram_under_load", "vram_after"), "timeout")
    assert all(term.measured is None for term in vram_judge.terms_of(EXPECTED, seen))
    assert set(failures(Measured()).values()) == {"client_error"}


def test_after_a_failure_only_the_moment_before_it_counts() -> None:
    seen = measured(20.5, 22.0, 22.0, 22.0, failure=Failure("connection_lost", "not judged"))
    assert failures(seen) == dict.fromkeys(("vram_under_load", "vram_after"), "connection_lost")
    assert vram_judge.headroom_of(seen) is None


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ('block_size="16",kv_cache_size_tokens="None",num_gpu_blocks="4398"', 70368),
        ('block_size="16",kv_cache_size_tokens="70000",num_gpu_blocks="4398"', 70000),
        ('a="x\\"}y",block_size="128",num_gpu_blocks="3"', 384),
    ],
)
def test_the_cache_is_read_from_the_labels(labels: str, tokens: int) -> None:
    page = f'# HELP vllm:cache_config_info x\nvllm:other{{a="1"}} 2.0\nvllm:cache_config_info{{{labels}}} 1.0\n'
    assert cache_tokens(page) == tokens


def test_a_real_page_is_read() -> None:
    assert cache_tokens((FIXTURES / "0.32.0-cpu.txt").read_text()) == 699008


@pytest.mark.parametrize(
    "page",
    ["", "<html>", 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0', "vllm:cache_config_info 1"],
)
def test_a_page_without_the_cache_is_named(page: str) -> None:
    with pytest.raises(Failure) as caught:
        cache_tokens(page)
    assert caught.value.name == "metrics_missing"


@given(st.text())
def test_no_page_breaks_the_reader(page: str) -> None:
    try:
        assert cache_tokens(page) >= 0
    except Failure as failure:
        assert failure.name == "metrics_missing"


@pytest.mark.parametrize(
    ("tokens", "ok"), [(32000, True), (33600, True), (33601, False), (30400, True), (30399, False)]
)
def test_the_cache_may_differ_by_five_percent(tokens: int, ok: bool) -> None:
    if ok:
        assert vram_judge.cache_check(EXPECTED, tokens)[1] == tokens
    else:
        with pytest.raises(Failure, match=r"allowed are 5 %"):
            vram_judge.cache_check(EXPECTED, tokens)


@given(st.lists(st.floats(0, 100, width=16), min_size=1, max_size=3000))
def test_a_thinned_series_keeps_order_extremes_and_its_limit(levels: list[float]) -> None:
    samples = [Sample(number / 5, {"GPU 0": level}) for number, level in enumerate(levels)]
    points = vram_judge.thinned(samples, "GPU 0")
    assert len(points) <= 600
    assert list(points) == sorted(points)
    assert max(gib for _, gib in points) == pytest.approx(max(levels), abs=0.001)
    assert min(gib for _, gib in points) == pytest.approx(min(levels), abs=0.001)
    if len(levels) <= 600:
        assert len(points) == len(levels)


def test_a_single_peak_of_a_long_series_is_kept() -> None:
    samples = [Sample(number / 5, {"GPU 0": 99.0 if number == 1234 else 20.0}) for number in range(5000)]
    points = vram_judge.thinned(samples, "GPU 0")
    assert len(points) <= 600
    assert (1234 / 5, 99.0) in points


def test_one_odd_reading_does_not_decide_what_an_idle_engine_holds() -> None:
    samples = [Sample(float(second), {"GPU 0": 30.0 if second == 1 else 20.0}) for second in range(5)]
    assert Measured(samples).level(Window(0, 4)) == {"GPU 0": 20.0}


def test_the_gpus_are_those_that_the_plan_selects() -> None:
    """Four GPUs of a host, of which two hold the model."""
    known = gpu_plan(read_host(4), tensor_parallel_size=2)
    assert len(known.gpus) == 4
    assert expected_of(manifest(known)).gpus == ("GPU-00000000", "GPU-00000001")
    unknown = gpu_plan("4x RTX 4090", tensor_parallel_size=2)
    assert expected_of(manifest(unknown)).gpus == ()
    assert expected_of(manifest(cpu_plan())).gpus == ()


@pytest.mark.parametrize("gap", [{"per_gpu_gib": None}, {"per_gpu_gib": {"card": 23.5}}])
def test_a_plan_without_sizes_is_refused(gap: dict[str, Any]) -> None:
    with pytest.raises(KeyError):
        expected_of(replace(MANIFEST, plan=replace(MANIFEST.plan, **gap)))


def without(flag: str) -> ManifestFile:
    return replace(MANIFEST, flags={name: value for name, value in MANIFEST.flags.items() if name != flag})


def test_a_release_without_max_num_seqs_is_refused() -> None:
    with pytest.raises(KeyError):
        expected_of(without("max-num-seqs"))


def test_a_text_model_has_no_images() -> None:
    assert expected_of(without("limit-mm-per-prompt")).images == 0
    assert expected_of(without("mm-processor-kwargs")).max_pixels == 0


def test_the_calibration_describes_one_gpu_of_the_plan_and_counts_the_measured_ones() -> None:
    seen = [{"name": "NVIDIA GeForce RTX 4090", "compute_capability": 8.9}] * 2
    row = vram_judge.calibration_row(EXPECTED, measured(20.6, 22.4, 22.3, 22.3), seen, "2026-01-01", survives=True)
    assert row
    assert row["gpu"] == {
        "measured_on": "NVIDIA GeForce RTX 4090",
        "total_gib": 23.5,
        "count": 2,
        "compute_capability": 8.9,
        "peer_to_peer": False,
    }
