"""Judge explicit settings as vLLM would, or find settings that meet the requirements."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import (
    BLOCK,
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
    judge_settings,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import (
    Requirements,
    check,
    parallel_size,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import GIB
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

# vLLM's defaults for `vllm serve` (EngineArgs.get_batch_defaults, CacheConfig): requests, tokens of a step.
DEFAULT_UTILIZATION = 0.92
_LARGE_GPU_GIB = 70
_A100 = 8.0
_LARGE_DEFAULTS = (1024, 8192)
_SMALL_DEFAULTS = (256, 2048)

# Batches that the solver tries, in order of preference: requests in one batch, tokens in one step.
_BATCHES = ((128, 8192), (64, 4096), (32, 2048), (8, 2048), (8, 1024))

# With an automatic length the solver trades up to three tenths of it for larger images and batches, and keeps BF16 if
# the cache holds at least this many tokens (an fp8 cache has uncalibrated scales). It refuses a plan whose cache is
# smaller than one prompt with one image of the largest size; an explicit length allows a smaller one.
_WORTH = 0.7
_ENOUGH_CONTEXT = 65_536
_LEAST_CONTEXT = 2_048
_FP8_CACHE_CAPABILITY = 8.9


def judge(case: Case, requirements: Requirements, ladder: Sequence[Entry] = ()) -> Plan:
    """Judge whether the engine starts and survives with explicit settings; the others have vLLM's defaults.

    Raises RefusalError for what is impossible whatever the memory.
    """
    _refuse(case, requirements)
    settings = _settings(case, requirements, "bfloat16", default_batches(case.host), _most_pixels(case))
    settings = replace(settings, budget_gib=_budget(case, requirements) or DEFAULT_UTILIZATION * _card(case))
    plan = judge_settings(case, settings, requirements.concurrent_requests)
    if plan.fits:
        return plan
    # The alternative: the same service with automatic settings.
    service = Requirements(
        max_model_len=requirements.max_model_len,
        concurrent_requests=requirements.concurrent_requests,
        images_per_prompt=requirements.images_per_prompt,
        tensor_parallel_size=requirements.tensor_parallel_size,
        mm_encoder_tp_mode=requirements.mm_encoder_tp_mode,
        caches_kept=requirements.caches_kept,
    )
    _, closest = _closest(case, service)
    return replace(plan, alternatives=tuple(_rungs(case, service, ladder)), closest=closest)


def solve(case: Case, requirements: Requirements, ladder: Sequence[Entry] = ()) -> Plan:
    """Find settings that meet the requirements. If none do, name the unmet requirement and try the alternatives.

    Raises RefusalError for what is impossible whatever the memory.
    """
    _refuse(case, requirements)
    found = _search(case, requirements)
    if found:
        return replace(found, alternatives=tuple(_longer(case, requirements, found)))
    met, closest = _closest(case, requirements)
    plan = _unmet(case, requirements, met, closest) if closest else _smallest_plan(case, requirements)
    return replace(plan, alternatives=tuple(_rungs(case, requirements, ladder)), closest=closest)


def default_batches(host: Host) -> tuple[int, int]:
    """vLLM's defaults of max_num_seqs and max_num_batched_tokens (EngineArgs.get_batch_defaults)."""
    large = host.gpu.usable_gib >= _LARGE_GPU_GIB and host.gpu.compute_capability != _A100
    return _LARGE_DEFAULTS if large else _SMALL_DEFAULTS


def _search(case: Case, requirements: Requirements) -> Plan | None:
    """The first candidate, in order of preference, that meets the requirements; None if none does."""
    tried = (_candidate(case, requirements, settings) for settings in combinations(case, requirements))
    plans: Sequence[Plan] = [plan for plan in tried if plan]
    if requirements.max_model_len is None:
        plans = _longest([plan for plan in plans if plan.account.kv_cache_tokens >= _least_tokens(plan)])
    chosen = _with_room(plans)
    if chosen is None:
        return None
    return replace(chosen, settings=replace(chosen.settings, max_model_len=chosen.max_model_len))


def combinations(case: Case, requirements: Requirements) -> list[Settings]:
    """The combinations that the solver tries, without a budget, in order of preference."""
    offered = (
        _settings(case, requirements, dtype, batch, area)
        for dtype in _dtypes(case)
        for area in _areas(case)
        for batch in _BATCHES
    )
    return list(dict.fromkeys(offered))


def _dtypes(case: Case) -> list[str]:
    return ["bfloat16", "fp8"] if case.host.gpu.compute_capability >= _FP8_CACHE_CAPABILITY else ["bfloat16"]


