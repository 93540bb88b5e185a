"""Judge complete settings: whether the engine starts, and survives the largest permitted images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.contracts import PlanFile, PlannedEngine, PlannedGpu
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import (
    BLOCK,
    Account,
    Settings,
    account,
    as_dict,
    kv_bytes_per_token,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.engines import Engine
from ansible_collections.inference.vllm.plugins.module_utils.planner.gpus import Host
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Namer, option_name
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import GIB
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

# Image sizes to propose and try, largest first; 16,777,216 is the limit of Qwen3-VL's processor.
PIXELS = (16_777_216, 8_388_608, 4_194_304, 2_097_152, 1_048_576, 524_288)

# Safety margin: free memory of a solved plan when the largest images arrive together. A verdict on explicit settings
# does not require it. Assumed: boot 32b-fp8, TP 1 held 0.6 GiB more than the account explains.
MARGIN_GIB = 0.3
HIGHEST_UTILIZATION = 0.95


@dataclass(frozen=True)
class Case:
    """The inputs of a plan.

    Attributes:
        model: The model.
        host: The GPUs.
        engine: The version of vLLM whose start-up check is predicted.
        name: Returns the name of a setting in messages: an option of the command or a variable of the role.
    """

    model: Model
    host: Host
    engine: Engine
    name: Namer = option_name

    def account(self, settings: Settings) -> Account:
        """The account of one GPU under these settings."""
        return account(self.model, self.host.gpu, self.engine, settings)


@dataclass(frozen=True)
class Plan:
    """A verdict with its settings.

    Attributes:
        case: Model, GPUs and engine.
        settings: The settings of the engine.
        account: The memory of one GPU by use.
        max_model_len: Longest request: as set, or the longest that fits.
        starts: Whether vLLM's start-up check passes.
        survives: Whether memory suffices for the largest permitted images.
        refusals: Reasons against the plan; empty if it can be used.
        alternatives: Other models or requirements that were tried, each with ``fits`` and ``why``.
        closest: If the requirements cannot be met, the closest plan for this model.
    """

    case: Case
    settings: Settings
    account: Account
    max_model_len: int
    starts: bool
    survives: bool
    refusals: tuple[Refusal, ...] = ()
    alternatives: tuple[Mapping[str, Any], ...] = ()
    closest: Plan | None = None

    @property
    def fits(self) -> bool:
        """Whether the plan may be used."""
        return not self.refusals

    def flags(self) -> dict[str, Any]:
        """All flags of vLLM that affect memory, by name without leading dashes."""
        settings = self.settings
        flags: dict[str, Any] = {
            "tensor-parallel-size": settings.tensor_parallel,
            "gpu-memory-utilization": round(settings.budget_gib / self.case.host.gpu.usable_gib, 4),
            "kv-cache-dtype": "fp8" if settings.kv_cache_dtype == "fp8" else "auto",
            "max-model-len": settings.max_model_len or self.max_model_len,
            "max-num-seqs": settings.max_num_seqs,
            "max-num-batched-tokens": settings.max_num_batched_tokens,
        }
        if self.case.model.vision:
            flags["limit-mm-per-prompt"] = {"image": settings.images_per_prompt, "video": 0}
            flags["mm-processor-kwargs"] = {"max_pixels": settings.max_pixels}
        if settings.copies_encoder:
            flags["mm-encoder-tp-mode"] = "data"
        if settings.enforce_eager:
            flags["enforce-eager"] = True
        return flags

    def summary(self) -> dict[str, Any]:
        """The main figures of the plan, for a list of alternatives."""
        return {
            "model": self.case.model.name,
            "max_model_len": self.max_model_len,
            "kv_cache_tokens": self.account.kv_cache_tokens,
            "weights_gib": round(self.account.weights, 2),
            "headroom_gib": round(self.account.headroom, 2),
            "flags": self.flags(),
        }

    def file(self) -> PlanFile:
        """The plan in the format of ``plan.json`` and ``bin/vram-plan --json``."""
        return PlanFile(
            accelerator="nvidia",
            model=self.case.model.name,
            gpus=tuple(self._gpus()),
            starts=self.starts,
            survives=self.survives,
            kv_cache_tokens=self.account.kv_cache_tokens,
            max_model_len=self.max_model_len,
            flags=self.flags(),
            environment={},
            refusals=self.refusals,
            engine=PlannedEngine(self.case.engine.version, self.case.engine.calibrated),
            per_gpu_gib=as_dict(self.account),
            concurrency=round(self.account.kv_cache_tokens / max(self.max_model_len, 1), 2),
            alternatives=self.alternatives,
            closest=self.closest.summary() if self.closest else None,
        )

    def _gpus(self) -> Iterator[PlannedGpu]:
        gpu = self.case.host.gpu
        for number, card in enumerate(self.case.host.cards):
            yield PlannedGpu(
                index=card.index,
                uuid=card.uuid,
                name=gpu.name,
                total_gib=gpu.usable_gib,
                compute_capability=gpu.compute_capability,
                fp8=gpu.fp8_path,
                peer_to_peer=gpu.peer_to_peer,
                selected=number < self.settings.tensor_parallel,
            )


def judge_settings(case: Case, settings: Settings, concurrent_requests: int = 1) -> Plan:
    """Judge complete settings for a number of concurrent requests of the longest length."""
    result = case.account(settings)
    fitting = result.kv_cache_tokens // concurrent_requests // BLOCK * BLOCK
    longest = min(fitting, case.model.text.max_position_embeddings)
    wanted = settings.max_model_len
    start = [
        *_over_free(case, result),
        *_no_cache(case, result),
        *_short_cache(case, settings, result, longest, concurrent_requests),
    ]
    start = start or _no_room(case, settings, result)
    under_load = [] if result.ready > result.card else _out_of_memory(case, settings, result)
    return Plan(
        case=case,
        settings=settings,
        account=result,
        max_model_len=wanted if wanted and not start else longest,
        starts=not start,
        survives=not start and not under_load,
        refusals=(*start, *under_load),
    )


def highest_budget(case: Case, settings: Settings) -> float | None:
    """The highest budget that leaves the margin, in steps of 0.01 of the card; None if there is none.

    The KV cache takes the rest of the budget, and after a later start also the memory that compilation took, so the
    free memory falls by as much as the budget rises. If no boot of this engine was measured, the plan must also survive
    the larger cache that the measured engine allocates at a first start.
    """
    card = case.host.gpu.usable_gib
    empty = case.account(replace(settings, budget_gib=0.0))
    measured = replace(case, engine=engines.engine(versions.CALIBRATED, is_moe=case.model.is_moe))
    looser = measured.account(replace(settings, budget_gib=0.0))
    # With a budget b the cache is b + empty.kv_cache; empty.kv_cache is the negated memory that the engine counts.
    highest = min(
        empty.headroom - MARGIN_GIB - empty.kv_cache - empty.regained,
        looser.headroom - looser.kv_cache,
        empty.free_at_start,
        HIGHEST_UTILIZATION * card,
    )
    share = math.floor(highest / card * 100 + 1e-9) / 100
    return share * card if share > 0 else None


def _over_free(case: Case, result: Account) -> list[Refusal]:
    """The first check of vLLM: free memory must hold the budget (v1/worker/utils.py: request_memory)."""
    if result.budget <= result.free_at_start:
        return []
    share = math.floor(result.free_at_start / result.card * 100) / 100
    name = case.name("gpu_memory_utilization")
    return [
        Refusal(
            "budget_above_free_memory",
            f"{name}: the budget of {result.budget:.2f} GiB is more than the {result.free_at_start:.2f} GiB that are "
            f"free of {result.card:.2f} GiB after the CUDA context.",
            f"Set {name} to at most {share}.",
        )
    ]


def _no_cache(case: Case, result: Account) -> list[Refusal]:
    if result.kv_cache_tokens > 0:
        return []
    rest = result.budget - result.kv_cache - result.weights
    return [
        Refusal(
            "no_memory_for_cache",
            f"Weights take {result.weights:.2f} GiB of the budget of {result.budget:.2f} GiB per GPU and the rest of "
            f"the engine {rest:.2f} GiB: nothing is left for the KV cache.",
            f"Use more or larger GPUs, a smaller model, or raise {case.name('gpu_memory_utilization')}.",
        )
    ]


def _short_cache(case: Case, settings: Settings, result: Account, longest: int, requests: int) -> list[Refusal]:
    """The second check of vLLM: one longest request must fit (kv_cache_utils.py: check_enough_kv_cache_memory)."""
    # An automatic length needs one block for each request.
    wanted = settings.max_model_len or BLOCK
    if result.kv_cache_tokens <= 0 or wanted <= longest:
        return []
    rounded = math.ceil(wanted / BLOCK) * BLOCK
    concurrent = result.kv_cache_tokens // rounded
    name, several = case.name("max_model_len"), case.name("concurrent_requests")
    needed = rounded * kv_bytes_per_token(case.model, settings) * requests / GIB
    of = f"{requests} requests of {wanted} tokens need" if requests > 1 else f"one request of {wanted} tokens needs"
    fitting = [f"the longest that fits is {longest} tokens"] if longest else []
    fixes = [f"set {name} to at most {longest}"] if longest else []
    if concurrent:
        fitting.append(f"{concurrent} of this length fit{'s' * (concurrent == 1)} concurrently, more wait in the queue")
        fixes.append(f"set {several} to at most {concurrent}")
    fix = " or ".join(fixes) or "use more or larger GPUs, or a smaller model"
    return [
        Refusal(
            "kv_cache_too_small",
            f"{name}: {of} {needed:.2f} GiB of KV cache per GPU, {result.kv_cache:.2f} GiB are available; "
            f"{'; '.join(fitting) or 'not even one block of tokens fits'}.",
            f"{fix[0].upper()}{fix[1:]}.",
        )
    ]


def _no_room(case: Case, settings: Settings, result: Account) -> list[Refusal]:
    """What vLLM's check omits: after the KV cache is allocated, the engine captures graphs and samples once."""
    if result.ready <= result.card:
        return []
    return [
        Refusal(
            "out_of_memory_at_start",
            f"It would run out of memory at start-up: with its KV cache, {result.cuda_graphs:.2f} GiB of CUDA graphs "
            f"and one sampling for {settings.max_num_seqs} sequences it needs {result.ready:.2f} GiB of "
            f"{result.card:.2f} GiB per GPU.",
            _suggest_fix(case, settings),
        )
    ]


