"""Records the memory of each engine worker after each start-up phase and for each stage of the load.

The start-up log has only a few totals. The probe wraps methods of vLLM's worker in the prefork process, and writes one
JSON object per line to ``$BOOTS_PROBE/rankN.jsonl``: bytes that PyTorch has allocated and reserved, the peaks since the
previous line, and the free memory of the device.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "BOOTS_PROBE"
STAGE = "stage"

#: Start-up phases in order; each is a method of ``vllm.v1.worker.gpu_worker.Worker``.
PHASES = (
    "init_device",
    "load_model",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
)

#: Attributes of the worker with its own memory profile (bytes).
NOTES = ("requested_memory", "non_torch_memory", "peak_activation_memory", "available_kv_cache_memory_bytes")

_current = {"stage": ""}


def install() -> None:
    """Wrap the worker's methods. Without the environment variable they behave as before."""
    from vllm.v1.worker.gpu_worker import Worker

    for name in PHASES:
        setattr(Worker, name, _after(name, getattr(Worker, name)))
    Worker.execute_model = _each_step(Worker.execute_model)


def _after(phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        _write(self, phase)
        return result

    return wrapped


def _each_step(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        _notice_stage(self)
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            _write(self, _current["stage"], error=f"{type(error).__name__}: {error}"[:600])
            raise

    return wrapped


def _notice_stage(worker: Any) -> None:
    """Write the peaks of a stage when the next one has started."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    try:
        stage = Path(folder, STAGE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    if stage != _current["stage"]:
        if _current["stage"]:
            _write(worker, _current["stage"])
        _reset_peaks()
        _current["stage"] = stage


def _write(worker: Any, phase: str, **more: Any) -> None:
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    import torch

    if not torch.cuda.is_available():
        return
    stats = torch.cuda.memory_stats()
    free, total = torch.cuda.mem_get_info()
    line = {
        "phase": phase,
        "allocated": stats.get("allocated_bytes.all.current", 0),
        "reserved": stats.get("reserved_bytes.all.current", 0),
        "peak_allocated": stats.get("allocated_bytes.all.peak", 0),
        "peak_reserved": stats.get("reserved_bytes.all.peak", 0),
        "retries": stats.get("num_alloc_retries", 0),
        "free": free,
        "total": total,
        "notes": {name: int(getattr(worker, name)) for name in NOTES if hasattr(worker, name)},
        **more,
    }
    with Path(folder, f"rank{worker.rank}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _reset_peaks() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
