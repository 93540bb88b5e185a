"""A process that has imported vLLM and forks a copy of itself for each engine: the imports are paid for once.

Started by the driver. Reads one JSON object a line, ``{"argv": [...], "env": {...}, "log": PATH}``, and answers each
with the process id of the copy, which leads a session of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, NoReturn

READY = "READY"


def main() -> None:
    """Import, say so, and fork for each line of standard input until it ends."""
    _preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(READY, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        print(child, flush=True)


def _preload() -> None:
    """Import what an engine and its workers import, without touching a GPU: CUDA does not survive a fork."""
    import importlib

    for name in (
        "vllm.entrypoints.cli.main",
        "vllm.entrypoints.cli.serve",
        "vllm.entrypoints.cli.benchmark.main",
        "vllm.entrypoints.openai.api_server",
        "vllm.benchmarks.serve",
        "vllm.v1.engine.core",
        "vllm.v1.executor.multiproc_executor",
        "vllm.v1.worker.gpu_worker",
        "vllm.model_executor.models.qwen3_vl",
        "transformers.models.qwen3_vl",
    ):
        try:
            importlib.import_module(name)
        except Exception as error:  # another version may have moved one; it is imported later then
            print(f"not preloaded: {name}: {error}", file=sys.stderr, flush=True)

    from bench.boots import probe

    probe.install()


def _become(order: dict[str, Any]) -> NoReturn:
    """Turn this copy into the command ``vllm ARGV``."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(order["env"])
        sys.argv = ["vllm", *order["argv"]]
        from vllm.entrypoints.cli.main import main as vllm

        vllm()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
