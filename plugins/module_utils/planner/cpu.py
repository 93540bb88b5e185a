"""The plan for an engine on the CPU: whether it fits the host's memory, and its flags."""

from __future__ import annotations

import re

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.contracts import PlanFile
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

GIB = 2**30

# Resident memory of `vllm serve` 0.32.0 (CPU build) with a model of two million parameters: 2.7 GB, measured.
ENGINE_GIB = 2.7e9 / GIB

DEFAULT_MAX_MODEL_LEN = 4096
DEFAULT_MAX_NUM_SEQS = 4


def memory_of_host(meminfo: str) -> float:
    """Total memory in GiB from the text of ``/proc/meminfo``."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    if not match:
        raise ValueError("/proc/meminfo has no line MemTotal")
    return int(match[1]) / 2**20


def kv_bytes_per_token(entry: Entry) -> int:
    """Bytes of KV cache for one token in BF16: keys and values of each layer's KV heads."""
    text = entry.shapes["text"]
    return int(text["num_hidden_layers"] * 2 * text["num_key_value_heads"] * text["head_dim"] * 2)


def plan_cpu(
    entry: Entry,
    requirements: Requirements,
    *,
    memory_gib: float,
    kv_cache_gib: int,
) -> PlanFile:
    """Plan an engine on the CPU.

    Args:
        entry: The model.
        requirements: Length, number and images of the requests; those for GPUs are ignored.
        memory_gib: Total memory of the host.
        kv_cache_gib: Memory for the KV cache in whole GiB.

    Returns:
        The plan; its ``refusals`` are empty if it can be used.
    """
    max_model_len = requirements.max_model_len or DEFAULT_MAX_MODEL_LEN
    requests = requirements.concurrent_requests
    images = entry.images_per_prompt if requirements.images_per_prompt is None else requirements.images_per_prompt
    tokens = kv_cache_gib * GIB // kv_bytes_per_token(entry)
    refusals = [
        *_wrong_model(entry),
        *_too_long(entry, max_model_len),
        *_cache_too_small(max_model_len, requests, kv_cache_gib, tokens),
        *_host_too_small(memory_gib, kv_cache_gib),
    ]
    return PlanFile(
        accelerator="cpu",
        model=entry.name,
        gpus=(),
        starts=not refusals,
        survives=not refusals,
        kv_cache_tokens=tokens,
        max_model_len=max_model_len,
        flags={
            "max-model-len": max_model_len,
            "max-num-seqs": requirements.max_num_seqs or max(DEFAULT_MAX_NUM_SEQS, requests),
            # Without it, torch.compile increases the start from 42 s to 4 minutes.
            "enforce-eager": True,
            "limit-mm-per-prompt": {"image": images, "video": 0},
            # The CPU build has no other backend; with free whitespace a small model may never stop.
            "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
        environment={
            "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
            # enforce-eager covers the model only: the first request for logprobs is still compiled, the image has no
            # C++ compiler, and the engine exits (seen with 0.32.0).
            "TORCHDYNAMO_DISABLE": "1",
        },
        refusals=tuple(refusals),
        memory_gib={
            "host": round(memory_gib, 1),
            "engine": round(ENGINE_GIB, 2),
            "kv_cache": float(kv_cache_gib),
        },
    )


def cpu_table(plan: PlanFile) -> str:
    """The plan as lines of text."""
    memory = plan.memory_gib or {}
    lines = (
        f"Model    {plan.model} on the CPU",
        f"Memory   {memory['host']} GiB; engine {memory['engine']} GiB, KV cache {memory['kv_cache']:g} GiB",
        f"KV cache holds {plan.kv_cache_tokens} tokens; longest request {plan.max_model_len} tokens.",
    )
    return "\n".join(lines)


def _wrong_model(entry: Entry) -> list[Refusal]:
    if "cpu" in entry.accelerators:
        return []
    return [
        Refusal(
            "model_not_for_cpu",
            f"vllm_model: {entry.name} runs on {', '.join(entry.accelerators)} only, but vllm_accelerator is cpu.",
            "Set vllm_accelerator to nvidia, or vllm_model to an entry whose accelerators name cpu.",
        )
    ]


def _too_long(entry: Entry, max_model_len: int) -> list[Refusal]:
    longest = entry.shapes["text"]["max_position_embeddings"]
    if max_model_len <= longest:
        return []
    return [
        Refusal(
            "context_beyond_model",
            f"vram_plan_max_model_len: {max_model_len} tokens, but {entry.name} supports at most {longest}.",
            f"Set vram_plan_max_model_len to at most {longest}.",
        )
    ]


def _cache_too_small(max_model_len: int, requests: int, kv_cache_gib: int, tokens: int) -> list[Refusal]:
    if tokens >= max_model_len * requests:
        return []
    asked = (
        f"{requests} requests may have {max_model_len} each"
        if requests > 1
        else f"one request may have {max_model_len}"
    )
    return [
        Refusal(
            "kv_cache_too_small",
            f"vram_plan_cpu_kv_cache_gib: {kv_cache_gib} GiB hold {tokens} tokens, {asked}.",
            f"Lower vram_plan_max_model_len to at most {tokens // requests}, or raise vram_plan_cpu_kv_cache_gib.",
        )
    ]


def _host_too_small(memory_gib: float, kv_cache_gib: int) -> list[Refusal]:
    needed = ENGINE_GIB + kv_cache_gib
    if memory_gib >= needed:
        return []
    return [
        Refusal(
            "host_memory_too_small",
            f"The host has {memory_gib:.1f} GiB of memory; engine and KV cache need {needed:.1f} GiB "
            f"({ENGINE_GIB:.1f} + vram_plan_cpu_kv_cache_gib {kv_cache_gib}).",
            "Lower vram_plan_cpu_kv_cache_gib or use a host with more memory.",
        )
    ]
