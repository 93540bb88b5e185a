"""Fit the planner's constants on the measured boots again, and compare them with those in engines.py.

For a new version of vLLM: add its boots to catalogue/calibration.json, run this, and put the values into engines.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "collections"))
sys.path.insert(0, str(ROOT / "tests"))

from ansible_collections.inference.vllm.plugins.module_utils.planner import engines  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import kv_bytes_per_token  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.weights import GIB  # noqa: E402
from support.boots import Boot, boots  # noqa: E402

TOLERANCE = 0.01


def left_over(boot: Boot) -> float:
    """GiB of the budget that neither weights, nor activations, nor the measured KV cache explain."""
    cache = (boot.tokens or 0) * kv_bytes_per_token(boot.plan.case.model, boot.plan.settings) / GIB
    account = boot.plan.account
    return account.budget - account.weights - account.activations - cache


def fit(measured: Iterable[Boot]) -> dict[str, tuple[float, float, int]]:
    """Each fitted constant: the value that the boots give, the value in engines.py, and on how many boots."""
    measured = [boot for boot in measured if boot.plan.case.engine.version == engines.CALIBRATED]
    single = [left_over(b) for b in measured if b.tokens and b.plan.settings.tensor_parallel == 1]
    parallel = [left_over(b) for b in measured if b.tokens and b.plan.settings.tensor_parallel > 1]
    graphs = sorted(
        (min(2 * b.plan.settings.max_num_seqs, engines.LARGEST_GRAPH), float(b.measured["cuda_graphs_gib"]))
        for b in measured
        if "cuda_graphs_gib" in b.measured
    )
    (small, least), (large, most) = graphs[0], graphs[-1]
    power = math.log(most / least) / math.log(large / small)
    return {
        "NON_TORCH_GIB": (mean(single), engines.NON_TORCH_GIB, len(single)),
        "NON_TORCH_PARALLEL_GIB": (mean(parallel), engines.NON_TORCH_PARALLEL_GIB, len(parallel)),
        "GRAPH_GIB_AT_512": (most, engines.GRAPH_GIB_AT_512, len(graphs)),
        "GRAPH_POWER": (power, engines.GRAPH_POWER, len(graphs)),
    }


def main() -> int:
    """Print the fit; 1 where a constant in engines.py is not what the boots give."""
    off = 0
    print(f"{'constant':24} {'fitted':>8} {'engines.py':>10} {'boots':>6}")
    for name, (fitted, used, count) in fit(boots()).items():
        differs = abs(fitted - used) > TOLERANCE
        off += differs
        print(f"{name:24} {fitted:8.3f} {used:10.3f} {count:6}{'  <- differs' if differs else ''}")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
