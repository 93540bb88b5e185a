"""The account of one GPU: its memory by use, the memory for the KV cache, and two verdicts.

All sizes are GiB of 2**30 bytes, per GPU. Sources are files of vLLM 0.26.0 and 0.33.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.planner import engines
from ansible_collections.inference.vllm.plugins.module_utils.planner.engines import Engine
from ansible_collections.inference.vllm.plugins.module_utils.planner.gpus import Gpu
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import (
    GIB,
    Layout,
    engine_buffers,
    on_one_gpu,
)

# Tokens of one block of the KV cache (vLLM's default on CUDA).
BLOCK = 16

_BLACKWELL = 10

KV_BYTES: Mapping[str, int] = {"bfloat16": 2, "fp8": 1}


@dataclass(frozen=True)
class Settings:
    """The settings of the engine.

    Attributes:
        tensor_parallel: GPUs that share one copy of the model.
        budget_gib: ``gpu_memory_utilization`` x total memory.
        kv_cache_dtype: ``bfloat16`` or ``fp8``.
        max_num_seqs: Requests in one batch.
        max_num_batched_tokens: Tokens in one step.
        max_pixels: Largest image after scaling; 0 without vision.
        images_per_prompt: Images in one request; 0 without vision.
        max_model_len: Tokens of the longest request; None for as many as fit.
        enforce_eager: Whether no CUDA graphs are captured.
        copies_encoder: ``--mm-encoder-tp-mode data``.
        caches_kept: Whether caches of an earlier start exist; None for settings that are valid in both cases.
    """

    tensor_parallel: int
    budget_gib: float
    kv_cache_dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_pixels: int
    images_per_prompt: int
    max_model_len: int | None = None
    enforce_eager: bool = False
    copies_encoder: bool = False
    caches_kept: bool | None = None


@dataclass(frozen=True)
class Account:
    """The memory of one GPU by use.

    Attributes:
        budget: Memory limit of the engine, as the engine counts it.
        weights: The value that vLLM logs as "Model loading took".
        context: Kernels and cuBLAS's workspace, which are loaded during the profile run.
        states: Buffers for sampling and inputs.
        activations: Peak of one step of the language model.
        sampling: Peak of sampling a token for each sequence.
        encoder: Peak of encoding the largest images of one step.
        encoder_cache: Encoded images that wait for the language model.
        cuda_graphs: Captured graphs.
        attention: Workspace of the attention kernels, allocated after the profile run.
        kv_cache: Memory for the KV cache; negative if the rest exceeds the budget.
        regained: Additional KV cache after a later start with kept caches, which compiles nothing.
        fragmentation: Fraction of a step that is lost to fragmentation.
        outside: CUDA context and NCCL, allocated before the engine's first measurement; not part of the budget.
        card: Memory available to a CUDA process on this GPU.
        kv_cache_tokens: Capacity of the KV cache in tokens.
        longest: Longest request that fits, by the cache and by the model.
    """

    budget: float
    weights: float
    context: float
    states: float
    activations: float
    sampling: float
    encoder: float
    encoder_cache: float
    cuda_graphs: float
    attention: float
    kv_cache: float
    regained: float
    fragmentation: float
    outside: float
    card: float
    kv_cache_tokens: int
    longest: int

    @property
    def resident(self) -> float:
        """Memory of the idle engine after a later start, including fragmentation."""
        cache = max(self.kv_cache + self.regained, 0.0)
        held = self.weights + self.context + self.states + self.cuda_graphs + self.attention + cache
        return self.outside + held + engines.FRAGMENTATION_GIB

    @property
    def step(self) -> float:
        """Additional memory of one step: encoding, computing or sampling, including fragmentation.

        The encoder runs before the language model in the same step; its results stay while the language model runs.
        """
        peak = max(self.encoder, self.encoder_cache + self.activations, self.sampling)
        return peak * (1 + self.fragmentation)

    @property
    def ready(self) -> float:
        """Memory that the engine needs to become ready: after it captures graphs it samples once for all sequences."""
        return self.resident + self.sampling

    @property
    def headroom(self) -> float:
        """Free memory when the largest permitted images arrive together; negative if the engine runs out of memory."""
        return self.card - self.resident - self.step

    @property
    def free_at_start(self) -> float:
        """Free memory when the engine compares it with its budget."""
        return self.card - self.outside


def account(model: Model, gpu: Gpu, engine: Engine, settings: Settings) -> Account:
    """Compute the account of one GPU."""
    largest = image_tokens(model, settings.max_pixels)
    profiled = encoder_tokens(model, settings, largest)
    # The server refuses an image with more tokens than a request before the encoder.
    tokens = encoder_tokens(model, settings, min(largest, settings.max_model_len or largest))
    terms = {
        "weights": weights(model, gpu, settings),
        "context": context(settings),
        "states": states(model, settings),
        "activations": activations(model, settings),
        "sampling": sampling(model, settings),
        "encoder": encoder(model, settings, tokens),
        "encoder_cache": encoder_cache(model, settings, tokens),
        "cuda_graphs": cuda_graphs(model, gpu, settings),
        "attention": attention(model, gpu, settings),
    }
    at_start = terms | {
        "encoder": encoder(model, settings, profiled),
        "encoder_cache": encoder_cache(model, settings, profiled),
    }
    compiles = not settings.enforce_eager and not settings.caches_kept
    counts = counted(engine, at_start, compiles=compiles)
    kv_cache = settings.budget_gib - counts
    regained = 0.0 if settings.caches_kept is False else counts - counted(engine, at_start, compiles=False)
    per_block = kv_bytes_per_token(model, settings) * BLOCK
    tokens_held = max(math.floor(kv_cache * GIB / per_block), 0) * BLOCK
    return Account(
        budget=settings.budget_gib,
        **terms,
        kv_cache=kv_cache,
        regained=regained,
        fragmentation=fragmentation(model, settings),
        outside=outside(gpu, settings),
        card=gpu.usable_gib,
        kv_cache_tokens=tokens_held,
        longest=min(tokens_held, model.text.max_position_embeddings),
    )


def fragmentation(model: Model, settings: Settings) -> float:
    """Fraction of a step that is lost to fragmentation, that is free memory between the allocator's blocks."""
    if not model.vision:
        return engines.FRAGMENTATION_TEXT
    return engines.FRAGMENTATION_COPIED if settings.copies_encoder else engines.FRAGMENTATION


