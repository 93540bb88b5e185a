"""Fit the planner's constants on the measured boots again, and compare them with those in engines.py.

For a new version of vLLM: add its boots to catalogue/calibration.json, run this, and put the values into engines.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "collections"))
sys.path.insert(0, str(ROOT / "tests"))

from ansible_collections.inference.vllm.plugins.module_utils import versions  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import (  # noqa: E402
    captured_batches,
    graph_width,
    largest_captured,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import GIB  # noqa: E402
from support.boots import Boot, boots  # noqa: E402

# Share of a constant, so that rounding it is no difference.
TOLERANCE = 0.02


def fit(measured: Sequence[Boot]) -> dict[str, tuple[float, int, float]]:
    """Each fitted constant: the value that the boots give, on how many boots, and the value in engines.py."""
    boots_of_version = [boot for boot in measured if boot.plan.case.engine.version == versions.CALIBRATED]
    single = [boot for boot in boots_of_version if boot.plan.settings.tensor_parallel == 1]
    parallel = [boot for boot in boots_of_version if boot.plan.settings.tensor_parallel > 1]
    linked = [boot for boot in parallel if boot.plan.case.host.gpu.peer_to_peer]
    apart = [boot for boot in parallel if not boot.plan.case.host.gpu.peer_to_peer]
    context = mean_of(single, "outside_gib")
    layer, width = graphs([*single, *linked])
    return {
        "NON_TORCH_GIB": (*mean_of(single, "non_torch_gib"), engines.NON_TORCH_GIB),
        "NON_TORCH_PARALLEL_GIB": (*mean_of(parallel, "non_torch_gib"), engines.NON_TORCH_PARALLEL_GIB),
        "CUDA_CONTEXT_GIB": (*context, engines.CUDA_CONTEXT_GIB),
        "NCCL_GIB": (*mean_of(linked, "outside_gib", less=context[0]), engines.NCCL_GIB),
        "NCCL_WITHOUT_PEER_TO_PEER_GIB": (
            *mean_of(apart, "outside_gib", less=context[0]),
            engines.NCCL_WITHOUT_PEER_TO_PEER_GIB,
        ),
        "COMPILE_GIB": (*compile_peak(boots_of_version), engines.COMPILE_GIB),
        "NCCL_GRAPH_GIB": (*nccl_in_graphs(apart), engines.NCCL_GRAPH_GIB),
        "GRAPH_LAYER_GIB": (*layer, engines.GRAPH_LAYER_GIB),
        "GRAPH_BYTES": (*width, engines.GRAPH_BYTES),
    }


def mean_of(measured: Sequence[Boot], name: str, less: float = 0.0) -> tuple[float, int]:
    """Mean of one measured value, and of how many boots."""
    values = [float(boot.measured[name]) - less for boot in measured if name in boot.measured]
    return mean(values), len(values)


def compile_peak(measured: Sequence[Boot]) -> tuple[float, int]:
    """Profiled peak less cuBLAS's workspace of boots that compiled, where the model's own step is smaller."""
    values = [
        peak
        for boot in measured
        if "profiled_peak_gib" in boot.measured and not boot.plan.settings.enforce_eager
        if (peak := boot.measured["profiled_peak_gib"] - engines.CUBLAS_GIB) > 1.15 * boot.plan.account.activations
        if not boot.measured.get("caches_kept")
    ]
    return mean(values), len(values)


def graphs(measured: Sequence[Boot]) -> tuple[tuple[float, int], tuple[float, int]]:
    """Constant per layer and bytes per token and element of the intermediate layer, by least squares.

    Each boot weighs as 1 / measured, so that large captures do not decide alone.
    """
    points = []
    for boot in measured:
        if size := boot.measured.get("cuda_graphs_gib"):
            layers = boot.plan.case.model.text.num_hidden_layers
            width = graph_width(boot.plan.case.model, boot.plan.settings) / GIB
            points.append((width, size / layers, 1 / size))
    total = sum(weight for *_, weight in points)
    x_mean = sum(weight * x for x, _, weight in points) / total
    y_mean = sum(weight * y for _, y, weight in points) / total
    slope = sum(weight * (x - x_mean) * (y - y_mean) for x, y, weight in points)
    slope /= sum(weight * (x - x_mean) ** 2 for x, _, weight in points)
    return (y_mean - slope * x_mean, len(points)), (slope, len(points))


def nccl_in_graphs(measured: Sequence[Boot]) -> tuple[float, int]:
    """What a captured batch takes on top where NCCL sums over the GPUs."""
    values = []
    for boot in measured:
        if size := boot.measured.get("cuda_graphs_gib"):
            batches = captured_batches(largest_captured(boot.plan.settings))
            values.append(engines.NCCL_GRAPH_GIB + (size - boot.plan.account.cuda_graphs) / batches)
    return mean(values), len(values)


def main() -> int:
    """Print the fit; 1 where a constant in engines.py is not what the boots give."""
    off = 0
    print(f"{'constant':24} {'fitted':>8} {'engines.py':>10} {'boots':>6}")
    for name, (fitted, count, used) in fit(boots()).items():
        differs = abs(fitted - used) > TOLERANCE * abs(fitted)
        off += differs
        print(f"{name:24} {fitted:8.4f} {used:10.4f} {count:6}{'  <- differs' if differs else ''}")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
