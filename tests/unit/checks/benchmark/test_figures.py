"""What is measured, and what counts as better or worse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import figures
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import DRIVERS, normalised
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Point, Workload
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import BenchmarkResult, ServiceLevel
from support.paths import FIXTURES
from support.plans import COMMIT, cpu_plan, gpu_plan, manifest, read_host

RAW = json.loads((FIXTURES / "vllm_bench/0.32.0-image.json").read_text())
TEXT = Workload("text", 1024, 128, (1, 16))
IMAGE = Workload("image", 64, 64, (8,), images=2, side=1024)
POINT = Point(IMAGE, 8, 7)


def test_every_point_has_prompts_of_its_own_and_the_largest_comes_again() -> None:
    points = figures.points_of([TEXT, IMAGE], 100, again=True)
    assert [point.code for point in points] == [
        *("bench_text_1", "bench_text_16", "bench_text_16_again", "bench_image_8", "bench_image_8_again")
    ]
    fresh = [point.seed for point in points if not point.again]
    assert len(set(fresh)) == len(fresh)
    assert points[2].seed == points[1].seed
    assert [point.again for point in figures.points_of([TEXT], 1, again=False)] == [False, False]


def test_few_at_once_are_still_enough_requests_to_tell() -> None:
    assert (TEXT.requests(1), TEXT.requests(16)) == (8, 64)


def result(point: Point = POINT, **changes: float) -> BenchmarkResult:
    return BenchmarkResult(
        "r1",
        key={},
        driver=DRIVERS["vllm"].title,
        seed=7,
        tool=None,
        goals=ServiceLevel(2000, 200),
        points=(normalised(DRIVERS["vllm"], point, {**RAW, **changes}),),
        comparisons={},
    )


def judged(before: BenchmarkResult, after: BenchmarkResult, **more: Any) -> dict[str, str]:
    return {row.figure: row.judged for row in figures.compare(before, after, 0.1, **more)}


def test_better_and_worse_are_told_apart_whichever_way_a_figure_runs() -> None:
    assert set(judged(result(), result()).values()) == {"same"}
    assert judged(result(), result(output_throughput=40.0))["output_tokens_per_s"] == "worse"
    assert judged(result(), result(output_throughput=70.0))["output_tokens_per_s"] == "better"
    assert judged(result(), result(median_ttft_ms=300.0))["ttft_ms.median"] == "worse"
    assert judged(result(), result(median_ttft_ms=100.0))["ttft_ms.median"] == "better"
    # Within the tolerance, and within what a clock can tell.
    assert judged(result(), result(output_throughput=47.0))["output_tokens_per_s"] == "same"
    assert judged(result(median_tpot_ms=0.1), result(median_tpot_ms=0.9))["tpot_ms.median"] == "same"


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_what_is_worse_one_way_is_better_the_other_way(old: float, new: float) -> None:
    there = judged(result(output_throughput=old), result(output_throughput=new))["output_tokens_per_s"]
    back = judged(result(output_throughput=new), result(output_throughput=old))["output_tokens_per_s"]
    # A tolerance is a share of the former figure, so that only one way may count as the same.
    assert {there, back} in ({"better", "worse"}, {"same"}, {"same", "better"}, {"same", "worse"})


def test_only_what_is_alike_is_compared() -> None:
    assert judged(result(Point(IMAGE, 16, 7)), result()) == {}
    assert judged(result(), result(), workloads=["text"]) == {}
    assert judged(replace(result(), points=()), result()) == {}
    assert judged(replace(result(), driver="another"), result()) == {}


def test_a_row_in_words() -> None:
    (row, *_) = figures.compare(result(), result(output_throughput=25.55), 0.1)
    assert figures.described(row) == "image at 8: output_tokens_per_s 51.1 -> 25.55 tokens/s (-50 %)"


def test_the_key_is_gpus_image_model_and_flags() -> None:
    release = manifest(gpu_plan())
    key = figures.key_of(release)
    assert key == {
        "gpus": ["2x RTX 4090"],
        "image": "sha256:" + "2" * 64,
        "model": COMMIT,
        "flags": dict(release.flags),
    }
    others = [
        replace(release, flags={}),
        replace(release, model=replace(release.model, commit="1" * 40)),
        replace(release, image=replace(release.image, digest="")),
        manifest(gpu_plan("2x H100")),
        manifest(cpu_plan()),
    ]
    names = {figures.key_name(figures.key_of(each)) for each in (release, *others)}
    assert len(names) == len(others) + 1


def test_the_key_counts_only_the_gpus_that_the_engine_runs_on() -> None:
    two_of_four = manifest(gpu_plan(read_host(4), tensor_parallel_size=2))
    assert figures.gpus_of(two_of_four) == ["2x RTX 4090"]
    mixed = two_of_four.plan.gpus
    plan = replace(two_of_four.plan, gpus=(mixed[0], replace(mixed[1], name="RTX 3090"), *mixed[2:]))
    assert figures.gpus_of(replace(two_of_four, plan=plan)) == ["1x RTX 4090", "1x RTX 3090"]
    assert figures.gpus_of(manifest(cpu_plan())) == ["cpu"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "a b"}, "letters"),
        ({"concurrency": []}, "at least 1"),
        ({"concurrency": ["many"]}, "whole number"),
        ({"concurrency": [0]}, "at least 1"),
        ({"images": 1}, "side"),
        ({"colour": "red"}, "unknown"),
    ],
)
def test_a_workload_that_cannot_be_used_says_why(change: dict[str, Any], word: str) -> None:
    whole = {"name": "text", "input_tokens": 8, "output_tokens": 8, "concurrency": [1]}
    assert Workload.from_dict(whole).rounds == 4
    with pytest.raises(ValueError, match=word):
        Workload.from_dict(whole | change)
    with pytest.raises(ValueError, match="missing"):
        Workload.from_dict({"name": "text"})
