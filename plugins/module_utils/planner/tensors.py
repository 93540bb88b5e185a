"""Bytes of weights on one GPU, tensor by tensor: what tensor parallelism splits, what it copies, how it is stored.

Read in vLLM 0.26.0 and 0.33.0: ``model_executor/models/qwen3_vl.py``, ``layers/linear.py``,
``layers/quantization/utils/marlin_utils_fp8.py``; the rounding in PyTorch's
``c10/cuda/CUDACachingAllocator.cpp``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model, Tensor

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Layout:
    """How weights lie on a GPU.

    Attributes:
        tensor_parallel: GPUs that share one copy.
        copies_encoder: ``--mm-encoder-tp-mode data``: each GPU holds the whole vision tower.
        marlin: FP8 weights are repacked for the weight-only Marlin kernel.
        machete: 4-bit weights keep a second copy of their zero points, in BF16.
    """

    tensor_parallel: int
    copies_encoder: bool = False
    marlin: bool = False
    machete: bool = False


# Split along one side by tensor parallelism; everything else is copied to each GPU (norms, patch and position
# embeddings, the bias of a row-parallel layer, the router of a mixture of experts).
_SPLIT = re.compile(
    r"(embed_tokens|lm_head"
    r"|self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|mlp\.experts\."
    r"|attn\.(qkv|proj)|mlp\.linear_fc[12]|merger\w*(\.\d+)?\.linear_fc[12])"
)
_ROW_BIAS = re.compile(r"(attn\.proj|linear_fc2|o_proj|down_proj)\.bias$")
_KEY_VALUE = re.compile(r"self_attn\.[kv]_proj\.")

# vLLM joins these into one tensor each.
_FUSED = (
    (re.compile(r"self_attn\.[qkv]_proj"), "self_attn.qkv_proj"),
    (re.compile(r"mlp\.(gate|up)_proj"), "mlp.gate_up_proj"),
    (re.compile(r"mlp\.experts\.(\d+\.)?(gate_up|gate|up)_proj"), "mlp.experts.w13"),
    (re.compile(r"mlp\.experts\.(\d+\.)?down_proj"), "mlp.experts.w2"),
)

# Allocator of PyTorch: blocks are multiples of 512 bytes; from 10 MiB a block gets a segment of its own, a multiple of
# 2 MiB, and a rest of at most 1 MiB is not split off. vLLM loads with max_split_size_mb:20 (gpu_worker.py: load_model),
# so that no block from 20 MiB on is split.
_BLOCK = 512
_OWN_SEGMENT = 10 * MIB
_NEVER_SPLIT = 20 * MIB
_SEGMENT_STEP = 2 * MIB
_UNSPLIT_REST = 1 * MIB


def allocated(size: int) -> int:
    """Bytes that PyTorch's allocator counts for one tensor of ``size`` bytes while vLLM loads a model."""
    size = _round_up(size, _BLOCK)
    if size < _OWN_SEGMENT:
        return size
    segment = _round_up(size, _SEGMENT_STEP)
    return segment if size >= _NEVER_SPLIT or segment - size <= _UNSPLIT_REST else size


def on_one_gpu(model: Model, layout: Layout) -> int:
    """Bytes of the checkpoint's weights on one GPU after sharding, repacking and allocation."""
    sizes: dict[str, int] = defaultdict(int)
    for tensor in model.tensors or from_shapes(model):
        if tensor.name == "lm_head.weight" and model.tied:
            continue
        place = _place(tensor.name)
        sizes[place.fused] += _share(tensor, place, model, layout)
    return sum(map(allocated, sizes.values()))


def engine_buffers(model: Model, max_num_batched_tokens: int) -> int:
    """Bytes that vLLM allocates while it loads the model, beside the weights; part of "Model loading took".

    * cosines and sines: 4 x max_position_embeddings rows of head_dim in BF16 with multimodal positions (mrope.py:
      "We enlarge max_position_embeddings to 4 times"), 1 x without vision;
    * one buffer of max_num_batched_tokens x hidden for each DeepStack level (qwen3_vl.py, deepstack_input_embeds).
    """
    text, vision = model.text, model.vision
    rope = text.max_position_embeddings * (4 if vision else 1) * text.head_dim * 2
    deepstack = vision.deepstack * max_num_batched_tokens * text.hidden_size * 2 if vision else 0
    return allocated(rope) + deepstack


