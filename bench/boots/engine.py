"""Processes on the GPU host: the prefork process, engines, and the ballast that emulates a smaller card."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from bench.boots import prefork

_HERE = Path(__file__).parent
_KILL_FOR_S = 20


class Forks:
    """The prefork process, which forks every ``vllm`` command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Use a prefork process that is ready."""
        self._orders, self._answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
        self._lock = threading.Lock()

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Start ``vllm ARGV``. Returns its PID, which is also its session ID."""
        with self._lock:
            self._orders.write(json.dumps({"argv": list(argv), "env": dict(env), "log": str(log)}) + "\n")
            self._orders.flush()
            return int(self._answers.readline())


@contextmanager
def forking(log: Path) -> Iterator[Forks]:
    """Start the prefork process and wait until it has imported vLLM. Raises RuntimeError with the end of its log."""
    env = os.environ | {
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        # Otherwise PyTorch initializes CUDA, which does not survive a fork.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    start = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
            [sys.executable, "-m", prefork.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )
    with process:
        if not any(line.strip() == prefork.READY for line in iter(cast(IO[str], process.stdout).readline, "")):
            raise RuntimeError(f"vLLM could not be imported: {log.read_text()[-2000:]}")
        print(f"vLLM imported in {time.monotonic() - start:.0f} s", flush=True)
        # Leaving the block closes its standard input, which ends the process.
        yield Forks(process)


class Engine:
    """A forked ``vllm serve`` on a loopback port."""

    def __init__(self, pid: int, port: int) -> None:
        """Watch a process that is not a child process."""
        self.pid, self.port = pid, port
        self._handle = os.pidfd_open(pid)

    def alive(self) -> bool:
        """Whether the process runs."""
        return not select.select([self._handle], [], [], 0)[0]

    def wait_ready(self, start: float, limit: float) -> float | None:
        """Seconds from ``start`` until /health answers; None if the process ends before or the time limit expires."""
        while time.monotonic() - start < limit and self.alive():
            with suppress(OSError):
                self._get("/health")
                return round(time.monotonic() - start, 1)
            time.sleep(0.3)
        return None

    def max_model_len(self) -> int:
        """Maximum request length that the engine chose."""
        return int(json.loads(self._get("/v1/models"))["data"][0]["max_model_len"])

    def cache_config(self) -> dict[str, str]:
        """Numeric labels of ``vllm:cache_config_info``."""
        for text in self._get("/metrics").splitlines():
            if text.startswith("vllm:cache_config_info"):
                return dict(re.findall(r'(\w+)="([\d.]+)"', text))
        return {}

    def stop(self) -> None:
        """Kill the whole process group. The driver frees its memory."""
        os.close(self._handle)
        deadline = time.monotonic() + _KILL_FOR_S
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, signal.SIGKILL)
                time.sleep(0.2)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
            return str(reply.read().decode())


@contextmanager
def ballast(card_gib: float, visible: Mapping[str, str]) -> Iterator[list[dict[str, float]]]:
    """Hold the memory of each GPU above ``card_gib``. Yields the memory of each GPU; an empty list without GPUs."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter and a file of this folder
        [sys.executable, str(_HERE / "ballast.py"), str(card_gib)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | visible,
    )
    with process:
        yield json.loads(cast(IO[str], process.stdout).readline())
        # Leaving the block closes its standard input, which frees the memory.


def wait_exit(pid: int, limit: float) -> None:
    """Wait until a process that is not a child ends. Kill its session after ``limit`` seconds."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], limit)[0]:
            os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(handle)


def gpu_count() -> int:
    """Number of GPUs, without initializing CUDA; 1 on a host without GPUs."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 1
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
