"""Convert ``results.jsonl`` to rows of catalogue/calibration.json: ``python -m bench.boots.rows RESULTS.jsonl``.

Prints the rows. Values that a boot did not report are omitted.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GIB = 2**30

#: Models by the name of their folder.
MODELS: Mapping[str, str] = {size: f"qwen3-vl-{size}-instruct-fp8" for size in ("2b", "4b", "8b", "32b")} | {
    "32b-awq": "qwen3-vl-32b-instruct-awq",
    "text-32b-awq": "qwen3-32b-awq",
}


def main() -> None:
    """Print the rows of all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--engine", required=True, help="vLLM version")
    parser.add_argument("--gpu", required=True, help="measured card, with the driver version")
    parser.add_argument("--compute-capability", type=float, required=True)
    parser.add_argument("--date", required=True)
    options = parser.parse_args()
    for path in options.results:
        for text in path.read_text(encoding="utf-8").splitlines():
            result = row(json.loads(text), options.engine, options.gpu, options.compute_capability, options.date)
            print(json.dumps(result))


def row(result: Mapping[str, Any], engine: str, card: str, capability: float, date: str) -> dict[str, Any]:
    """One boot as a row of the calibration table."""
    # Without ballast, the card has its real size.
    held = float(result["card_gib"] or 0)
    total = held or round(result["cards"][0]["total_gib"], 2)
    settings = dict(result["settings"])
    budget = settings.pop("gpu_memory_utilization") * total
    if settings.get("max_model_len") == "auto":
        settings.pop("max_model_len")
    marlin = any("Marlin" in line for line in result["log"])
    count = settings["tensor_parallel_size"]
    alone = result["environment"].get("NCCL_P2P_DISABLE") == 1
    return {
        "name": result["name"],
        "engine": engine,
        "date": date,
        "gpu": {
            "measured_on": card + (f", held to {held} GiB" if held else ""),
            "total_gib": total,
            "count": count,
            "compute_capability": capability,
            "peer_to_peer": not alone,
            **({"marlin": True} if marlin else {}),
        },
        "model": MODELS[result["model"]],
        "settings": settings | {"budget_gib": round(budget, 2)},
        "measured": measured(result),
    }


def measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """Measured values of a boot: sizes in GiB, tokens and the two verdicts."""
    starts = result["ready_s"] is not None
    values: dict[str, Any] = {
        "weights_gib": _number(result["log"], r"Model loading took ([\d.]+) GiB"),
        "kv_cache_gib": _number(result["log"], r"Available KV cache memory: ([\d.]+) GiB"),
        "kv_cache_tokens": _number(result["log"], r"KV cache size: ([\d,]+) tokens"),
        "cuda_graphs_gib": _number(result["log"], r"Graph capturing finished in \d+ secs, took ([\d.]+) GiB"),
        **_phases(result),
        "starts": starts,
        "survives": _survives(result) if starts else None,
        "ready_s": result["ready_s"],
        "output_tokens_per_s": _speed(result),
    }
    return {name: value for name, value in values.items() if value is not None}


def _phases(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Values of the probe on the first GPU."""
    phases = {line["phase"]: line for line in result["probe"].get("rank0", []) if "error" not in line}
    begun, profiled = phases.get("init_device"), phases.get("determine_available_memory", {})
    notes = profiled.get("notes", {})
    outside = result["cards"][0]["free_gib"] - begun["free"] / GIB if begun else None
    return {
        "outside_gib": _rounded(outside),
        "non_torch_gib": _rounded(notes["non_torch_memory"] / GIB) if notes else None,
        "profiled_peak_gib": _rounded(notes["peak_activation_memory"] / GIB) if notes else None,
    }


def _speed(result: Mapping[str, Any]) -> dict[str, float] | None:
    """Output tokens per second of each finished workload."""
    done = {name: bench for name, bench in result.get("bench", {}).items() if bench.get("failed") == 0}
    return {name: round(bench["output_throughput"], 1) for name, bench in done.items()} or None


def _survives(result: Mapping[str, Any]) -> bool:
    answers = (answer for stage in result["stages"].values() for answer in stage)
    measured_speed = all(bench.get("failed") == 0 for bench in result.get("bench", {}).values())
    return bool(result["alive"]) and measured_speed and all(answer["survived"] for answer in answers)


def _number(lines: Iterable[str], pattern: str) -> float | int | None:
    for line in lines:
        if match := re.search(pattern, line):
            text = match[1].replace(",", "")
            return float(text) if "." in text else int(text)
    return None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


if __name__ == "__main__":
    main()
