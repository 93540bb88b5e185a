"""A plan as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.planner.account import BLOCK, kernels
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Plan

_TERMS = (
    ("weights", "weights, sharded, with position tables"),
    ("context", "kernels and cuBLAS's workspace"),
    ("states", "buffers for sampling and inputs"),
    ("cuda_graphs", "CUDA graphs"),
    ("attention", "FlashInfer's workspace, outside the budget"),
    ("kv_cache", "KV cache"),
    ("outside", "CUDA context and NCCL, outside the budget"),
    ("resident", "held by the idle engine"),
    ("activations", "a full step of the language model"),
    ("encoder", "the largest images in the encoder"),
    ("step", "needed on top, with the allocator's fragmentation"),
    ("headroom", "left when the largest images arrive together"),
)


def table(plan: Plan) -> str:
    """The plan as lines of text: verdicts, account, flags, refusals, alternatives."""
    case = plan.case
    return "\n".join(_lines(plan.file().as_dict(), kernels(case.model, case.host.gpu), case.engine.basis))


def _lines(plan: dict[str, Any], weights: str, basis: str) -> Iterator[str]:
    gpu, engine = plan["gpus"][0], plan["engine"]
    yield f"Model    {plan['model']}"
    yield f"Weights  {weights}"
    yield f"GPUs     {len(plan['gpus'])}x {gpu['name']}, {gpu['total_gib']:g} GiB each"
    yield f"Engine   vLLM {engine['version']} ({basis})"
    yield f"Starts   {_yes(plan['starts'])}"
    yield f"Survives {_yes(plan['survives'])}"
    yield ""
    account = plan["per_gpu_gib"]
    yield f"GiB per GPU, budget {account['budget']:.2f} of {account['card']:.2f}"
    for key, meaning in _TERMS:
        yield f"  {account[key]:8.2f}  {meaning}"
    yield ""
    yield f"KV cache holds {plan['kv_cache_tokens']} tokens; longest request {plan['max_model_len']} tokens."
    if plan["max_model_len"]:
        concurrent = plan["kv_cache_tokens"] // (math.ceil(plan["max_model_len"] / BLOCK) * BLOCK)
        yield f"Concurrent requests of that length: {concurrent}; more wait in the queue."
    if not plan["refusals"]:
        yield "Flags"
        yield from _flags(plan["flags"])
    for refusal in plan["refusals"]:
        yield ""
        yield f"Refused [{refusal['code']}] {refusal['message']}"
        yield f"  Fix: {refusal['fix']}"
    if "closest" in plan:
        closest = plan["closest"]
        yield ""
        yield f"Closest plan for this model: {closest['max_model_len']} tokens"
        yield from _flags(closest["flags"])
    if plan["alternatives"]:
        yield ""
        yield "Alternatives"
    for rung in plan["alternatives"]:
        yield f"  {'fits' if rung['fits'] else 'no  '}  {rung['model']}: {rung['why']}"
        if rung["fits"]:
            yield f"        {rung['max_model_len']} tokens"
            yield from (f"      {line}" for line in _flags(rung["flags"]))


def _flags(flags: dict[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        if value is True:
            yield f"  --{name}"
        else:
            text = f"'{json.dumps(value)}'" if isinstance(value, dict) else str(value)
            yield f"  --{name} {text}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
