"""Load for benchmarks of the demo: text requests from `vllm bench serve` in the engine image."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".demo" / "home"
MODEL = ROOT / "tests" / "tiny_model" / "model"


@dataclass(frozen=True)
class Load:
    """Concurrent requests, total requests, and tokens per answer; each prompt has 128 tokens."""

    concurrency: int
    requests: int
    tokens: int


def engines_key() -> str:
    """API key of the demo's engine."""
    return (HOME / "secrets" / "api_key").read_text(encoding="utf-8").strip()


def ask(port: int, key: str, load: Load, folder: Path) -> dict[str, Any]:
    """Send a load to a port on loopback. Returns the result. The folder must not exist.

    Raises:
        RuntimeError: The tool failed, or a request was not answered.
    """
    done = subprocess.run(_command(port, key, load, folder), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"vllm bench serve failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    result = dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    if result["completed"] != load.requests:
        raise RuntimeError(f"port {port}: {result['completed']} of {load.requests} requests were answered")
    return result


@contextmanager
def steady(port: int, key: str, load: Load, folder: Path) -> Iterator[Callable[[], None]]:
    """Send a load while the block runs. Yields a function that raises RuntimeError if the load has ended."""
    name = f"bench-load-{os.getpid()}"
    command = _command(port, key, load, folder, f"--name={name}")
    log = folder / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:  # noqa: S603

        def sends() -> None:
            if process.poll() is not None:
                raise RuntimeError(f"vllm bench serve ended:\n{log.read_text(errors='replace')[-2000:]}")

        try:
            yield sends
        finally:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)  # noqa: S603, S607


def _command(port: int, key: str, load: Load, folder: Path, *options: str) -> list[str]:
    folder.mkdir()
    # The user of the image writes the results.
    folder.chmod(0o777)
    secret = folder / "environment"
    secret.write_text(f"OPENAI_API_KEY={key}\nHF_HUB_OFFLINE=1\n", encoding="utf-8")
    image = json.loads((HOME / "image.json").read_text(encoding="utf-8"))["reference"]
    return [
        *("docker", "run", "--rm", *options, "--network=host", f"--env-file={secret}", "--entrypoint=vllm"),
        *(f"--volume={MODEL}:/model:ro", f"--volume={folder}:/results", image),
        *("bench", "serve", "--backend=openai", f"--base-url=http://127.0.0.1:{port}"),
        *("--endpoint=/v1/completions", "--model=tiny-qwen3-vl", "--tokenizer=/model", "--dataset-name=random"),
        *("--input-len=128", f"--output-len={load.tokens}", "--ignore-eos", f"--num-prompts={load.requests}"),
        *(f"--max-concurrency={load.concurrency}", "--num-warmups=4"),
        *("--disable-tqdm", "--save-result", "--result-dir=/results", "--result-filename=result.json"),
    ]
