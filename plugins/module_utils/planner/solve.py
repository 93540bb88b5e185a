"""Two ways to a plan: judge given settings as vLLM would, or find the settings that meet the wishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import (
    Settings,
    image_tokens,
    kv_bytes_per_token,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.gpus import Host
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import (
    HIGHEST_UTILIZATION,
    MARGIN_GIB,
    PIXELS,
    Case,
    Plan,
    highest_budget,
    verdict,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Wishes, check, parallel_size
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import GIB
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

# vLLM's defaults for `vllm serve` (EngineArgs.get_batch_defaults, CacheConfig): requests, tokens of a step.
DEFAULT_UTILIZATION = 0.92
_LARGE_GPU_GIB = 70
_A100 = 8.0
_LARGE_DEFAULTS = (1024, 8192)
_SMALL_DEFAULTS = (256, 2048)

# Batches that the solver tries, in the order of preference: requests in one batch, tokens in one step.
_BATCHES = ((128, 8192), (64, 4096), (32, 2048), (8, 2048), (8, 1024))

# With the context left open the solver gives up to three tenths of it for larger images and batches, and stays with
# BF16 where that holds at least this many tokens (an fp8 cache has uncalibrated scales).
_WORTH = 0.7
_ENOUGH_CONTEXT = 65_536
_LEAST_CONTEXT = 2_048
_FP8_CACHE_CAPABILITY = 8.9


def judge(case: Case, wishes: Wishes, ladder: Sequence[Entry] = ()) -> Plan:
    """Say of given settings whether the engine starts and survives; what is not given is vLLM's default.

    Raises RefusalError for what is impossible whatever the memory.
    """
    _refuse(case, wishes)
    seqs, batched = default_batches(case.host)
    settings = replace(
        _settings(case, wishes, "bfloat16", (seqs, batched), _most_pixels(case)),
        budget_gib=_budget(case, wishes),
        max_model_len=wishes.context,
    )
    plan = verdict(case, settings, wishes.concurrent_requests)
    if plan.fits:
        return plan
    # What to do instead: the same service, with the settings left to the solver.
    service = Wishes(
        context=wishes.context,
        concurrent_requests=wishes.concurrent_requests,
        images_per_prompt=wishes.images_per_prompt,
        tensor_parallel_size=wishes.tensor_parallel_size,
        copies_encoder=wishes.copies_encoder,
        caches_kept=wishes.caches_kept,
    )
    return replace(plan, alternatives=tuple(_rungs(case, service, ladder)), closest=_closest(case, service))


def solve(case: Case, wishes: Wishes, ladder: Sequence[Entry] = ()) -> Plan:
    """Find the settings that meet the wishes; where none do, say which wish breaks and walk the ladder.

    Raises RefusalError for what is impossible whatever the memory.
    """
    _refuse(case, wishes)
    found = _search(case, wishes)
    if found:
        return found
    closest = _closest(case, wishes)
    plan = replace(_unmet(case, wishes, closest), starts=False, survives=False) if closest else _frugal(case, wishes)
    return replace(plan, alternatives=tuple(_rungs(case, wishes, ladder)), closest=closest)


def default_batches(host: Host) -> tuple[int, int]:
    """The max_num_seqs and max_num_batched_tokens that vLLM takes by itself (EngineArgs.get_batch_defaults)."""
    large = host.gpu.usable_gib >= _LARGE_GPU_GIB and host.gpu.compute_capability != _A100
    return _LARGE_DEFAULTS if large else _SMALL_DEFAULTS


def _search(case: Case, wishes: Wishes) -> Plan | None:
    """The first candidate, in the order of preference, that meets the wishes; None where none does."""
    plans = [plan for plan in _candidates(case, wishes) if _useful(plan)]
    if wishes.context:
        enough = [_told(plan, wishes.context) for plan in plans if plan.max_model_len >= wishes.context]
        return next(iter(_roomy(enough) or enough), None)
    wide = [plan for plan in plans if plan.settings.kv_cache_dtype == "bfloat16"]
    if max((plan.max_model_len for plan in wide), default=0) >= _ENOUGH_CONTEXT:
        plans = wide
    best = max((plan.max_model_len for plan in plans), default=0)
    good = [plan for plan in plans if plan.max_model_len >= _WORTH * best]
    chosen = next(iter(_roomy(good) or good), None)
    return _told(chosen, chosen.max_model_len) if chosen else None


def _candidates(case: Case, wishes: Wishes) -> Iterator[Plan]:
    """Every combination that starts and survives, each with the highest budget that leaves the margin."""
    dtypes = ["bfloat16"]
    if case.host.gpu.compute_capability >= _FP8_CACHE_CAPABILITY:
        dtypes.append("fp8")
    most = _most_pixels(case)
    areas = dict.fromkeys([most, *(area for area in PIXELS if area < most)]) if case.model.vision else [0]
    combinations = dict.fromkeys(
        _settings(case, wishes, dtype, batch, area) for dtype in dtypes for area in areas for batch in _BATCHES
    )
    for settings in combinations:
        budget = _budget(case, wishes) if _has_budget(wishes) else highest_budget(case, settings)
        if budget is None:
            continue
        plan = verdict(case, replace(settings, budget_gib=budget), wishes.concurrent_requests)
        # Who names the budget takes the margin in his own hands.
        if plan.fits and (_has_budget(wishes) or plan.account.headroom >= MARGIN_GIB):
            yield plan


def _settings(case: Case, wishes: Wishes, dtype: str, batch: tuple[int, int], area: int) -> Settings:
    """Settings without a budget: what is wished, else what is offered."""
    seqs = wishes.max_num_seqs or max(batch[0], wishes.concurrent_requests)
    images = case.model.images_per_prompt if wishes.images_per_prompt is None else wishes.images_per_prompt
    return Settings(
        tensor_parallel=parallel_size(wishes, case.model, case.host),
        budget_gib=0.0,
        kv_cache_dtype=wishes.kv_cache_dtype or dtype,
        max_num_seqs=seqs,
        max_num_batched_tokens=wishes.max_num_batched_tokens or max(batch[1], seqs),
        max_pixels=(wishes.max_pixels or area) if case.model.vision else 0,
        images_per_prompt=images if case.model.vision else 0,
        enforce_eager=wishes.enforce_eager,
        copies_encoder=wishes.copies_encoder,
        caches_kept=wishes.caches_kept,
    )


def _closest(case: Case, wishes: Wishes) -> Plan | None:
    """A plan for this model with as few wishes given up as possible."""
    no_context = replace(wishes, context=None)
    single = replace(no_context, concurrent_requests=1)
    for fewer in (
        no_context,
        replace(wishes, max_pixels=None),
        single,
        replace(no_context, max_pixels=None),
        replace(single, max_pixels=None, gpu_memory_utilization=None, budget_gib=None),
        Wishes(tensor_parallel_size=wishes.tensor_parallel_size),
    ):
        found = _search(case, fewer)
        if found:
            return found
    return None


def _unmet(case: Case, wishes: Wishes, closest: Plan) -> Plan:
    """The closest plan, told what was wished: with the wish that breaks, and by how much."""
    told, name = closest.settings, case.name
    found = []
    if wishes.context and closest.max_model_len < wishes.context:
        requests = wishes.concurrent_requests
        needed = wishes.context * requests * kv_bytes_per_token(case.model, told) / GIB
        found.append(
            Refusal(
                "context_too_long",
                f"{name('context')}: {f'{requests} x ' if requests > 1 else ''}{wishes.context} tokens need "
                f"{needed:.2f} GiB of KV cache per GPU in {told.kv_cache_dtype}; {closest.account.kv_cache:.2f} GiB "
                f"are left, for at most {closest.max_model_len} tokens.",
                f"Set {name('context')} to at most {closest.max_model_len}, or take an alternative.",
            )
        )
    if wishes.max_pixels and told.max_pixels < wishes.max_pixels:
        found.append(
            Refusal(
                "images_too_large",
                f"{name('max_pixels')}: images of {wishes.max_pixels} pixels do not survive; {told.max_pixels} do.",
                f"Set {name('max_pixels')} to {told.max_pixels} or to auto.",
            )
        )
    if not found:
        given = ", ".join(f"{name(key)} {value}" for key, value in vars(wishes).items() if value not in (None, False))
        flags = ", ".join(f"{flag} {value}" for flag, value in closest.flags().items())
        found.append(
            Refusal("wishes_do_not_fit", f"No settings meet all of {given} on {case.host}.", f"These fit: {flags}.")
        )
    return replace(closest, settings=replace(told, max_model_len=wishes.context), refusals=tuple(found))


def _frugal(case: Case, wishes: Wishes) -> Plan:
    """The verdict on the most frugal settings, to say why even they do not fit."""
    budget = _budget(case, wishes) if _has_budget(wishes) else HIGHEST_UTILIZATION * case.host.gpu.usable_gib
    offered = _settings(case, wishes, "fp8", _BATCHES[-1], min(PIXELS))
    settings = replace(offered, budget_gib=budget, max_model_len=wishes.context or _LEAST_CONTEXT)
    plan = verdict(case, settings, wishes.concurrent_requests)
    if plan.refusals:
        return plan
    tight = Refusal(
        "no_margin",
        f"{case.model.name} leaves {plan.account.headroom:.2f} GiB free on {case.host} with the most frugal settings; "
        f"a plan asks for {MARGIN_GIB:.1f} GiB.",
        "Take an alternative, or give all settings yourself.",
    )
    return replace(plan, refusals=(tight,), survives=False)


def _rungs(case: Case, wishes: Wishes, ladder: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """The ladder of alternatives with the same wishes, up to the first that fits: smaller images, then other models."""
    if case.model.vision:
        rung = _capped(case, wishes)
        yield rung
        if rung["fits"]:
            return
    for entry in ladder:
        rung = _rung(case, wishes, entry)
        yield rung
        if rung["fits"]:
            return


def _capped(case: Case, wishes: Wishes) -> dict[str, Any]:
    found = _search(case, replace(wishes, max_pixels=None))
    if found:
        return found.summary() | {"fits": True, "why": f"with images of at most {found.settings.max_pixels} pixels"}
    room = f"for {wishes.context} tokens" if wishes.context else "for the KV cache"
    return {"model": case.model.name, "fits": False, "why": f"smaller images do not leave room {room}"}


def _rung(case: Case, wishes: Wishes, entry: Entry) -> dict[str, Any]:
    out: dict[str, Any] = {"model": entry.name, "fits": False}
    capability = case.host.gpu.compute_capability
    if entry.min_compute_capability and capability < entry.min_compute_capability:
        return out | {"why": f"needs compute capability {entry.min_compute_capability:g}, not {capability:g}"}
    try:
        model = from_entry(entry)
        engine = engines.engine(case.engine.version, is_moe=model.is_moe)
        other = replace(case, model=model, engine=engine)
        kept = wishes if model.vision else replace(wishes, max_pixels=None, images_per_prompt=None)
        plan = solve(other, kept)
    except RefusalError as error:
        return out | {"why": error.refusals[0].message}
    if plan.fits:
        return plan.summary() | {"fits": True, "why": entry.title}
    return out | {"why": plan.refusals[0].message}


def _useful(plan: Plan) -> bool:
    """Whether one request holds a prompt with one largest image."""
    return plan.max_model_len >= _LEAST_CONTEXT + image_tokens(plan.case.model, plan.settings.max_pixels)


def _roomy(plans: Sequence[Plan]) -> list[Plan]:
    """The plans in which the images of one prompt leave half of it for text."""
    return [
        plan
        for plan in plans
        if 2 * plan.settings.images_per_prompt * image_tokens(plan.case.model, plan.settings.max_pixels)
        <= plan.max_model_len
    ]


def _told(plan: Plan, context: int) -> Plan:
    return replace(plan, settings=replace(plan.settings, max_model_len=context), max_model_len=context)


def _most_pixels(case: Case) -> int:
    return case.model.vision.max_pixels if case.model.vision else 0


def _has_budget(wishes: Wishes) -> bool:
    return wishes.gpu_memory_utilization is not None or wishes.budget_gib is not None


def _budget(case: Case, wishes: Wishes) -> float:
    if wishes.budget_gib is not None:
        return wishes.budget_gib
    return (wishes.gpu_memory_utilization or DEFAULT_UTILIZATION) * case.host.gpu.usable_gib


def _refuse(case: Case, wishes: Wishes) -> None:
    refusals = check(wishes, case.model, case.host, case.name)
    if refusals:
        raise RefusalError(*refusals)
