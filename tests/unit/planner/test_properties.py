"""What must hold for every model, GPU and setting, whatever the constants are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import Account, Settings, account
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case, verdict
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model, from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Wishes
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import judge, solve
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
told = st.builds(
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


def of(model: Model, host: gpus.Host, version: str, said: Settings) -> Account:
    return account(model, host.gpu, engines.engine(version, is_moe=model.is_moe), said)


def case_of(model: Model, host: gpus.Host, version: str) -> Case:
    return Case(model, host, engines.engine(version, is_moe=model.is_moe))


@MANY
@given(models, cards, versions, told, st.floats(0, 64))
def test_a_larger_budget_never_leaves_less(
    model: Model, host: gpus.Host, version: str, said: Settings, more: float
) -> None:
    larger = of(model, host, version, replace(said, budget_gib=said.budget_gib + more))
    assert larger.kv_cache_tokens >= of(model, host, version, said).kv_cache_tokens


@MANY
@given(models, cards, versions, told, st.floats(0, 64))
def test_a_larger_card_never_survives_less(
    model: Model, host: gpus.Host, version: str, said: Settings, more: float
) -> None:
    assume(said.budget_gib <= host.gpu.usable_gib)
    larger = replace(host, gpu=replace(host.gpu, usable_gib=host.gpu.usable_gib + more))
    here, there = (verdict(case_of(model, h, version), said) for h in (host, larger))
    assert there.starts >= here.starts
    assert there.survives >= here.survives


@MANY
@given(st.sampled_from(SEEING), cards, versions, told, st.integers(0, 16_711_680))
def test_more_pixels_never_leave_more(model: Model, host: gpus.Host, version: str, said: Settings, more: int) -> None:
    larger = replace(said, max_pixels=min(said.max_pixels + more, 16_777_216))
    here, there = (of(model, host, version, s) for s in (said, larger))
    assert there.kv_cache_tokens <= here.kv_cache_tokens
    assert there.step >= here.step


@MANY
@given(models, cards, versions, told, st.tuples(st.integers(0, 512), st.integers(0, 8192)))
def test_larger_batches_never_leave_more(
    model: Model, host: gpus.Host, version: str, said: Settings, more: tuple[int, int]
) -> None:
    seqs, tokens = more
    larger = replace(
        said,
        max_num_seqs=said.max_num_seqs + seqs,
        max_num_batched_tokens=said.max_num_batched_tokens + tokens,
    )
    here, there = (of(model, host, version, s) for s in (said, larger))
    assert there.kv_cache_tokens <= here.kv_cache_tokens


@MANY
@given(st.sampled_from(LARGE), cards, versions, told)
def test_more_gpus_never_hold_more_weights_each(model: Model, host: gpus.Host, version: str, said: Settings) -> None:
    shares = [of(model, host, version, replace(said, tensor_parallel=size)).weights for size in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    # Nothing is lost: all GPUs together hold at least one whole copy, up to what the allocator rounds.
    assert all(size * share >= shares[0] * 0.98 for size, share in zip((1, 2, 4, 8), shares, strict=True))


@MANY
@given(models, cards, versions, told)
def test_an_fp8_cache_holds_twice_the_tokens(model: Model, host: gpus.Host, version: str, said: Settings) -> None:
    wide, narrow = (
        of(model, host, version, replace(said, kv_cache_dtype=dtype)).kv_cache_tokens for dtype in ("bfloat16", "fp8")
    )
    assert 2 * wide <= narrow <= 2 * wide + 16


@MANY
@given(models, cards, versions, told)
def test_terms_are_sane_and_add_up(model: Model, host: gpus.Host, version: str, said: Settings) -> None:
    result = of(model, host, version, said)
    for name in ("weights", "context", "states", "activations", "encoder", "encoder_cache", "cuda_graphs", "outside"):
        value = getattr(result, name)
        assert math.isfinite(value)
        assert value >= 0
    assert result.kv_cache <= said.budget_gib - result.weights - result.context
    assert result.headroom == pytest.approx(result.card - result.resident - result.step)
    assert (result.cuda_graphs == 0) == said.enforce_eager


@FEW
@given(models, cards, versions, st.integers(1024, 200_000), st.floats(0, 64))
def test_more_memory_never_makes_wishes_impossible(
    model: Model, host: gpus.Host, version: str, context: int, more: float
) -> None:
    assume(context <= model.text.max_position_embeddings)
    larger = replace(host, gpu=replace(host.gpu, usable_gib=host.gpu.usable_gib + more))
    wishes = Wishes(context=context)
    # The solver's grid is a hundredth of the card: a step of it may be lost.
    assume(more == 0 or more > 0.02 * larger.gpu.usable_gib)
    if solve(case_of(model, host, version), wishes).fits:
        assert solve(case_of(model, larger, version), wishes).fits


@FEW
@given(models, cards, versions, st.none() | st.integers(1024, 200_000))
def test_a_plan_that_was_found_stands_before_the_judge(
    model: Model, host: gpus.Host, version: str, context: int | None
) -> None:
    assume(context is None or context <= model.text.max_position_embeddings)
    case = case_of(model, host, version)
    plan = solve(case, Wishes(context=context))
    if not plan.fits:
        assert plan.refusals
        return
    assert plan.max_model_len == (context or plan.max_model_len)
    flags = plan.flags()
    again = judge(
        case,
        Wishes(
            context=flags["max-model-len"],
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
    # The engine that was measured makes a larger cache; the plan must survive that, too.
    measured = verdict(case_of(model, host, CALIBRATED), plan.settings)
    assert measured.survives


@FEW
@given(st.sampled_from(LARGE), versions)
def test_each_entry_fits_a_host_that_is_large_enough(model: Model, version: str) -> None:
    host = gpus.parse("4x B200")
    assert solve(case_of(model, host, version), Wishes()).fits