def counted(engine: Engine, terms: Mapping[str, float], *, compiles: bool) -> float:
    """Memory that this version of vLLM subtracts from its budget, at a start with or without compilation.

    0.26.0, dense: weights + growth outside PyTorch + peak of the language model's step.
    0.33.0: memory used on the device since the first measurement + peak of encoder or language model + graphs.
    """
    peak = max(terms["activations"], engines.COMPILE_GIB if compiles else 0.0)
    if engine.counts_encoder:
        peak = max(terms["encoder"], terms["encoder_cache"] + peak)
    total = terms["weights"] + terms["context"] + peak
    if engine.counts_graphs:
        total += terms["cuda_graphs"]
    if engine.counts_states:
        total += terms["states"]
    return total


def weights(model: Model, gpu: Gpu, settings: Settings) -> float:
    """The value that vLLM logs as "Model loading took": sharded, repacked weights, position tables, DeepStack buffers.

    Exact, tensor by tensor (module weights); within 0.2 % of every boot in catalogue/calibration.json.
    """
    sharded = _sharded(model, layout(model, gpu, settings))
    return (sharded + engine_buffers(model, settings.max_num_batched_tokens)) / GIB


_SHARDED: dict[tuple[int, Layout], tuple[Model, int]] = {}


def _sharded(model: Model, how: Layout) -> int:
    """Bytes of the weights, cached: the solver needs them hundreds of times, and hashing a model is slow."""
    key = (id(model), how)
    known = _SHARDED.get(key)
    if known is None or known[0] is not model:
        _SHARDED[key] = known = (model, on_one_gpu(model, how))
    return known[1]


