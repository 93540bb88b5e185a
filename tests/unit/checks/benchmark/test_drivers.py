"""The command of each tool, and its result in the common form."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import drivers
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import DRIVERS, Call
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Goals, Point, Workload
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import BenchmarkPoint
from support.paths import FIXTURES

RAW = {
    "vllm": json.loads((FIXTURES / "vllm_bench/0.32.0-image.json").read_text()),
    "guidellm": json.loads((FIXTURES / "guidellm/0.8.1-image.json").read_text()),
}
TEXT = Workload("text", 1024, 128, (1, 16))
IMAGE = Workload("image", 64, 64, (8,), images=2, side=1024)
POINT = Point(IMAGE, 8, 7)
CALL = Call("http://h:8000", "m", "/model", "/tmp", "out.json")
FIGURES = {
    "requests",
    "failed",
    "seconds",
    "requests_per_s",
    "output_tokens_per_s",
    "total_tokens_per_s",
    "goodput_per_s",
}


def told(name: str, point: Point) -> str:
    return " ".join(DRIVERS[name].command(point, Goals(3500, 50.5), CALL))


def test_vllm_is_told_everything() -> None:
    for part in (
        "vllm bench serve --backend openai-chat --base-url http://h:8000 --endpoint /v1/chat/completions",
        "--dataset-name random-mm --random-input-len 64 --random-output-len 64",
        "--num-prompts 32 --max-concurrency 8 --seed 7 --temperature 0",
        '--random-mm-limit-mm-per-prompt {"image": 2, "video": 0}',
        "--random-mm-bucket-config {(1024,1024,1):1.0}",
        "--goodput ttft:3500 tpot:50.5",
        "--ignore-eos",
    ):
        assert part in told("vllm", POINT)
    assert "--dataset-name random " in told("vllm", Point(TEXT, 1, 3))
    assert "-mm" not in told("vllm", Point(TEXT, 1, 3))


def test_guidellm_is_told_everything() -> None:
    for part in (
        "guidellm run --backend kind=openai_http,target=http://h:8000,model=m,verify=true,extras.body.temperature=0",
        "--profile kind=concurrent,streams=8 --constraint kind=max_requests,count=32",
        "--tokenizer kind=huggingface_auto,model=/model",
        "--data kind=synthetic_text,prompt_tokens=64,output_tokens=64",
        "--data kind=synthetic_image,width=1024,height=1024,images_per_request=2,seed=7",
        "--seed kind=static,value=7",
        "slo.ttft_ms=3500,slo.tpot_ms=50.5",
        "--output kind=json,path=/tmp/out.json",
    ):
        assert part in told("guidellm", POINT)
    assert "image" not in told("guidellm", Point(TEXT, 1, 3))


@pytest.mark.parametrize("name", DRIVERS)
def test_a_real_result_comes_into_the_one_shape(name: str) -> None:
    seen = drivers.normalised(DRIVERS[name], POINT, RAW[name])
    assert (seen.seed, seen.again, seen.concurrency) == (7, False, 8)
    assert (seen.workload, seen.images, seen.failed) == ("image", 2, 0)
    assert seen.e2el_ms
    for times in (seen.ttft_ms, seen.tpot_ms, seen.e2el_ms):
        assert 0 < times["median"] <= times["p95"] <= times["p99"]
    assert seen.ttft_ms["median"] < seen.e2el_ms["median"]
    # By Little's law, and with eight answers of as many tokens each.
    assert seen.requests_per_s == pytest.approx(seen.requests / seen.seconds, rel=0.01)
    assert seen.output_tokens_per_s == pytest.approx(seen.requests_per_s * 8, rel=0.01)


def test_the_figures_are_those_of_the_result() -> None:
    seen = drivers.normalised(DRIVERS["vllm"], POINT, RAW["vllm"])
    assert seen.requests == 4
    assert seen.ttft_ms == {"mean": 212.67, "median": 215.9, "p95": 313.41, "p99": 314.18}
    assert (seen.output_tokens_per_s, seen.goodput_per_s) == (51.1, 6.387)


def guidellm(**metrics: Any) -> BenchmarkPoint:
    raw = copy.deepcopy(RAW["guidellm"])
    raw["benchmarks"][0]["metrics"] |= metrics
    return drivers.normalised(DRIVERS["guidellm"], POINT, raw)


def test_guidellm_counts_what_was_not_answered_and_what_was_not_good() -> None:
    assert guidellm().goodput_per_s == guidellm().requests_per_s
    assert guidellm(slo_attainment=0.5).goodput_per_s == pytest.approx(guidellm().requests_per_s / 2, rel=0.01)
    assert guidellm(slo_attainment=None, slo_determined_requests=0).goodput_per_s == 0
    lost = guidellm(request_totals={"successful": 5, "errored": 2, "incomplete": 1, "total": 8})
    assert (lost.requests, lost.failed) == (8, 3)
    assert lost.itl_ms is None


WRONG: dict[str, list[dict[str, Any]]] = {
    "vllm": [{}, {"completed": None}, {**RAW["vllm"], "mean_ttft_ms": float("nan")}],
    "guidellm": [{}, {"benchmarks": []}, {"benchmarks": [{}]}, {"benchmarks": [{"metrics": None, "duration": 1}]}],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, found in WRONG.items() for wrong in found])
def test_what_is_no_result_is_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        drivers.normalised(DRIVERS[name], POINT, wrong)