def from_shapes(model: Model) -> Iterator[Tensor]:
    """The tensors that a checkpoint of these shapes and this quantisation holds."""
    yield from _language(model)
    if model.vision:
        yield from _vision(model)


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors, as the files hold them."""
    return sum(tensor.size for tensor in tensors)


def _language(model: Model) -> Iterator[Tensor]:
    text = model.text
    yield _bf16("model.language_model.embed_tokens.weight", text.vocab_size, text.hidden_size)
    if not model.tied:
        yield _bf16("lm_head.weight", text.vocab_size, text.hidden_size)
    yield _bf16("model.language_model.norm.weight", text.hidden_size)
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    for number in range(text.num_hidden_layers):
        layer = f"model.language_model.layers.{number}"
        for name, rows, columns in (
            ("self_attn.q_proj", queries, text.hidden_size),
            ("self_attn.k_proj", keys, text.hidden_size),
            ("self_attn.v_proj", keys, text.hidden_size),
            ("self_attn.o_proj", text.hidden_size, queries),
        ):
            yield from _linear(model, f"{layer}.{name}", rows, columns)
        yield _bf16(f"{layer}.self_attn.q_norm.weight", text.head_dim)
        yield _bf16(f"{layer}.self_attn.k_norm.weight", text.head_dim)
        yield _bf16(f"{layer}.input_layernorm.weight", text.hidden_size)
        yield _bf16(f"{layer}.post_attention_layernorm.weight", text.hidden_size)
        if model.is_moe:
            yield _bf16(f"{layer}.mlp.gate.weight", text.experts, text.hidden_size)
        prefix, copies = (f"{layer}.mlp.experts", text.experts) if model.is_moe else (f"{layer}.mlp", 1)
        yield from _linear(model, f"{prefix}.gate_proj", text.intermediate_size, text.hidden_size, copies)
        yield from _linear(model, f"{prefix}.up_proj", text.intermediate_size, text.hidden_size, copies)
        yield from _linear(model, f"{prefix}.down_proj", text.hidden_size, text.intermediate_size, copies)


def _vision(model: Model) -> Iterator[Tensor]:
    vision = model.vision
    if vision is None:
        return
    hidden, inter = vision.hidden_size, vision.intermediate_size
    merged = hidden * vision.patches_per_token
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    yield _bf16("model.visual.patch_embed.proj.weight", hidden, patch)
    yield _bf16("model.visual.patch_embed.proj.bias", hidden)
    yield _bf16("model.visual.pos_embed.weight", vision.num_position_embeddings, hidden)
    for number in range(vision.depth):
        block = f"model.visual.blocks.{number}"
        for norm in ("norm1", "norm2"):
            yield _bf16(f"{block}.{norm}.weight", hidden)
            yield _bf16(f"{block}.{norm}.bias", hidden)
        for name, rows, columns in (
            ("attn.qkv", 3 * hidden, hidden),
            ("attn.proj", hidden, hidden),
            ("mlp.linear_fc1", inter, hidden),
            ("mlp.linear_fc2", hidden, inter),
        ):
            yield _bf16(f"{block}.{name}.weight", rows, columns)
            yield _bf16(f"{block}.{name}.bias", rows)
    mergers = ["merger", *(f"deepstack_merger_list.{level}" for level in range(vision.deepstack))]
    for merger in mergers:
        prefix = f"model.visual.{merger}"
        normed = hidden if merger == "merger" else merged
        yield _bf16(f"{prefix}.norm.weight", normed)
        yield _bf16(f"{prefix}.norm.bias", normed)
        for name, rows, columns in (("linear_fc1", merged, merged), ("linear_fc2", vision.out_hidden_size, merged)):
            yield _bf16(f"{prefix}.{name}.weight", rows, columns)
            yield _bf16(f"{prefix}.{name}.bias", rows)


def _linear(model: Model, name: str, rows: int, columns: int, copies: int = 1) -> Iterator[Tensor]:
    """Tensors of one linear layer (or of ``copies`` experts) in the model's quantisation."""
    how = model.quantization
    shape = (rows, columns) if copies == 1 else (copies, rows, columns)
    yield Tensor(f"{name}.weight", shape, copies * rows * columns * how.weight_bits // 8)
    if how.block:
        high, wide = _ceil(rows, how.block[0]), _ceil(columns, how.block[1])
        yield Tensor(f"{name}.weight_scale_inv", (high, wide), copies * high * wide * how.scale_bits // 8)
    if how.group_size:
        groups = rows * _ceil(columns, how.group_size)
        yield Tensor(f"{name}.scales", (groups,), copies * groups * how.scale_bits // 8)
        if how.zero_points:
            yield Tensor(f"{name}.qzeros", (groups,), copies * groups * how.weight_bits // 8)


@dataclass(frozen=True)
class _Place:
    """What a tensor's name says about where it lies."""

    fused: str
    is_split: bool
    is_scale: bool
    is_key_value: bool
    is_vision: bool


@lru_cache(maxsize=65_536)
def _place(name: str) -> _Place:
    fused = name
    for pattern, joined in _FUSED:
        fused = pattern.sub(joined, fused)
    return _Place(
        fused=fused,
        is_split=bool(_SPLIT.search(name)) and not _ROW_BIAS.search(name),
        is_scale=name.endswith("weight_scale_inv"),
        is_key_value=bool(_KEY_VALUE.search(name)),
        is_vision="visual." in name,
    )


def _share(tensor: Tensor, place: _Place, model: Model, layout: Layout) -> int:
    """Bytes of one tensor on one GPU."""
    size = tensor.size
    if place.is_scale and layout.marlin and model.quantization.block:
        # Marlin has no blocks of rows: each scale is repeated for every row of its block, in BF16 instead of FP32.
        size = size * model.quantization.block[0] * 16 // model.quantization.scale_bits
    if tensor.name.endswith("qzeros") and layout.machete:
        # Kept as they are, and once more multiplied by their scales in BF16 (machete.py: transform_w_zp).
        size += size * 16 // model.quantization.weight_bits
    if not place.is_split or (place.is_vision and layout.copies_encoder):
        return size
    parts = layout.tensor_parallel
    if place.is_key_value:
        # Fewer key-value heads than GPUs: each GPU still needs a whole head.
        parts = min(parts, model.text.num_key_value_heads)
    return _ceil(size, parts)


def _bf16(name: str, *shape: int) -> Tensor:
    size = 2
    for side in shape:
        size *= side
    return Tensor(name, shape, size)


def _ceil(value: int, step: int) -> int:
    return -(-value // step)


def _round_up(value: int, step: int) -> int:
    return _ceil(value, step) * step