def layout(model: Model, gpu: Gpu, settings: Settings) -> Layout:
    """Layout of the weights: FP8 in blocks is repacked for Marlin if the GPU has no kernel for it (+0.23 GiB, 32B).

    4-bit weights use Machete on Hopper, and Marlin otherwise (kernels/linear/__init__.py).
    """
    return Layout(
        tensor_parallel=settings.tensor_parallel,
        copies_encoder=settings.copies_encoder,
        marlin=model.quantization.method == "fp8" and not gpu.native_fp8,
        machete=model.quantization.zero_points and gpu.takes_machete,
    )


def context(settings: Settings) -> float:
    """Memory that appears during the profile run: kernels (non_torch_increase) and cuBLAS's workspace."""
    kernels = engines.NON_TORCH_GIB if settings.tensor_parallel == 1 else engines.NON_TORCH_PARALLEL_GIB
    return kernels + engines.CUBLAS_GIB


def outside(gpu: Gpu, settings: Settings) -> float:
    """CUDA context, and NCCL with several GPUs; allocated before the first measurement (init_device)."""
    if settings.tensor_parallel == 1:
        return engines.CUDA_CONTEXT_GIB
    nccl = engines.NCCL_GIB if gpu.peer_to_peer else engines.NCCL_WITHOUT_PEER_TO_PEER_GIB
    return engines.CUDA_CONTEXT_GIB + nccl


def states(model: Model, settings: Settings) -> float:
    """Buffers of fixed size: token counts for penalties (seqs x vocab x 4), two masks (each seqs x vocab / 8), inputs.

    Source: v1/worker/gpu/sample/penalties.py, structured_outputs.py, mm/encoder_runner.py.
    """
    masks = settings.max_num_seqs * model.text.vocab_size * (4 + 2 / 8)
    embeddings = settings.max_num_batched_tokens * model.text.hidden_size * 2 if model.vision else 0
    return (masks + embeddings) / GIB


def activations(model: Model, settings: Settings) -> float:
    """Peak of one step of the language model: max_num_batched_tokens x memory of a token, or the logits.

    A dense layer holds the joined gate and up projection (2 x intermediate), the activated half (intermediate) and
    residual and hidden states, in BF16. The hidden states are fitted: 3 x hidden where the layer is not compiled (boots
    of 2B, 4B, 8B and 32B), 1.25 x where it is and its weights are FP8 (boots of 32B with 2048 and 8192 tokens), 2.4 x
    where they are not (4-bit, 8192 tokens). A text model looks its tokens up in the same step, for which others have a
    buffer (:func:`states`): 0.75 x more (boot of Qwen3-32B-AWQ). A mixture of experts holds two buffers for the chosen
    experts' copies of each token (fused_moe: max(2 x intermediate, hidden) and intermediate). Logits: BF16 and FP32
    for each sequence.
    """
    text = model.text
    inter = text.intermediate_size / settings.tensor_parallel
    experts = text.experts_per_token * (max(2 * inter, text.hidden_size) + inter)
    wide = experts if model.is_moe else 3 * inter
    compiled = 1.25 if model.quantization.method == "fp8" else 2.4
    states = (3 if settings.enforce_eager else compiled) + (0 if model.vision else 0.75)
    step = settings.max_num_batched_tokens * 2 * (wide + states * text.hidden_size)
    logits = settings.max_num_seqs * text.vocab_size * (2 + 4)
    return max(step, logits) / GIB


def sampling(model: Model, settings: Settings) -> float:
    """Peak of sampling a token for each sequence: logits in BF16 and FP32, probabilities and noise in FP32.

    The start-up profile omits most of it (see ``_dummy_sampler_run``); boot defaults-0.88 ran out of memory for it.
    """
    return settings.max_num_seqs * model.text.vocab_size * (2 + 4 + 4 + 4) / GIB