def _out_of_memory(case: Case, settings: Settings, result: Account) -> list[Refusal]:
    """What the start-up check omits: the largest permitted images, all concurrently."""
    if result.headroom >= 0:
        return []
    images = f"the largest permitted images (max_pixels {settings.max_pixels})" if case.model.vision else "a full step"
    return [
        Refusal(
            "out_of_memory_under_load",
            f"It would run out of memory under load: the running engine holds {result.resident:.2f} GiB of "
            f"{result.card:.2f} GiB per GPU, {images} need {result.step:.2f} GiB more; {-result.headroom:.2f} GiB are "
            "missing.",
            _suggest_fix(case, settings),
        )
    ]


def _suggest_fix(case: Case, settings: Settings) -> str:
    """Suggest a setting with which it survives: smaller images, otherwise a smaller budget."""
    for pixels in PIXELS if case.model.vision else ():
        smaller = replace(settings, max_pixels=pixels)
        if pixels < settings.max_pixels and case.account(smaller).headroom >= 0:
            return f"Cap the images: set {case.name('max_pixels')} to {pixels}."
    budget = highest_budget(case, settings)
    if budget is None or case.account(replace(settings, budget_gib=budget)).kv_cache <= 0:
        return "Use more or larger GPUs, or a smaller model."
    return f"Lower {case.name('gpu_memory_utilization')} to {budget / case.host.gpu.usable_gib:.2f}."