def _areas(case: Case) -> list[int]:
    """Image sizes to try, largest first; 0 without vision."""
    most = _most_pixels(case)
    return [most, *(area for area in PIXELS if area < most)]


def _settings(case: Case, requirements: Requirements, dtype: str, batch: tuple[int, int], area: int) -> Settings:
    """Settings without a budget: the required values, otherwise the candidate's."""
    seqs = requirements.max_num_seqs or max(batch[0], requirements.concurrent_requests)
    has_vision = case.model.vision is not None
    images = requirements.images_per_prompt
    return Settings(
        tensor_parallel=parallel_size(requirements, case.model, case.host),
        budget_gib=0.0,
        kv_cache_dtype=requirements.kv_cache_dtype or dtype,
        max_num_seqs=seqs,
        max_num_batched_tokens=requirements.max_num_batched_tokens or max(batch[1], seqs),
        max_pixels=(requirements.max_pixels or area) if has_vision else 0,
        images_per_prompt=(case.model.images_per_prompt if images is None else images) if has_vision else 0,
        max_model_len=requirements.max_model_len,
        enforce_eager=requirements.enforce_eager,
        copies_encoder=has_vision and requirements.mm_encoder_tp_mode == "data",
        caches_kept=requirements.caches_kept,
    )


def _candidate(case: Case, requirements: Requirements, settings: Settings) -> Plan | None:
    """The plan with these settings and the highest budget that leaves the margin; None if it does not fit."""
    required = _budget(case, requirements)
    budget = required or highest_budget(case, settings)
    if budget is None:
        return None
    plan = judge_settings(case, replace(settings, budget_gib=budget), requirements.concurrent_requests)
    # An explicit budget overrides the safety margin.
    return plan if plan.fits and (required or plan.account.headroom >= MARGIN_GIB) else None


def _possible(case: Case, requirements: Requirements) -> bool:
    """Whether a required length fits at all, that is with the smallest batch and images of any size.

    Nearly always the smallest images leave the most memory. Larger ones may take part of the memory before the KV cache
    is sized, which then allows a higher utilization.
    """
    smallest = (
        _settings(case, requirements, dtype, _BATCHES[-1], area)
        for area in reversed(_areas(case))
        for dtype in _dtypes(case)
    )
    return any(_candidate(case, requirements, settings) for settings in smallest)


def _longest(plans: Sequence[Plan]) -> Sequence[Plan]:
    """The plans with an automatic length that are long enough to be compared by images and batches."""
    wide = [plan for plan in plans if plan.settings.kv_cache_dtype == "bfloat16"]
    if max((plan.max_model_len for plan in wide), default=0) >= _ENOUGH_CONTEXT:
        plans = wide
    best = max((plan.max_model_len for plan in plans), default=0)
    return [plan for plan in plans if plan.max_model_len >= _WORTH * best]


def _with_room(plans: Sequence[Plan]) -> Plan | None:
    """The first plan in which all images of a prompt, or at least one, leave half of the length for text.

    If there is none, the plan with the smallest images; None if there are no plans.
    """

    def has_room(plan: Plan, images: int) -> bool:
        return 2 * images * image_tokens(plan.case.model, plan.settings.max_pixels) <= plan.max_model_len

    for plan in plans:
        if has_room(plan, plan.settings.images_per_prompt):
            return plan
    smallest = min(plans, key=lambda plan: plan.settings.max_pixels, default=None)
    return next((plan for plan in plans if has_room(plan, 1)), smallest)


def _closest(case: Case, requirements: Requirements) -> tuple[Requirements, Plan | None]:
    """The requirements that can be met and a plan for them, with as few relaxed as possible; None for no plan."""
    for fewer in _concessions(case, requirements):
        found = _search(case, fewer)
        if found:
            return fewer, found
    return requirements, None


def _concessions(case: Case, requirements: Requirements) -> Iterator[Requirements]:
    """The requirements, relaxed step by step."""
    yield requirements
    concurrent = _most_concurrent(case, requirements)
    if concurrent:
        yield replace(requirements, concurrent_requests=concurrent)
    length = _most_tokens(case, requirements)
    if length >= _LEAST_CONTEXT + image_tokens(case.model, requirements.max_pixels or _areas(case)[-1]):
        yield replace(requirements, max_model_len=length)
    any_image = replace(requirements, max_pixels=None)
    yield any_image
    yield replace(any_image, max_model_len=_most_tokens(case, any_image) or None)
    if length:
        yield replace(requirements, max_model_len=length)
    single = replace(any_image, max_model_len=None, concurrent_requests=1)
    yield single
    yield replace(single, gpu_memory_utilization=None, budget_gib=None)
    yield Requirements(tensor_parallel_size=requirements.tensor_parallel_size)