def kernels(model: Model, gpu: Gpu) -> str:
    """Format of the language model's weights, and the kernels of vLLM for it on this GPU.

    Source: kernels/linear/__init__.py; NVFP4 has kernels of its own from Blackwell on.
    """
    method, bits = model.quantization.method, model.quantization.weight_bits
    if method == "none":
        return "BF16"
    if method == "fp8":
        return f"FP8, {'native' if gpu.native_fp8 else 'Marlin'} kernels"
    if method == "nvfp4":
        return f"NVFP4, {'native' if gpu.compute_capability >= _BLACKWELL else 'Marlin'} kernels"
    name = method.upper() if method == "awq" else method
    return f"{name}, {bits} bits, {'Machete' if gpu.takes_machete else 'Marlin'} kernels"


def encoder_tokens(model: Model, settings: Settings, largest: int) -> int:
    """Image tokens that the scheduler encodes in one step, with images of up to ``largest`` tokens.

    Source: compute_mm_encoder_budget: max(max_num_batched_tokens, tokens of the largest image); not more than all
    sequences can bring. The number of whole images is not rounded down, so that more pixels never need less memory.
    """
    if model.vision is None or not settings.images_per_prompt:
        return 0
    everything = settings.max_num_seqs * settings.images_per_prompt * largest
    return min(max(settings.max_num_batched_tokens, largest), everything)


def image_tokens(model: Model, max_pixels: int) -> int:
    """Tokens of the largest image (Qwen2VL: get_image_size_with_most_features)."""
    return max_pixels // model.vision.pixels_per_token if model.vision else 0


def encoder(model: Model, settings: Settings, tokens: int) -> float:
    """Peak of encoding ``tokens`` image tokens in one step, per patch of the vision tower, in BF16.

    Held through the tower: pixels, position embeddings, the DeepStack features of the levels done so far. A block's
    attention adds its input and the residual, norm, joined QKV, contiguous and rotated Q and K, and its result; its
    MLP adds input, norm and two copies of the inner layer. With tensor parallelism the inner sizes are split, the
    others are not, and the sum over the GPUs is one more result. Where the tower is copied instead, a GPU picks its
    pixels out of all. At the end the features of all levels are joined, which holds them twice. Source: qwen3_vl.py
    (Qwen3_VisionTransformer, Qwen3_VisionBlock), qwen2_5_vl.py (Qwen2_5_VisionAttention), vision.py
    (run_dp_sharded_mrope_vision_model). Boots: 1.88 GiB for 16,384 tokens of 2B, 2.26 GiB for as many of 8B, 0.48 GiB
    for 4096 tokens of 32B split over two GPUs and 0.64 GiB copied; this gives 1.88, 2.25, 0.50 and 0.63.
    """
    vision = model.vision
    if vision is None or not tokens:
        return 0.0
    parts = 1 if settings.copies_encoder else settings.tensor_parallel
    hidden, inter = vision.hidden_size, vision.intermediate_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels *= 2 if settings.copies_encoder and settings.tensor_parallel > 1 else 1
    feature = vision.out_hidden_size / vision.patches_per_token
    whole = 4 if parts == 1 else 5
    attention = whole * hidden + (3 + 2 + 2) * hidden / parts
    mlp = 2 * hidden + 2 * inter / parts
    inside = pixels + hidden + vision.deepstack * feature + max(attention, mlp)
    at_the_end = pixels + 2 * hidden + 2 * (vision.deepstack + 1) * feature
    return tokens * vision.patches_per_token * 2 * max(inside, at_the_end) / GIB


