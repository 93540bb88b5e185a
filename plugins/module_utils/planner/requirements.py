"""What a caller may ask of a plan, and the refusal by name of what nobody can ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.planner.account import KV_BYTES
from ansible_collections.inference.vllm.plugins.module_utils.planner.gpus import LOWEST_CAPABILITY, Host
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

Namer = Callable[[str], str]


@dataclass(frozen=True)
class Wishes:
    """What the service shall do and what is already decided; None leaves the choice to the plan.

    Attributes:
        context: Tokens that one request may hold.
        concurrent_requests: Requests of that length whose KV cache must fit at once.
        max_pixels: Pixels of one image after scaling.
        images_per_prompt: Images in one request.
        tensor_parallel_size: GPUs that share one copy of the model.
        gpu_memory_utilization: Share of each GPU that the engine takes.
        budget_gib: The same in GiB, instead of a share.
        kv_cache_dtype: ``bfloat16`` or ``fp8``.
        max_num_seqs: Requests in one batch.
        max_num_batched_tokens: Tokens that one step computes.
        enforce_eager: Whether no CUDA graphs are captured.
        copies_encoder: Whether each GPU holds the whole vision tower.
        caches_kept: Whether caches of an earlier start are there; None for a plan that holds with and without.
    """

    context: int | None = None
    concurrent_requests: int = 1
    max_pixels: int | None = None
    images_per_prompt: int | None = None
    tensor_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    budget_gib: float | None = None
    kv_cache_dtype: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    copies_encoder: bool = False
    caches_kept: bool | None = None


def option_name(attribute: str) -> str:
    """The attribute as an option of ``bin/vram-plan``."""
    return {"context": "--max-model-len"}.get(attribute, "--" + attribute.replace("_", "-"))


def variable_name(attribute: str) -> str:
    """The attribute as a variable of role vram_plan."""
    return f"vram_plan_{attribute}"


def whole_number(name: str, value: str | int, least: int = 1) -> int | None:
    """A whole number of at least ``least``, or None for ``auto``; raises RefusalError that names the variable."""
    if str(value).strip() == "auto":
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise RefusalError(
            Refusal(
                "impossible_value",
                f"{name}: {value!r} is not a whole number of at least {least}.",
                f"Set {name} to auto or to a whole number from {least}.",
            )
        )
    return number


def fraction(name: str, value: str | float) -> float | None:
    """A number above 0 and up to 1, or None for ``auto``; raises RefusalError that names the variable."""
    if str(value).strip() == "auto":
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise RefusalError(
            Refusal(
                "impossible_value",
                f"{name}: {value!r} is not a number above 0 and up to 1.",
                f"Set {name} to auto or to a share such as 0.92.",
            )
        )
    return number


def check(wishes: Wishes, model: Model, host: Host, name: Namer) -> list[Refusal]:
    """All that is impossible whatever the memory; an empty list where a plan may be tried."""
    return [
        *_numbers(wishes, name),
        *_images(wishes, model, name),
        *_context(wishes, model, name),
        *_gpu(host),
        *_parallel(wishes, model, host, name),
        *_budget(wishes, host, name),
    ]


def _numbers(wishes: Wishes, name: Namer) -> list[Refusal]:
    found = []
    for attribute in ("concurrent_requests", "tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens"):
        value = getattr(wishes, attribute)
        if value is not None and value < 1:
            found.append(_impossible(name(attribute), value, "at least 1"))
    if wishes.gpu_memory_utilization is not None and not 0 < wishes.gpu_memory_utilization <= 1:
        found.append(_impossible(name("gpu_memory_utilization"), wishes.gpu_memory_utilization, "above 0 and up to 1"))
    if wishes.kv_cache_dtype not in (None, *KV_BYTES):
        found.append(_impossible(name("kv_cache_dtype"), wishes.kv_cache_dtype, "auto, bfloat16 or fp8"))
    seqs, batched = wishes.max_num_seqs, wishes.max_num_batched_tokens
    if seqs is not None and batched is not None and 1 <= batched < seqs:
        # vLLM refuses it itself (SchedulerConfig).
        found.append(_impossible(name("max_num_batched_tokens"), batched, f"at least {name('max_num_seqs')} ({seqs})"))
    if seqs is not None and 1 <= seqs < wishes.concurrent_requests:
        least = f"at least {name('concurrent_requests')} ({wishes.concurrent_requests})"
        found.append(_impossible(name("max_num_seqs"), seqs, least))
    return found


def _images(wishes: Wishes, model: Model, name: Namer) -> list[Refusal]:
    found = []
    vision = model.vision
    if vision is None:
        for attribute in ("max_pixels", "images_per_prompt"):
            if getattr(wishes, attribute):
                found.append(_impossible(name(attribute), getattr(wishes, attribute), "auto: the model has no vision"))
        return found
    if wishes.images_per_prompt is not None and wishes.images_per_prompt < 0:
        found.append(_impossible(name("images_per_prompt"), wishes.images_per_prompt, "at least 0"))
    if wishes.max_pixels is not None and not vision.min_pixels <= wishes.max_pixels <= vision.max_pixels:
        allowed = f"from {vision.min_pixels} to {vision.max_pixels}, what the image processor takes"
        found.append(_impossible(name("max_pixels"), wishes.max_pixels, allowed))
    return found


def _context(wishes: Wishes, model: Model, name: Namer) -> list[Refusal]:
    longest = model.text.max_position_embeddings
    if wishes.context is None or 1 <= wishes.context <= longest:
        return []
    return [_impossible(name("context"), wishes.context, f"from 1 to {longest}, what {model.name} was made for")]


def _gpu(host: Host) -> list[Refusal]:
    if host.gpu.usable_gib <= 0:
        return [_impossible("gpu total_gib", host.gpu.usable_gib, "above 0")]
    if host.gpu.compute_capability >= LOWEST_CAPABILITY:
        return []
    return [
        Refusal(
            "gpu_too_old",
            f"{host.gpu.name} has compute capability {host.gpu.compute_capability:g}; "
            f"vLLM needs {LOWEST_CAPABILITY:g} or newer.",
            "Use a newer GPU.",
        )
    ]


def parallel_size(wishes: Wishes, model: Model, host: Host) -> int:
    """GPUs that share one copy: as wished, else as many of the host's as divide the model."""
    if wishes.tensor_parallel_size is not None:
        return wishes.tensor_parallel_size
    return next(size for size in range(host.count, 0, -1) if size == 1 or not _undivided(wishes, model, size))


