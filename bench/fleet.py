"""`make bench-fleet`: compare the duration of a deploy without a change on many hosts in parallel and on one host.

All hosts are this machine: each is a host of inventories/embedded with its own folder, ports, Compose project and
cores. The first deploy installs and proves all hosts. Each round then deploys one host and all hosts again. The tasks
of all hosts run on the controller's cores, so the ratio is an upper bound for separate machines.

Needs no network if the engine image exists and the folder of wheels is filled. Everything except the wheels is removed
at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "collections")]

from bench.demo import green, timed  # noqa: E402
from bench.goals import Row, table  # noqa: E402
from e2e.conftest import INVENTORY, play  # noqa: E402

FOLDER = ROOT / ".cache" / "bench-fleet"
REQUIREMENTS = ROOT / "roles" / "host_python" / "files" / "requirements.txt"
# Python of the hosts, for which the wheels are downloaded.
PYTHON = "/usr/bin/python3"
FIRST_PORT = 18100
FIRST_HUB_PORT = 18200
#: With GOAL_HOSTS hosts, a deploy may take at most GOAL times as long as with one host.
GOAL_HOSTS, GOAL = 8, 2


def main(count: int, rounds: int, *, keep: bool) -> int:
    """Print the table. Returns 1 if the goal is missed."""
    cores = sorted(os.sched_getaffinity(0))
    with deployed(FOLDER, count, cores, keep=keep):
        pairs = [compare(FOLDER, count) for _ in range(rounds)]
    rows = [*figures(count, pairs), Row("cores, shared by the controller and all hosts", len(cores), "")]
    print(table(rows))
    print("The hosts share the controller's cores: the ratio is an upper bound for separate machines.")
    return int(not all(row.met for row in rows))


def inventory(folder: Path, count: int, cores: Sequence[int]) -> dict[str, Any]:
    """Ansible inventory of the hosts, with the variables that must differ between them."""
    return {
        "vllm": {
            "hosts": {
                f"fleet{number + 1}": {
                    "ansible_connection": "local",
                    "embedded_project_dir": str(ROOT),
                    "vllm_home": str(folder / f"fleet{number + 1}" / "home"),
                    "vllm_port": FIRST_PORT + number,
                    "vllm_project": f"vllm-fleet{number + 1}",
                    "local_hub_home": str(folder / f"fleet{number + 1}" / "hub"),
                    "local_hub_port": FIRST_HUB_PORT + number,
                    "host_python_wheels": str(folder / "wheels"),
                    # By default, each engine binds its threads to all cores.
                    "vllm_service_environment": {
                        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, share(number, count, cores)))
                    },
                }
                for number in range(count)
            }
        }
    }


def share(number: int, count: int, cores: Sequence[int]) -> Sequence[int]:
    """Cores of one host: an equal share, and at least one core."""
    size = max(1, len(cores) // count)
    begin = number * size % len(cores)
    return cores[begin : begin + size]


def write(folder: Path, count: int, cores: Sequence[int]) -> Path:
    """Write the inventory into a folder. The shared variables come from inventories/embedded."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "group_vars"
    link.unlink(missing_ok=True)
    link.symlink_to(INVENTORY / "group_vars")
    hosts = folder / "hosts.yml"
    hosts.write_text(yaml.safe_dump(inventory(folder, count, cores), sort_keys=False), encoding="utf-8")
    return hosts


@contextmanager
def deployed(folder: Path, count: int, cores: Sequence[int], *, keep: bool) -> Iterator[None]:
    """Deploy the hosts, and remove them after the block. Also removes leftovers of an earlier run.

    ansible-runner stops a playbook on SIGINT and SIGTERM; the failed run then ends the block.
    """
    remove(folder)
    collect(folder / "wheels")
    hosts = write(folder, count, cores)
    try:
        # Otherwise all hosts, which share one Docker engine, would build the image in parallel in the same folder.
        green(play("tests/support/engine.yml", "--limit fleet1", hosts))
        green(play("deploy.yml", inventory=hosts))
        yield
    finally:
        if not keep:
            remove(folder)


def collect(wheels: Path) -> None:
    """Download the missing wheels of the modules' libraries; uses no package index if none is missing."""
    pip = [sys.executable, "-m", "pip", "--python", PYTHON, "download", "--quiet", "--disable-pip-version-check"]
    wanted = ["--only-binary=:all:", f"--dest={wheels}", f"--find-links={wheels}", f"--requirement={REQUIREMENTS}"]
    wheels.mkdir(parents=True, exist_ok=True)
    if subprocess.run([*pip, *wanted, "--no-index"], capture_output=True, check=False).returncode:  # noqa: S603
        subprocess.run([*pip, *wanted], check=True)  # noqa: S603


def remove(folder: Path) -> None:
    """Remove the deployments of the inventory in the folder, the inventory, and the folders of the hosts."""
    hosts = folder / "hosts.yml"
    if hosts.exists():
        green(play("playbooks/teardown.yml", inventory=hosts, teardown_remove_data=True, teardown_stop_docker=False))
        for path in folder.glob("fleet*"):
            shutil.rmtree(path)
        (folder / "group_vars").unlink()
        hosts.unlink()


def compare(folder: Path, count: int) -> tuple[float, float]:
    """Seconds of a deploy without a change of one host, and of all hosts."""
    seconds = []
    for name, limit in (("fleet1", "--limit fleet1"), (f"all {count}", "")):
        run, took = timed("deploy.yml", limit, folder / "hosts.yml")
        if green(run).changed:
            raise RuntimeError(f"{name}: a deploy without a change reported changes")
        seconds.append(took)
    print(f"one host {seconds[0]:.1f} s, all {count} {seconds[1]:.1f} s", flush=True)
    return seconds[0], seconds[1]


def figures(count: int, pairs: Sequence[tuple[float, float]]) -> list[Row]:
    """Median seconds of one host and of all hosts, and the ratios of the rounds."""
    one, every = zip(*pairs, strict=True)
    ratios = [many / alone for alone, many in pairs]
    return [
        Row(f"deploy.yml without a change, one host, median of {len(pairs)}", median(one), "s"),
        Row(f"deploy.yml without a change, {count} hosts, median of {len(pairs)}", median(every), "s"),
        Row("  ratio of all to one, median of the rounds", median(ratios), "x", GOAL if count >= GOAL_HOSTS else None),
        Row("  minimum and maximum", min(ratios), "x"),
        Row("", max(ratios), "x"),
    ]
