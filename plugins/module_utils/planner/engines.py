"""What vLLM counts at start-up, by version, and the constants that were measured at boots.

Each constant has its source. ``bench/plan_fit.py`` computes the fitted ones again from the boots in
``catalogue/calibration.json``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

# Memory outside PyTorch's allocator that appears during vLLM's profile run: kernels that are loaded on first use. With
# tensor parallelism most of them are already loaded by NCCL's first calls. Fitted: non_torch_increase of all boots that
# log it, 0.225 to 0.227 GiB on one GPU and 0.066 to 0.068 GiB on two.
NON_TORCH_GIB = 0.226
NON_TORCH_PARALLEL_GIB = 0.066

# CUDA context of one process, and NCCL's buffers from its initialisation: both exist before vLLM takes its first
# measurement, so the budget excludes them. Fitted on the free memory of those boots: 0.67 GiB less than the card on one
# GPU, 1.53 GiB less on two with NVLink, 1.05 GiB less on two with NCCL_P2P_DISABLE=1.
CUDA_CONTEXT_GIB = 0.67
NCCL_GIB = 0.86
NCCL_WITHOUT_PEER_TO_PEER_GIB = 0.37

# cuBLAS's workspace, allocated by the first product: 32 MiB.
CUBLAS_GIB = 1 / 32

# Least peak of a start with compilation: Triton times its kernels with a cache-clearing buffer of 256 MiB
# (triton.testing.do_bench). A start with kept caches does not need it. Fitted: cold boots 32B TP 2, 8B and 2B.
COMPILE_GIB = 0.28

# FlashInfer's workspace (VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE; more where 16 bytes for each element of the queries of
# a step need it), and 8 MiB for each wrapper, of which there is one per captured batch of a decode. All of it is made
# after the engine has profiled itself. Source: attention/backends/flashinfer.py, flashinfer/decode.py; no boot measures
# it.
FLASHINFER_GIB = 394 / 1024
FLASHINFER_BYTES_PER_ELEMENT = 16
FLASHINFER_WRAPPER_GIB = 8 / 1024

# CUDA graphs, per layer: a constant, and bytes for each token of the largest captured batch and each element of the
# intermediate layer on this GPU. Fitted on the boots that log their graphs: 0.05 GiB for 16 tokens of 2B up to
# 1.82 GiB for 512 tokens of 32B on one GPU, 0.83 GiB on two.
GRAPH_LAYER_GIB = 0.00134
GRAPH_BYTES = 2.08
GRAPH_LEAST_GIB = 0.05
LARGEST_GRAPH = 512

# Without peer-to-peer access vLLM's own all-reduce is off, and NCCL's calls are captured: each captured batch needs
# some 30 MiB more. Fitted on six boots of 64 layers on two GPUs: 0.51 GiB instead of 0.17 for 11 batches,
# 1.62 GiB for 35; with 51 batches and 2.4 GiB free a boot ran out of memory during the capture.
NCCL_GRAPH_GIB = 0.030

# PyTorch cannot use the gaps between live blocks. Measured at rest: 0.06 to 0.26 GiB reserved and not allocated. A
# step needs a tenth more than it allocates: boot 8b-any-image-0.92 failed at a step of 1.37 GiB with 1.54 GiB free.
# With a copied vision tower it needs more: a boot failed with 0.38 GiB free at a step that had needed 0.63 GiB before.
# A text model's step needs half as much again, as batches of other sizes leave blocks that do not serve the next: boot
# baseline-awq failed at a step of 0.83 GiB with 1.06 GiB free, of which 0.78 GiB were in such blocks.
FRAGMENTATION = 0.10
FRAGMENTATION_COPIED = 0.40
FRAGMENTATION_TEXT = 0.50
FRAGMENTATION_GIB = 0.17


@dataclass(frozen=True)
class Engine:
    """What a version of vLLM subtracts from its budget before it allocates the KV cache.

    Attributes:
        version: Its number.
        counts_encoder: Whether the start-up profile encodes the largest images.
        counts_graphs: Whether an estimate of the CUDA graphs is subtracted.
        counts_states: Whether buffers for sampling and inputs are subtracted.
        calibrated: Whether the constants are fitted to boots of this version.
        basis: Basis of the account of this version, as text.
    """

    version: str
    counts_encoder: bool
    counts_graphs: bool
    counts_states: bool
    calibrated: bool
    basis: str


def engine(version: str, *, is_moe: bool = False) -> Engine:
    """The rules of a version such as ``0.33.0``; raises RefusalError if it is not a version.

    Read in the sources of 0.26.0, 0.32.0 and 0.33.0 (``v1/worker/gpu_worker.py``: determine_available_memory,
    ``v1/worker/gpu/model_runner.py``: profile_run, profile_cudagraph_memory):

    * up to 0.31 dense models run on the second model runner, whose profile skips the encoder and reports no graphs;
    * mixtures of experts run there on the first one, which counts both;
    * from 0.32 all models run on the second one, which counts both, and consumption is measured from the device, so
      that the states count as well.
    """
    release = versions.plain(version)
    if not release:
        raise RefusalError(
            Refusal(
                "impossible_value",
                f"engine version: {version!r} is not a version.",
                f"Write it as {versions.DEPLOYED}.",
            )
        )
    counts_all = versions.parse(release) >= (0, 32, 0)
    return Engine(
        version=release,
        counts_encoder=counts_all or is_moe,
        counts_graphs=counts_all or is_moe,
        counts_states=counts_all,
        calibrated=release == versions.CALIBRATED and not is_moe,
        basis=_basis(release, is_moe=is_moe),
    )


def _basis(release: str, *, is_moe: bool) -> str:
    if release == versions.CALIBRATED and is_moe:
        return "no boot of a mixture of experts was measured; planned from its source"
    if release == versions.CALIBRATED:
        return "measured at boots"
    nearest = versions.nearest_read(release)
    source = "from its source" if release == nearest else f"as {nearest}"
    return f"no boot of this version was measured; planned {source}"
