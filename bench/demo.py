"""`make bench-demo`: print a table with the duration of the demo and its parts. Nothing is asserted.

Deploys the demo from scratch (no image, no wheels, no state), deploys it again, and reads the times of the relevant
tasks from ansible-runner's events.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "collections")]

from e2e.conftest import INVENTORY, Run, play  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One row of the table: measured part, duration and goal in seconds."""

    name: str
    seconds: float
    goal: float | None = None


def task_seconds(seconds: Mapping[str, float], *words: str) -> float:
    """Total seconds of all tasks whose names contain one of the words."""
    return sum(value for name, value in seconds.items() if any(word in name for word in words))


def table(rows: list[Row]) -> str:
    """Rows as an aligned text table."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'part':<{width}}  {'seconds':>8}  {'goal':>6}"]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:.0f}"
        lines.append(f"{row.name:<{width}}  {row.seconds:>8.1f}  {goal:>6}")
    return "\n".join(lines)


def timed(playbook: str, cmdline: str = "", inventory: Path = INVENTORY, **extravars: Any) -> tuple[Run, float]:
    """Run a playbook. Returns its result and its duration in seconds."""
    begin = time.monotonic()
    run = play(playbook, cmdline, inventory, **extravars)
    return run, time.monotonic() - begin


def green(run: Run) -> Run:
    """Return the run, or raise RuntimeError if it failed."""
    if run.rc:
        raise RuntimeError(run.text or f"the playbook was terminated, rc {run.rc}")
    return run


def bootstrap_seconds() -> float:
    """Seconds to create the virtual environment, in a copy of the project's bootstrap files."""
    scratch = ROOT / ".cache" / "bench-bootstrap"
    shutil.rmtree(scratch, ignore_errors=True)
    for name in ("bin/bootstrap", "pyproject.toml", "roles/host_python/files/requirements.txt"):
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, scratch / name)
    begin = time.monotonic()
    subprocess.run([str(scratch / "bin" / "bootstrap"), "deploy"], check=True)  # noqa: S603
    seconds = time.monotonic() - begin
    shutil.rmtree(scratch)
    return seconds


def remove_images(name: str) -> None:
    """Remove all images with a name, including their unshared layers."""
    images = docker.from_env().images
    for image in images.list(name=name):
        for tag in image.tags:
            if tag.rpartition(":")[0] == name:
                images.remove(tag)


def main() -> int:
    """Run the benchmark. Returns 0 if both deployments succeeded, otherwise 1."""
    set_up = bootstrap_seconds()
    play("playbooks/teardown.yml", teardown_remove_data=True, teardown_stop_docker=False)
    defaults = yaml.safe_load((ROOT / "roles" / "engine_image" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    remove_images(defaults["engine_image_cpu_name"])
    shutil.rmtree(ROOT / ".cache" / "engine-image", ignore_errors=True)
    cold, cold_seconds = timed("deploy.yml")
    again, again_seconds = timed("deploy.yml")
    rows = [
        Row("set-up of the virtual environment", set_up),
        Row("demo, cold, with set-up", set_up + cold_seconds, 12 * 60),
        Row("  engine image", task_seconds(cold.seconds, "Image |", "Build |", "Base |", "Wheels |")),
        Row("  start of Compose until healthy", task_seconds(cold.seconds, "Start |"), 75),
        Row("  smoke test", task_seconds(cold.seconds, "Smoke | Run the smoke test"), 20),
        Row("demo, again", again_seconds, 60),
    ]
    print(table(rows))
    return 0 if cold.rc == again.rc == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
