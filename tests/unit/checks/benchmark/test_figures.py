"""What is measured, and what counts as better or worse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import figures
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import DRIVERS, normalised
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Point, Workload
from support.paths import FIXTURES

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


def result(**changes: float) -> dict[str, Any]:
    return {"release": "r1", "points": [normalised(DRIVERS["vllm"], POINT, {**RAW, **changes})]}


def judged(before: dict[str, Any], after: dict[str, Any], **more: Any) -> dict[str, str]:
    return {row["figure"]: row["judged"] for row in figures.compare(before, after, 0.1, **more)}


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
    other = normalised(DRIVERS["vllm"], Point(IMAGE, 16, 7), RAW)
    assert figures.compare({"points": [other]}, result(), 0.1) == []
    assert judged(result(), result(), workloads=["text"]) == {}
    assert figures.compare({}, {}, 0.1) == []
    assert figures.compare(result() | {"driver": "another"}, result(), 0.1) == []


def test_a_row_in_words() -> None:
    (row, *_) = figures.compare(result(), result(output_throughput=25.55), 0.1)
    assert figures.described(row) == "image at 8: output_tokens_per_s 51.1 -> 25.55 tokens/s (-50 %)"


def test_the_key_is_gpus_image_model_and_flags() -> None:
    manifest: dict[str, Any] = {
        "plan": {"accelerator": "nvidia", "gpus": [{"name": "RTX 4090", "count": 2}]},
        "image": {"digest": "sha256:1", "id": "sha256:2"},
        "model": {"commit": "abc"},
        "flags": {"max-num-seqs": 4},
    }
    key = figures.key_of(manifest)
    assert key == {"gpus": ["2x RTX 4090"], "image": "sha256:1", "model": "abc", "flags": {"max-num-seqs": 4}}
    changes: list[dict[str, Any]] = [{"flags": {}}, {"model": {"commit": "abd"}}, {"image": {"id": "sha256:2"}}]
    names = {figures.key_name(figures.key_of(manifest | change)) for change in [{}, *changes, {"plan": {}}]}
    assert len(names) == 5


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