def encoder_cache(model: Model, settings: Settings, tokens: int) -> float:
    """Encoded images in the cache: tokens x hidden x (1 + DeepStack levels) in BF16 (EncoderCache).

    Where the vision tower is copied, an image is a part of what all GPUs gathered, each padded to the largest
    (run_dp_sharded_mrope_vision_model).
    """
    if model.vision is None:
        return 0.0
    copies = settings.tensor_parallel if settings.copies_encoder else 1
    return copies * tokens * model.vision.out_hidden_size * (1 + model.vision.deepstack) * 2 / GIB


def cuda_graphs(model: Model, gpu: Gpu, settings: Settings) -> float:
    """Captured graphs, by the largest captured batch; and NCCL's part of each, where GPUs are not peers.

    Fitted, see engines.py.
    """
    if settings.enforce_eager:
        return 0.0
    per_layer = engines.GRAPH_LAYER_GIB + engines.GRAPH_BYTES * graph_width(model, settings) / GIB
    computing = max(model.text.num_hidden_layers * per_layer, engines.GRAPH_LEAST_GIB)
    if not reduces_by_nccl(gpu, settings):
        return computing
    return computing + captured_batches(largest_captured(settings)) * engines.NCCL_GRAPH_GIB


def graph_width(model: Model, settings: Settings) -> float:
    """Tokens of the largest captured batch x elements of the intermediate layer on one GPU."""
    experts = model.text.experts_per_token if model.is_moe else 1
    return largest_captured(settings) * experts * model.text.intermediate_size / settings.tensor_parallel


def reduces_by_nccl(gpu: Gpu, settings: Settings) -> bool:
    """Whether NCCL sums over the GPUs: vLLM's own kernel needs peers (custom_all_reduce.py)."""
    return settings.tensor_parallel > 1 and not gpu.peer_to_peer


def largest_captured(settings: Settings) -> int:
    """Tokens of the largest batch that is captured. Source: VllmConfig._set_cudagraph_sizes."""
    return min(2 * settings.max_num_seqs, engines.LARGEST_GRAPH, settings.max_num_batched_tokens)


def captured_batches(largest: int) -> int:
    """Number of batches of at most ``largest`` tokens that are captured: 1, 2, 4, then every eighth size below 256,
    then every sixteenth (same source)."""
    fine = len(range(8, min(largest + 1, 256), 8))
    coarse = len(range(256, largest + 1, 16))
    return sum(size <= largest for size in (1, 2, 4)) + fine + coarse


def attention(model: Model, gpu: Gpu, settings: Settings) -> float:
    """FlashInfer's workspace, if vLLM uses it; FlashAttention has none."""
    if not gpu.takes_flashinfer(settings.kv_cache_dtype):
        return 0.0
    text = model.text
    queries = text.num_attention_heads / settings.tensor_parallel * text.head_dim
    prefill = settings.max_num_batched_tokens * queries * engines.FLASHINFER_BYTES_PER_ELEMENT / GIB
    # One wrapper for prefill, one for decode, and one for each captured batch of a decode.
    captured = 0 if settings.enforce_eager else captured_batches(settings.max_num_seqs)
    return max(engines.FLASHINFER_GIB, prefill) + (2 + captured) * engines.FLASHINFER_WRAPPER_GIB


def kv_bytes_per_token(model: Model, settings: Settings) -> int:
    """Bytes of KV cache for one token on one GPU: keys and values of the heads on this GPU."""
    text = model.text
    heads = math.ceil(text.num_key_value_heads / settings.tensor_parallel)
    return text.num_hidden_layers * 2 * heads * text.head_dim * KV_BYTES[settings.kv_cache_dtype]


def as_dict(result: Account) -> dict[str, Any]:
    """The account as in plan.json, rounded to 0.01 GiB."""
    names = (
        "budget",
        "weights",
        "context",
        "states",
        "activations",
        "sampling",
        "encoder",
        "encoder_cache",
        "cuda_graphs",
        "attention",
        "kv_cache",
        "outside",
        "card",
        "resident",
        "step",
        "headroom",
    )
    return {name: round(getattr(result, name), 2) for name in names}
