"""Processes on the GPU host: the one that forks engines, an engine, and the ballast that makes a card smaller."""

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

from bench.boots import zygote

_HERE = Path(__file__).parent
_KILL_FOR_S = 20


class Forks:
    """The zygote, from which every ``vllm`` command is forked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take over a zygote that is ready."""
        self._orders, self._answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
        self._lock = threading.Lock()

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Start ``vllm ARGV``; its process id, which is that of its session as well."""
        with self._lock:
            self._orders.write(json.dumps({"argv": list(argv), "env": dict(env), "log": str(log)}) + "\n")
            self._orders.flush()
            return int(self._answers.readline())


@contextmanager
def forking(log: Path) -> Iterator[Forks]:
    """The zygote, once it has imported vLLM; RuntimeError with the end of its log where it cannot."""
    env = os.environ | {
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        # Without this PyTorch asks CUDA itself, which then does not survive the fork.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    start = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
            [sys.executable, "-m", zygote.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )
    with process:
        if not any(said.strip() == zygote.READY for said in iter(cast(IO[str], process.stdout).readline, "")):
            raise RuntimeError(f"vLLM could not be imported: {log.read_text()[-2000:]}")
        print(f"vLLM imported in {time.monotonic() - start:.0f} s", flush=True)
        # Leaving the block closes its input, at which it ends.
        yield Forks(process)


class Engine:
    """A forked ``vllm serve`` on a port of the loopback interface."""

    def __init__(self, pid: int, port: int) -> None:
        """Watch a process that is not a child."""
        self.pid, self.port = pid, port
        self._handle = os.pidfd_open(pid)

    def alive(self) -> bool:
        """Whether the process runs."""
        return not select.select([self._handle], [], [], 0)[0]

    def wait_ready(self, start: float, limit: float) -> float | None:
        """Seconds from ``start`` until /health answers; None where the process ends before, or time is up."""
        while time.monotonic() - start < limit and self.alive():
            with suppress(OSError):
                self._get("/health")
                return round(time.monotonic() - start, 1)
            time.sleep(0.3)
        return None

    def max_model_len(self) -> int:
        """Longest request, as the engine chose it."""
        return int(json.loads(self._get("/v1/models"))["data"][0]["max_model_len"])

    def cache_config(self) -> dict[str, str]:
        """Labels of ``vllm:cache_config_info``, numbers only."""
        for text in self._get("/metrics").splitlines():
            if text.startswith("vllm:cache_config_info"):
                return dict(re.findall(r'(\w+)="([\d.]+)"', text))
        return {}

    def stop(self) -> None:
        """Kill the whole process group at once: nothing of it is needed, and the driver frees its memory."""
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
    """Hold what a card has above ``card_gib``; what CUDA then says of each GPU, none without GPUs."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter and a file of this folder
        [sys.executable, str(_HERE / "ballast.py"), str(card_gib)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | visible,
    )
    with process:
        yield json.loads(cast(IO[str], process.stdout).readline())
        # Leaving the block closes its input, at which it lets go.


def wait_exit(pid: int, limit: float) -> None:
    """Wait until a process that is not a child ends; end its session where it does not in so many seconds."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], limit)[0]:
            os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(handle)


def gpu_count() -> int:
    """Number of GPUs, without touching CUDA; an engine without GPU counts as one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 1
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