def _parallel(wishes: Wishes, model: Model, host: Host, name: Namer) -> list[Refusal]:
    size = wishes.tensor_parallel_size
    if size is None or size < 1:
        return []
    variable = name("tensor_parallel_size")
    if size > host.count:
        return [_impossible(variable, size, f"at most the number of GPUs, {host.count}")]
    bad = _undivided(wishes, model, size)
    if not bad:
        return []
    good = [str(number) for number in range(1, size) if not _undivided(wishes, model, number)]
    return [
        Refusal(
            "impossible_parallelism",
            f"{variable}: {size} does not divide {', '.join(bad)}.",
            f"Set {variable} to {' or '.join(good)}.",
        )
    ]


def _undivided(wishes: Wishes, model: Model, size: int) -> list[str]:
    """What of a model so many GPUs cannot share evenly (vLLM refuses it)."""
    text, vision, block = model.text, model.vision, model.quantization.block
    parts = {"attention heads": text.num_attention_heads, "the vocabulary": text.vocab_size}
    if vision and not wishes.copies_encoder:
        parts |= {"heads of the vision tower": vision.num_heads, "its inner size": vision.intermediate_size}
    bad = [f"{what} ({number})" for what, number in parts.items() if number % size]
    if text.num_key_value_heads % size and size % text.num_key_value_heads:
        bad.append(f"key-value heads ({text.num_key_value_heads})")
    if size > 1 and (text.intermediate_size / size) % (block[0] if block else 1):
        bad.append(f"the inner size ({text.intermediate_size}" + (f" in blocks of {block[0]})" if block else ")"))
    return bad


def _budget(wishes: Wishes, host: Host, name: Namer) -> list[Refusal]:
    if wishes.budget_gib is None or 0 < wishes.budget_gib <= host.gpu.usable_gib:
        return []
    allowed = f"above 0 and up to {host.gpu.usable_gib:g} GiB, the memory of {host.gpu.name}"
    return [_impossible(name("budget_gib"), wishes.budget_gib, allowed)]


def _impossible(name: str, value: object, allowed: str) -> Refusal:
    return Refusal("impossible_value", f"{name}: {value} is not possible; allowed is {allowed}.", f"Change {name}.")
