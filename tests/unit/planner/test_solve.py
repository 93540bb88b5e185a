"""The solver: the user's own hardware, requirements that break, the ladder of alternatives, and every entry."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case, Plan
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements, variable_name
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import default_batches, judge, solve
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import ROOT

NAMES = [name for name in catalogue.names() if not catalogue.load(name).refused]

# What the study proposed for two RTX 4090.
PROPOSED = Requirements(
    max_model_len=131_072,
    gpu_memory_utilization=0.85,
    kv_cache_dtype="fp8",
    max_num_seqs=32,
    tensor_parallel_size=2,
)


def case(name: str, host: str, version: str = versions.DEPLOYED) -> Case:
    model = from_entry(catalogue.load(name))
    return Case(model, gpus.parse(host), engines.engine(version, is_moe=model.is_moe))


def ladder(name: str) -> list[catalogue.Entry]:
    return [catalogue.load(other) for other in catalogue.load(name).alternatives]


def on_4090s(requirements: Requirements, name: str = "qwen3-vl-32b-instruct-fp8") -> Plan:
    return solve(case(name, "2x RTX 4090"), requirements, ladder(name))


@pytest.mark.parametrize("version", [versions.CALIBRATED, versions.DEPLOYED])
def test_the_proposed_flags_are_refused_with_numbers(version: str) -> None:
    name = "qwen3-vl-32b-instruct-fp8"
    plan = judge(case(name, "2x RTX 4090", version), PROPOSED, ladder(name))
    assert (plan.starts, plan.survives) == (False, False)
    assert plan.refusals[0].code == "kv_cache_too_small"
    assert "131072 tokens needs 8.00 GiB" in plan.refusals[0].message
    assert plan.closest is not None
    assert plan.closest.fits
    fitting = [rung for rung in plan.alternatives if rung["fits"]]
    assert [rung["model"] for rung in fitting] == ["qwen3-vl-32b-instruct-awq"]
    assert fitting[0]["max_model_len"] == 131_072


def test_the_best_fp8_plan() -> None:
    plan = on_4090s(Requirements())
    assert plan.fits
    assert plan.survives
    assert plan.settings.kv_cache_dtype == "fp8"
    assert 35_000 < plan.max_model_len < 60_000
    assert plan.settings.max_pixels < 16_777_216
    # The next larger images would not leave their share, or would kill it.
    assert plan.account.headroom >= 0.3


def test_the_four_bit_plan_for_128k() -> None:
    plan = on_4090s(Requirements(max_model_len=131_072), "qwen3-vl-32b-instruct-awq")
    assert plan.fits
    assert plan.flags()["max-model-len"] == 131_072


def test_a_requirement_that_breaks_is_named_with_its_numbers() -> None:
    plan = on_4090s(Requirements(max_model_len=131_072))
    (reason,) = plan.refusals
    assert reason.code == "context_too_long"
    assert "131072 tokens need 8.00 GiB" in reason.message
    assert plan.closest is not None
    assert f"at most {plan.closest.max_model_len}" in reason.fix
    assert plan.flags()["max-model-len"] == 131_072


def test_images_that_break_are_named() -> None:
    plan = on_4090s(Requirements(max_model_len=50_000, max_pixels=16_777_216))
    assert [reason.code for reason in plan.refusals] == ["images_too_large"]
    # The first rung of the ladder is the same model with smaller images, and it ends there.
    assert [rung["fits"] for rung in plan.alternatives] == [True]
    assert plan.alternatives[0]["model"] == "qwen3-vl-32b-instruct-fp8"


def test_concurrent_requests_share_the_cache() -> None:
    one, four = (on_4090s(Requirements(max_model_len=12_000, concurrent_requests=requests)) for requests in (1, 4))
    assert one.fits
    assert four.fits
    too_many = on_4090s(Requirements(max_model_len=12_000, concurrent_requests=9))
    assert too_many.refusals[0].code == "context_too_long"
    assert "9 x 12000 tokens" in too_many.refusals[0].message


@pytest.mark.parametrize(
    ("requests", "length", "fits"),
    [(13, 4096, True), (14, 4096, False), (14, 3840, True), (30, 4096, False), (30, 1024, True), (44, 1024, True)],
)
def test_as_many_concurrent_requests_as_the_cache_holds(requests: int, length: int, fits: bool) -> None:
    plan = on_4090s(Requirements(max_model_len=length, concurrent_requests=requests))
    assert plan.fits is fits
    if fits:
        assert plan.account.kv_cache_tokens >= requests * length
        return
    (reason,) = plan.refusals
    assert reason.code == "context_too_long"
    assert f"{requests} x {length} tokens need " in reason.message
    assert "13 requests of this length fit concurrently, more wait in the queue." in reason.message
    assert reason.fix.startswith("Set --concurrent-requests to at most 13, --max-model-len to at most ")
    assert plan.alternatives[0]["why"] == f"smaller images do not leave room for {requests} x {length} tokens"
    # The closest plan serves the length, with the others in the queue.
    assert plan.closest is not None
    assert plan.closest.flags()["max-model-len"] == length


def test_the_judge_reports_how_many_concurrent_requests_fit() -> None:
    given = Requirements(
        max_model_len=4096, gpu_memory_utilization=0.9, kv_cache_dtype="fp8", max_num_seqs=32, max_pixels=1_048_576
    )
    eager = case("qwen3-vl-32b-instruct-fp8", "2x RTX 4090")
    (reason,) = judge(eager, replace(given, concurrent_requests=30)).refusals
    assert reason.code == "kv_cache_too_small"
    assert "30 requests of 4096 tokens need 7.50 GiB" in reason.message
    at_most, length = (int(number) for number in re.findall(r"at most (\d+)", reason.fix)[::-1])
    assert f"{at_most} of this length fit concurrently, more wait in the queue" in reason.message
    assert judge(eager, replace(given, concurrent_requests=at_most)).fits
    assert judge(eager, replace(given, concurrent_requests=30, max_model_len=length)).fits


def test_concurrent_requests_share_an_automatic_length() -> None:
    plan = on_4090s(Requirements(concurrent_requests=30))
    assert plan.fits
    assert 1024 < plan.max_model_len <= plan.account.kv_cache_tokens // 30
    # An image fits into such a request, with as much text.
    assert 2 * plan.settings.max_pixels <= 1024 * plan.max_model_len


def test_more_requests_than_a_batch_can_hold_say_how_many_can() -> None:
    (reason,) = on_4090s(Requirements(concurrent_requests=3000)).refusals
    assert reason.code == "context_too_long"
    assert reason.message.startswith("--concurrent-requests: 3000 requests of any length do not fit; ")
    at_most = int(reason.fix.split("at most ")[1].split(",")[0])
    assert on_4090s(Requirements(max_model_len=16, concurrent_requests=at_most)).fits


def test_a_cache_without_a_useful_length_is_taken_when_the_length_is_named() -> None:
    # Some GPU between too small and large enough.
    small = replace(case("qwen3-vl-8b-instruct-fp8", "L4"), host=gpus.custom(12.3, 1, 8.9))
    plan = solve(small, Requirements())
    (reason,) = plan.refusals
    assert reason.code == "context_too_short"
    assert reason.message.startswith("--max-model-len: auto needs at least 2560 tokens, a prompt with one image; ")
    at_most = int(reason.fix.split("at most ")[1].split(",")[0])
    assert 0 < at_most < 2560
    assert solve(small, Requirements(max_model_len=at_most)).fits


def test_a_model_that_cannot_fit_is_refused_with_alternatives() -> None:
    name = "qwen3-vl-32b-instruct-fp8"
    plan = solve(case(name, "1x RTX 4090"), Requirements(max_model_len=65_536), ladder(name))
    assert plan.refusals[0].code == "no_memory_for_cache"
    assert plan.closest is None
    verdicts = {rung["model"]: rung["fits"] for rung in plan.alternatives}
    assert verdicts == {
        "qwen3-vl-32b-instruct-fp8": False,
        "qwen3-vl-32b-instruct-awq": False,
        "qwen3-vl-30b-a3b-instruct-fp8": False,
        "qwen3-vl-8b-instruct-fp8": True,
    }
    assert all(rung["why"] for rung in plan.alternatives)


def test_ladder_skips_what_the_gpu_cannot_run() -> None:
    rungs = [catalogue.load("qwen3-vl-32b-instruct-nvfp4"), catalogue.load("qwen3-vl-32b-instruct-gguf")]
    plan = solve(case("qwen3-vl-235b-a22b-instruct-fp8", "1x H100"), Requirements(), rungs)
    assert [rung["fits"] for rung in plan.alternatives] == [False, False, False]
    assert "compute capability 10" in plan.alternatives[1]["why"]
    assert "GGUF" in plan.alternatives[2]["why"]


def test_bf16_cache_is_kept_where_it_is_enough() -> None:
    plan = solve(case("qwen3-vl-32b-instruct-fp8", "1x H100"), Requirements())
    assert plan.settings.kv_cache_dtype == "bfloat16"
    assert plan.max_model_len > 131_072


def test_named_settings_are_kept() -> None:
    requirements = Requirements(gpu_memory_utilization=0.9, max_pixels=1_048_576, max_num_seqs=16, kv_cache_dtype="fp8")
    flags = on_4090s(replace(requirements, max_num_batched_tokens=2048, images_per_prompt=2)).flags()
    assert flags["gpu-memory-utilization"] == 0.9
    assert flags["mm-processor-kwargs"] == {"max_pixels": 1_048_576}
    assert flags["limit-mm-per-prompt"] == {"image": 2, "video": 0}
    assert (flags["max-num-seqs"], flags["max-num-batched-tokens"]) == (16, 2048)


@pytest.mark.parametrize("name", NAMES)
def test_each_entry_gets_a_plan_on_a_large_host(name: str) -> None:
    host = "1x B200" if name == "tiny-qwen3-vl" else "4x B200"
    plan = solve(case(name, host), Requirements(max_model_len=32_768), ladder(name))
    assert plan.fits
    flags = plan.flags()
    assert flags["max-model-len"] == 32_768
    assert ("mm-processor-kwargs" in flags) == (plan.case.model.vision is not None)
    assert plan.account.longest >= 32_768


@pytest.mark.parametrize("inventory", ["rtx4090x2", "h100x1"])
def test_the_shipped_inventories_can_be_planned(inventory: str) -> None:
    variables = yaml.safe_load((ROOT / "inventories" / inventory / "group_vars" / "vllm.yml").read_text())
    model = from_entry(catalogue.load(variables["vllm_model"]))
    host = gpus.from_facts(variables["vram_plan_gpus"])
    plan = solve(Case(model, host, engines.engine(versions.DEPLOYED), variable_name), Requirements())
    assert plan.fits


@pytest.mark.parametrize(
    ("host", "batches"),
    [("RTX 4090", (256, 2048)), ("H100", (1024, 8192)), ("A100 80GB", (256, 2048)), ("L40S", (256, 2048))],
)
def test_default_batches_are_vllms(host: str, batches: tuple[int, int]) -> None:
    assert default_batches(gpus.parse(host)) == batches


def test_engine_rules_by_version() -> None:
    dense, mixture = engines.engine("0.26.0"), engines.engine("0.26.0", is_moe=True)
    assert (dense.counts_encoder, dense.counts_graphs) == (False, False)
    assert (mixture.counts_encoder, mixture.counts_graphs) == (True, True)
    assert engines.engine("v0.33.0-cu129").counts_states
    with pytest.raises(RefusalError, match="engine version"):
        engines.engine("latest")


@pytest.mark.parametrize(
    ("version", "is_moe", "calibrated", "basis"),
    [
        ("0.26.0", False, True, "measured at boots"),
        ("v0.26.0", False, True, "measured at boots"),
        ("0.26.0", True, False, "no boot of a mixture of experts was measured; planned from its source"),
        ("0.33.0", False, False, "no boot of this version was measured; planned from its source"),
        ("0.33.1", True, False, "no boot of this version was measured; planned as 0.33.0"),
        ("0.40.0", False, False, "no boot of this version was measured; planned as 0.33.0"),
        ("0.31.0", False, False, "no boot of this version was measured; planned as 0.26.0"),
        ("0.11.0", False, False, "no boot of this version was measured; planned as 0.26.0"),
    ],
)
def test_a_plan_has_its_basis(version: str, is_moe: bool, calibrated: bool, basis: str) -> None:
    engine = engines.engine(version, is_moe=is_moe)
    assert (engine.calibrated, engine.basis) == (calibrated, basis)
    known = engines.engine(versions.nearest_read(version), is_moe=is_moe)
    rules = ("counts_encoder", "counts_graphs", "counts_states")
    assert [getattr(engine, rule) for rule in rules] == [getattr(known, rule) for rule in rules]


def test_the_deployed_engine_counts_images_at_the_start() -> None:
    small, large = (
        judge(case("qwen3-vl-8b-instruct-fp8", "RTX 4090"), Requirements(max_pixels=pixels, max_num_seqs=32)).account
        for pixels in (1_048_576, 16_777_216)
    )
    assert small.kv_cache - large.kv_cache > 1.5


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"gpu_memory_utilization": 7.0}, "vram_plan_gpu_memory_utilization: 7.0"),
    ({"tensor_parallel_size": 3}, "vram_plan_tensor_parallel_size: 3"),
    ({"max_model_len": 262_145}, "vram_plan_max_model_len: 262145"),
    ({"max_model_len": -1}, "vram_plan_max_model_len: -1"),
    ({"max_pixels": 100}, "vram_plan_max_pixels: 100"),
    ({"max_pixels": 99_999_999}, "vram_plan_max_pixels: 99999999"),
    ({"images_per_prompt": -1}, "vram_plan_images_per_prompt: -1"),
    ({"max_num_seqs": 0}, "vram_plan_max_num_seqs: 0"),
    ({"max_num_batched_tokens": -5}, "vram_plan_max_num_batched_tokens: -5"),
    ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "vram_plan_max_num_batched_tokens: 32"),
    ({"max_num_seqs": 2, "concurrent_requests": 4}, "vram_plan_max_num_seqs: 2"),
    ({"concurrent_requests": 0}, "vram_plan_concurrent_requests: 0"),
    ({"kv_cache_dtype": "fp8_e5m2"}, "vram_plan_kv_cache_dtype: fp8_e5m2"),
    ({"budget_gib": 30.0}, "vram_plan_budget_gib: 30.0"),
]


@pytest.mark.parametrize(("required", "named"), IMPOSSIBLE, ids=[named for _, named in IMPOSSIBLE])
@pytest.mark.parametrize("way", [judge, solve])
def test_impossible_requirements_are_refused_by_name(way: Any, required: dict[str, Any], named: str) -> None:
    asked = replace(case("qwen3-vl-32b-instruct-fp8", "4x RTX 4090"), name=variable_name)
    with pytest.raises(RefusalError) as caught:
        way(asked, Requirements(**required))
    assert named in caught.value.refusals[0].message
    assert caught.value.refusals[0].fix


def test_a_parallelism_that_does_not_divide_is_refused_with_those_that_do() -> None:
    mixture = case("qwen3-vl-30b-a3b-instruct-fp8", "4x H100")
    with pytest.raises(RefusalError, match="inner size \\(768 in blocks of 128\\)") as caught:
        solve(mixture, Requirements(tensor_parallel_size=4))
    assert caught.value.refusals[0].fix == "Set --tensor-parallel-size to 1 or 2."
    assert solve(mixture, Requirements()).settings.tensor_parallel == 2


def test_a_gpu_that_is_too_old_is_refused() -> None:
    old = gpus.custom(16, 1, 7.0)
    with pytest.raises(RefusalError, match="compute capability 7"):
        solve(replace(case("qwen3-vl-2b-instruct-fp8", "L4"), host=old), Requirements())


def test_text_model_has_no_images() -> None:
    text = case("qwen3-32b-awq", "2x RTX 4090")
    assert solve(text, Requirements()).account.encoder == 0
    with pytest.raises(RefusalError, match="no vision"):
        solve(text, Requirements(max_pixels=1_048_576))


def test_a_budget_above_free_memory_does_not_start() -> None:
    plan = judge(case("qwen3-vl-8b-instruct-fp8", "RTX 4090"), Requirements(gpu_memory_utilization=0.99))
    assert "budget_above_free_memory" in [reason.code for reason in plan.refusals]
    assert not plan.starts


def test_named_settings_that_would_die_are_not_taken_for_a_plan() -> None:
    # This engine gives the cache what the largest images need.
    blind = case("qwen3-vl-32b-instruct-fp8", "2x RTX 4090", versions.CALIBRATED)
    plan = solve(blind, Requirements(gpu_memory_utilization=0.95, max_pixels=16_777_216))
    assert not plan.fits
    assert not plan.survives
    assert plan.closest is not None
    assert plan.closest.settings.max_pixels < 16_777_216
