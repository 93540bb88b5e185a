"""What vLLM counts when it starts, by version, and the constants that only a boot can tell.

Each constant names where it comes from. ``bench/plan_fit.py`` computes the fitted ones again from the boots in
``catalogue/calibration.json``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

# The newest version whose boots the constants are fitted on, and the one that the project deploys.
CALIBRATED = "0.26.0"
DEPLOYED = "0.33.0"
FLOOR = "0.32.0"

# Memory outside PyTorch's allocator that appears while vLLM profiles itself (kernels that are loaded on first use), on
# one GPU. Fitted: boot 32b-fp8, TP 1, budget 72.84 GiB (1.49 GiB left over, 1.33 of it activations).
NON_TORCH_GIB = 0.16

# The same with tensor parallelism: NCCL connects its channels at the first large all-reduce.
# Fitted: boots 32b-fp8, TP 2, budgets 19.99 and 22.34 GiB (0.78 GiB left over, 0.19 of it activations).
NON_TORCH_PARALLEL_GIB = 0.63

# CUDA context of one process, and NCCL's buffers from its initialisation: both exist before vLLM takes its first
# measurement, so they lie outside the budget. Assumed: a context of torch 2.11 with CUDA 13 takes about 0.5 GiB on an
# H100 (nvidia-smi); NCCL about 0.25 GiB.
CUDA_CONTEXT_GIB = 0.5
NCCL_GIB = 0.25

# CUDA graphs of a model with 64 layers, by the largest captured batch: a power law through the two boots that tell it
# (0.17 GiB at 64 tokens, 1.82 GiB at 512 tokens), in proportion to the layers.
GRAPH_GIB_AT_512 = 1.82
GRAPH_POWER = 1.14
GRAPH_LAYERS = 64
GRAPH_LEAST_GIB = 0.05
LARGEST_GRAPH = 512

# PyTorch cannot use the holes between live blocks. Assumed: a tenth of what a step needs, and 0.1 GiB; boot 32b-fp8,
# TP 1 held 3.2 GiB for an encoder step of 2.2 GiB while memory was plentiful, and lived when it was not.
FRAGMENTATION = 0.10
FRAGMENTATION_GIB = 0.1


@dataclass(frozen=True)
class Engine:
    """What a version of vLLM subtracts from its budget before the rest becomes KV cache.

    Attributes:
        version: Its number.
        counts_encoder: Whether the start-up profile encodes the largest images.
        counts_graphs: Whether an estimate of the CUDA graphs is subtracted.
        counts_states: Whether buffers for sampling and inputs are.
        calibrated: Whether boots of this version are among those that the constants are fitted on.
    """

    version: str
    counts_encoder: bool
    counts_graphs: bool
    counts_states: bool
    calibrated: bool


def engine(version: str, *, is_moe: bool = False) -> Engine:
    """The rules of a version such as ``0.33.0``; raises RefusalError where it is not a version.

    Read in the sources of 0.26.0, 0.32.0 and 0.33.0 (``v1/worker/gpu_worker.py``: determine_available_memory,
    ``v1/worker/gpu/model_runner.py``: profile_run, profile_cudagraph_memory):

    * up to 0.31 dense models run on the second model runner, whose profile skips the encoder and reports no graphs;
    * mixtures of experts run there on the first one, which counts both;
    * from 0.32 all models run on the second one, which counts both, and consumption is measured from the device, so
      that the states count as well.
    """
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[.+-].*)?", version)
    if not match:
        raise RefusalError(
            Refusal("impossible_value", f"engine version: {version!r} is not one.", f"Write it as {DEPLOYED}.")
        )
    counts_all = (int(match[1]), int(match[2])) >= (0, 32)
    return Engine(
        version=version.removeprefix("v"),
        counts_encoder=counts_all or is_moe,
        counts_graphs=counts_all or is_moe,
        counts_states=counts_all,
        calibrated=version == CALIBRATED and not is_moe,
    )
