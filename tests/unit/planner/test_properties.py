"""What must hold for every model, GPU and setting, whatever the constants are."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import (
    BLOCK,
    Account,
    Settings,
    account,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import (
    Case,
    highest_budget,
    judge_settings,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model, from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import combinations, judge, solve
from ansible_collections.inference.vllm.plugins.module_utils.versions import CALIBRATED, DEPLOYED

MODELS = {name: from_entry(entry) for name, entry in catalogue.load_all().items() if not entry.refused}
# The demo's model is too small to be split.
LARGE = [model for name, model in MODELS.items() if name != "tiny-qwen3-vl"]
SEEING = [model for model in MODELS.values() if model.vision]

# No time limit for one example: a busy machine is not a wrong plan.
MANY = settings(max_examples=40)
FEW = settings(max_examples=12)

models = st.sampled_from(list(MODELS.values()))
versions = st.sampled_from([CALIBRATED, DEPLOYED])
cards = st.builds(
    gpus.custom,
    st.floats(8, 192),
    st.just(1),
    st.sampled_from([8.0, 8.6, 8.9, 9.0, 10.0, 12.0]),
)
engine_settings = st.builds(
    Settings,
    tensor_parallel=st.sampled_from([1, 2, 4, 8]),
    budget_gib=st.floats(4, 180),
    kv_cache_dtype=st.sampled_from(["bfloat16", "fp8"]),
    max_num_seqs=st.integers(1, 1024),
    max_num_batched_tokens=st.integers(1024, 16384),
    max_pixels=st.integers(65_536, 16_777_216),
    images_per_prompt=st.integers(1, 8),
    max_model_len=st.none() | st.integers(1024, 262_144),
    enforce_eager=st.booleans(),
    copies_encoder=st.booleans(),
)


def of(model: Model, host: gpus.Host, version: str, settings: Settings) -> Account:
    return account(model, host.gpu, engines.engine(version, is_moe=model.is_moe), settings)


def case_of(model: Model, host: gpus.Host, version: str) -> Case:
    return Case(model, host, engines.engine(version, is_moe=model.is_moe))


@MANY
@given(models, cards, versions, engine_settings, st.floats(0, 64))
def test_a_larger_budget_never_leaves_less(
    model: Model, host: gpus.Host, version: str, settings: Settings, more: float
) -> None:
    larger = of(model, host, version, replace(settings, budget_gib=settings.budget_gib + more))
    assert larger.kv_cache_tokens >= of(model, host, version, settings).kv_cache_tokens


@MANY
@given(models, cards, versions, engine_settings, st.floats(0, 64))
def test_a_larger_card_never_survives_less(
    model: Model, host: gpus.Host, version: str, settings: Settings, more: float
) -> None:
    assume(settings.budget_gib <= host.gpu.usable_gib)
    larger = replace(host, gpu=replace(host.gpu, usable_gib=host.gpu.usable_gib + more))
    here, there = (judge_settings(case_of(model, h, version), settings) for h in (host, larger))
    assert there.starts >= here.starts
    assert there.survives >= here.survives


@MANY
@given(st.sampled_from(SEEING), cards, versions, engine_settings, st.integers(0, 16_711_680))
def test_more_pixels_never_leave_more(
    model: Model, host: gpus.Host, version: str, settings: Settings, more: int
) -> None:
    larger = replace(settings, max_pixels=min(settings.max_pixels + more, 16_777_216))
    here, there = (of(model, host, version, s) for s in (settings, larger))
    assert there.kv_cache_tokens <= here.kv_cache_tokens
    assert there.step >= here.step


@MANY
@given(models, cards, versions, engine_settings, st.tuples(st.integers(0, 512), st.integers(0, 8192)))
def test_larger_batches_never_leave_more(
    model: Model, host: gpus.Host, version: str, settings: Settings, more: tuple[int, int]
) -> None:
    seqs, tokens = more
    larger = replace(
        settings,
        max_num_seqs=settings.max_num_seqs + seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens + tokens,
    )
    here, there = (of(model, host, version, s) for s in (settings, larger))
    assert there.kv_cache_tokens <= here.kv_cache_tokens


@MANY
@given(st.sampled_from(LARGE), cards, versions, engine_settings)
def test_more_gpus_never_hold_more_weights_each(
    model: Model, host: gpus.Host, version: str, settings: Settings
) -> None:
    shares = [of(model, host, version, replace(settings, tensor_parallel=size)).weights for size in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    # Nothing is lost: all GPUs together hold at least one whole copy, up to what the allocator rounds.
    assert all(size * share >= shares[0] * 0.98 for size, share in zip((1, 2, 4, 8), shares, strict=True))


@MANY
@given(models, cards, versions, engine_settings)
def test_an_fp8_cache_holds_twice_the_tokens(model: Model, host: gpus.Host, version: str, settings: Settings) -> None:
    wide, narrow = (
        of(model, host, version, replace(settings, kv_cache_dtype=dtype)).kv_cache_tokens
        for dtype in ("bfloat16", "fp8")
    )
    assert 2 * wide <= narrow <= 2 * wide + 16


@MANY
@given(models, cards, versions, engine_settings)
def test_terms_are_sane_and_add_up(model: Model, host: gpus.Host, version: str, settings: Settings) -> None:
    result = of(model, host, version, settings)
    for name in ("weights", "context", "states", "activations", "encoder", "encoder_cache", "cuda_graphs", "outside"):
        value = getattr(result, name)
        assert math.isfinite(value)
        assert value >= 0
    assert result.kv_cache <= settings.budget_gib - result.weights - result.context
    assert result.headroom == pytest.approx(result.card - result.resident - result.step)
    assert (result.cuda_graphs == 0) == settings.enforce_eager


@FEW
@given(models, cards, versions, st.integers(1024, 200_000), st.floats(0, 64))
def test_more_memory_never_makes_requirements_impossible(
    model: Model, host: gpus.Host, version: str, length: int, more: float
) -> None:
    assume(length <= model.text.max_position_embeddings)
    larger = replace(host, gpu=replace(host.gpu, usable_gib=host.gpu.usable_gib + more))
    requirements = Requirements(max_model_len=length)
    # The solver's grid is a hundredth of the card: a step of it may be lost.
    assume(more == 0 or more > 0.02 * larger.gpu.usable_gib)
    if solve(case_of(model, host, version), requirements).fits:
        assert solve(case_of(model, larger, version), requirements).fits


@FEW
@given(models, cards, versions, st.none() | st.integers(1024, 200_000))
def test_a_plan_that_was_found_stands_before_the_judge(
    model: Model, host: gpus.Host, version: str, length: int | None
) -> None:
    assume(length is None or length <= model.text.max_position_embeddings)
    case = case_of(model, host, version)
    plan = solve(case, Requirements(max_model_len=length))
    if not plan.fits:
        assert plan.refusals
        return
    assert plan.max_model_len == (length or plan.max_model_len)
    flags = plan.flags()
    again = judge(
        case,
        Requirements(
            max_model_len=flags["max-model-len"],
            max_pixels=flags.get("mm-processor-kwargs", {}).get("max_pixels"),
            images_per_prompt=flags.get("limit-mm-per-prompt", {}).get("image"),
            gpu_memory_utilization=flags["gpu-memory-utilization"],
            kv_cache_dtype="fp8" if flags["kv-cache-dtype"] == "fp8" else "bfloat16",
            max_num_seqs=flags["max-num-seqs"],
            max_num_batched_tokens=flags["max-num-batched-tokens"],
        ),
    )
    assert again.fits
    assert again.survives
    # The engine that was measured makes a larger cache; the plan must survive a first start of that, too.
    first_start = replace(plan.settings, caches_kept=False)
    assert judge_settings(case_of(model, host, CALIBRATED), first_start).survives


lengths = st.sampled_from([16, 512, 1024, 4096, 16_384, 40_000])
some_settings = st.fixed_dictionaries(
    {},
    optional={
        "gpu_memory_utilization": st.sampled_from([0.5, 0.8, 0.9, 0.92]),
        "kv_cache_dtype": st.sampled_from(["bfloat16", "fp8"]),
        "max_num_seqs": st.sampled_from([64, 128, 256]),
        "max_num_batched_tokens": st.sampled_from([1024, 2048, 8192]),
        "max_pixels": st.sampled_from([65_536, 1_048_576, 16_777_216]),
        "images_per_prompt": st.sampled_from([1, 4]),
        "enforce_eager": st.booleans(),
    },
)


@st.composite
def asked(draw: st.DrawFn) -> tuple[Case, Requirements]:
    """A model, a GPU and requirements, some of which can be met."""
    case = case_of(draw(models), draw(cards), draw(versions))
    named: dict[str, Any] = draw(some_settings)
    if not case.model.vision:
        named = {key: value for key, value in named.items() if key not in ("max_pixels", "images_per_prompt")}
    length = draw(st.none() | lengths)
    return case, Requirements(max_model_len=length, concurrent_requests=draw(st.integers(1, 64)), **named)


@MANY
@given(asked().filter(lambda one: one[1].max_model_len), st.data())
def test_what_the_judge_accepts_the_solver_does_not_refuse(one: tuple[Case, Requirements], data: st.DataObject) -> None:
    """With any settings that the solver may choose, and any budget that leaves the margin."""
    case, requirements = one
    settings = data.draw(st.sampled_from(combinations(case, requirements)))
    share = requirements.gpu_memory_utilization
    if share is None:
        highest = highest_budget(case, settings)
        assume(highest is not None)
        share = data.draw(st.integers(1, round((highest or 0) / case.host.gpu.usable_gib * 100))) / 100
    budget = share * case.host.gpu.usable_gib
    if judge_settings(case, replace(settings, budget_gib=budget), requirements.concurrent_requests).fits:
        assert solve(case, requirements).fits


@MANY
@given(asked())
def test_a_refusal_names_the_largest_number_that_fits(one: tuple[Case, Requirements]) -> None:
    case, requirements = one
    (code, fix), *others = [(reason.code, reason.fix) for reason in solve(case, requirements).refusals] or [("", "")]
    if others or code not in ("context_too_long", "context_too_short"):
        return
    limits = {name: int(number) for name, number in re.findall(r"--(\S+) to at most (\d+)", fix)}
    assert limits
    for option, most in limits.items():
        name = option.replace("-", "_")
        assert solve(case, named(requirements, name, most)).fits
        if code == "context_too_long":
            more = most + (BLOCK if name == "max_model_len" else 1)
            assert not solve(case, named(requirements, name, more)).fits


def named(requirements: Requirements, name: str, value: int) -> Requirements:
    values: dict[str, Any] = {**vars(requirements), name: value}
    return Requirements(**values)


@FEW
@given(st.sampled_from(LARGE), versions)
def test_each_entry_fits_a_host_that_is_large_enough(model: Model, version: str) -> None:
    host = gpus.parse("4x B200")
    assert solve(case_of(model, host, version), Requirements()).fits
