"""Prefork process: imports vLLM once and forks a copy of itself for each engine.

Started by engine.py. Reads one JSON object per line, ``{"argv": [...], "env": {...}, "log": PATH}``, and answers each
with the PID of the copy, which leads a new session.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, NoReturn

READY = "READY"


def main() -> None:
    """Import vLLM, print READY, and fork for each line of standard input until it ends."""
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
    """Import the modules of an engine and its workers without initializing CUDA, which does not survive a fork."""
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
        except Exception as error:  # in another version a module may have moved; it is then imported later
            print(f"not preloaded: {name}: {error}", file=sys.stderr, flush=True)

    from bench.boots import probe

    probe.install()


def _become(order: dict[str, Any]) -> NoReturn:
    """Run the command ``vllm ARGV`` in this copy."""
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