def _most_concurrent(case: Case, requirements: Requirements) -> int:
    """Number of concurrent requests of the required length that fit; 0 if none fits."""
    return _largest(
        case, requirements.concurrent_requests, lambda requests: replace(requirements, concurrent_requests=requests)
    )


def _most_tokens(case: Case, requirements: Requirements) -> int:
    """The longest request that fits with the other requirements, in whole blocks of the cache; 0 if none fits."""
    most = requirements.max_model_len or case.model.text.max_position_embeddings
    return BLOCK * _largest(case, most // BLOCK, lambda blocks: replace(requirements, max_model_len=BLOCK * blocks))


def _largest(case: Case, most: int, required: Callable[[int], Requirements]) -> int:
    """The largest number from 1 to ``most`` that fits, if all smaller ones fit; 0 if none fits."""
    return bisect_left(range(1, most + 1), True, key=lambda number: not _possible(case, required(number)))


def _unmet(case: Case, requirements: Requirements, met: Requirements, closest: Plan) -> Plan:
    """The closest plan, refused with the unmet requirements and the values that fit."""
    found = []
    if met == replace(requirements, concurrent_requests=met.concurrent_requests):
        found.append(_too_many(case, requirements, met, closest))
    elif met.max_model_len and met.max_model_len != requirements.max_model_len:
        found.append(_too_long(case, requirements, met, closest))
    if requirements.max_pixels and closest.settings.max_pixels < requirements.max_pixels:
        name, pixels = case.name("max_pixels"), closest.settings.max_pixels
        found.append(
            Refusal(
                "images_too_large",
                f"{name}: images of {requirements.max_pixels} pixels do not survive; {pixels} do.",
                f"Set {name} to {pixels} or to auto.",
            )
        )
    if not found:
        defaults = vars(Requirements())
        required = (f"{case.name(key)} {value}" for key, value in vars(requirements).items() if value != defaults[key])
        flags = ", ".join(f"{flag} {value}" for flag, value in closest.flags().items())
        message = f"No settings meet all of {', '.join(required)} on {case.host}."
        found.append(Refusal("wishes_do_not_fit", message, f"These fit: {flags}."))
    settings = replace(closest.settings, max_model_len=requirements.max_model_len)
    return replace(closest, settings=settings, refusals=tuple(found), starts=False, survives=False)


def _too_many(case: Case, requirements: Requirements, met: Requirements, closest: Plan) -> Refusal:
    """More concurrent requests than the KV cache holds."""
    name, several = case.name("max_model_len"), case.name("concurrent_requests")
    concurrent, length = met.concurrent_requests, _most_tokens(case, requirements)
    shorter = f", {name} to at most {length}" if length else ""
    of_this = " of this length" if requirements.max_model_len else ""
    fit = f"request{'s' * (concurrent > 1)}{of_this} fit{'s' * (concurrent == 1)}"
    return Refusal(
        "context_too_long",
        f"{_needed_cache(case, requirements, closest)}; {concurrent} {fit} concurrently, more wait in the queue.",
        f"Set {several} to at most {concurrent}{shorter}, or use an alternative.",
    )


def _too_long(case: Case, requirements: Requirements, met: Requirements, closest: Plan) -> Refusal:
    """A longer request than the KV cache holds, or a cache that is too small for any prompt."""
    name, length = case.name("max_model_len"), met.max_model_len
    fix = f"Set {name} to at most {length}, or use an alternative."
    longest = f"the longest request that fits has {length} tokens"
    if requirements.max_model_len is None:
        prompt = "a prompt with one image" if case.model.vision else "a prompt"
        smallest = replace(closest.settings, max_pixels=requirements.max_pixels or _areas(case)[-1])
        least = f"{name}: auto needs at least {_least_tokens(replace(closest, settings=smallest))} tokens, {prompt}"
        return Refusal("context_too_short", f"{least}; {longest}.", fix)
    chosen = case.model.vision and not requirements.max_pixels
    images = f", with images of at most {closest.settings.max_pixels} pixels" if chosen else ""
    return Refusal("context_too_long", f"{_needed_cache(case, requirements, closest)}; {longest}{images}.", fix)


def _needed_cache(case: Case, requirements: Requirements, closest: Plan) -> str:
    """The needed and the available KV cache, as the beginning of a message."""
    wanted, requests = requirements.max_model_len, requirements.concurrent_requests
    if wanted is None:
        return f"{case.name('concurrent_requests')}: {requests} requests of any length do not fit"
    needed = wanted * requests * kv_bytes_per_token(case.model, closest.settings) / GIB
    begin = f"{case.name('max_model_len')}: {f'{requests} x ' * (requests > 1)}{wanted} tokens"
    if needed <= closest.account.kv_cache:
        # The batch of requests is too large, not the cache.
        return f"{begin} do not fit"
    return (
        f"{begin} need {needed:.2f} GiB of KV cache per GPU in {closest.settings.kv_cache_dtype}, "
        f"{closest.account.kv_cache:.2f} GiB are available"
    )


def _smallest_plan(case: Case, requirements: Requirements) -> Plan:
    """The verdict on the smallest settings, which explains why nothing fits."""
    settings = _settings(case, requirements, _dtypes(case)[-1], _BATCHES[-1], _areas(case)[-1])
    settings = replace(settings, max_model_len=requirements.max_model_len or _LEAST_CONTEXT)
    budget = _budget(case, requirements) or highest_budget(case, settings) or HIGHEST_UTILIZATION * _card(case)
    plan = judge_settings(case, replace(settings, budget_gib=budget), requirements.concurrent_requests)
    if plan.refusals:
        return plan
    tight = Refusal(
        "no_margin",
        f"{case.model.name} leaves {plan.account.headroom:.2f} GiB free on {case.host} with the smallest settings; "
        f"a plan keeps {MARGIN_GIB:.1f} GiB free.",
        f"Use an alternative, or set {case.name('gpu_memory_utilization')}, which disables the margin.",
    )
    return replace(plan, refusals=(tight,), survives=False)


def _longer(case: Case, requirements: Requirements, found: Plan) -> Iterator[dict[str, Any]]:
    """The same model with an FP8 cache, if it holds longer requests than the plan with BF16."""
    is_open = requirements.max_model_len is None and requirements.kv_cache_dtype is None
    if not is_open or found.settings.kv_cache_dtype == "fp8" or "fp8" not in _dtypes(case):
        return
    other = _search(case, replace(requirements, kv_cache_dtype="fp8"))
    if other and other.max_model_len > found.max_model_len:
        name = case.name("kv_cache_dtype")
        yield other.summary() | {
            "fits": True,
            "why": f"longer requests with {name} fp8, whose scales are not calibrated",
        }


def _rungs(case: Case, requirements: Requirements, ladder: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """The alternatives, up to the first that fits: smaller images, then other models with the same requirements."""
    if case.model.vision:
        rung = _capped(case, requirements)
        yield rung
        if rung["fits"]:
            return
    for entry in ladder:
        rung = _rung(case, requirements, entry)
        yield rung
        if rung["fits"]:
            return


def _capped(case: Case, requirements: Requirements) -> dict[str, Any]:
    found = _search(case, replace(requirements, max_pixels=None))
    if found:
        return found.summary() | {"fits": True, "why": f"with images of at most {found.settings.max_pixels} pixels"}
    room = "for the KV cache"
    if requirements.max_model_len:
        requests = requirements.concurrent_requests
        room = f"for {f'{requests} x ' * (requests > 1)}{requirements.max_model_len} tokens"
    return {"model": case.model.name, "fits": False, "why": f"smaller images do not leave room {room}"}


def _rung(case: Case, requirements: Requirements, entry: Entry) -> dict[str, Any]:
    out: dict[str, Any] = {"model": entry.name, "fits": False}
    capability = case.host.gpu.compute_capability
    if entry.min_compute_capability and capability < entry.min_compute_capability:
        return out | {"why": f"needs compute capability {entry.min_compute_capability:g}, not {capability:g}"}
    try:
        model = from_entry(entry)
        engine = engines.engine(case.engine.version, is_moe=model.is_moe)
        other = replace(case, model=model, engine=engine)
        kept = requirements if model.vision else replace(requirements, max_pixels=None, images_per_prompt=None)
        plan = solve(other, kept)
    except RefusalError as error:
        return out | {"why": error.refusals[0].message}
    if plan.fits:
        return plan.summary() | {"fits": True, "why": entry.title}
    return out | {"why": plan.refusals[0].message}


def _least_tokens(plan: Plan) -> int:
    """Tokens of a prompt with one image of the largest size."""
    return _LEAST_CONTEXT + image_tokens(plan.case.model, plan.settings.max_pixels)


def _most_pixels(case: Case) -> int:
    return case.model.vision.max_pixels if case.model.vision else 0


def _card(case: Case) -> float:
    return case.host.gpu.usable_gib


def _budget(case: Case, requirements: Requirements) -> float | None:
    """The required budget in GiB; None for automatic."""
    if requirements.gpu_memory_utilization is not None:
        return requirements.gpu_memory_utilization * _card(case)
    return requirements.budget_gib


def _refuse(case: Case, requirements: Requirements) -> None:
    refusals = check(requirements, case.model, case.host, case.name)
    if refusals:
        raise RefusalError(*refusals)
