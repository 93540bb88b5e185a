"""`make bench-roles`: compare a role that has nothing to do with the same number of tasks that do nothing.

Each role's molecule scenario creates its hosts once. Then the role and a play of the same shape (the same numbers of
`ping` tasks and of skipped tasks) run alternately, and the medians are compared. The goal is a ratio of 1.5.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ansible_runner
import yaml

ROOT = Path(__file__).parents[1]
SCRATCH = ROOT / ".cache" / "bench-roles"
ROLES = ("docker_engine", "nvidia_driver", "nvidia_container_toolkit")
GOAL = 1.5


@dataclass(frozen=True)
class Shape:
    """Number of tasks of a run on one host: executed (including fact gathering), skipped, and changed."""

    ran: int
    skipped: int
    changed: int


@dataclass(frozen=True)
class Row:
    """Median seconds of a role that has nothing to do, and of a play that does nothing."""

    role: str
    shape: Shape
    role_s: float
    nothing_s: float

    @property
    def ratio(self) -> float:
        """Duration of the role relative to the play."""
        return self.role_s / self.nothing_s


def main() -> int:
    """Print the table. Returns 1 if a role misses the goal or changes something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roles", nargs="*", default=ROLES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = [compare(role, options.rounds) for role in options.roles]
    print(table(rows))
    return int(any(row.ratio > GOAL or row.shape.changed for row in rows))


def compare(role: str, rounds: int) -> Row:
    """Create the hosts of a role, and time the role and the play that does nothing."""
    folder = SCRATCH / role
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runner").mkdir(parents=True)
    molecule(role, folder, "converge")
    try:
        work = write(folder / "role.yml", [{"role": role}], [])
        shape, _ = timed(folder, work)
        nothing = write(folder / "nothing.yml", [], tasks(shape))
        pairs = [(timed(folder, work)[1], timed(folder, nothing)[1]) for _ in range(rounds)]
    finally:
        molecule(role, folder, "destroy")
    roles_s, nothing_s = zip(*pairs, strict=True)
    return Row(role, shape, median(roles_s), median(nothing_s))


def tasks(shape: Shape) -> list[dict[str, Any]]:
    """The same number of tasks, none of which does anything. The play gathers facts itself."""
    ping: dict[str, Any] = {"ansible.builtin.ping": {}}
    return [ping] * (shape.ran - 1) + [ping | {"when": False}] * shape.skipped


def write(path: Path, roles: list[dict[str, str]], what: list[dict[str, Any]]) -> Path:
    """Write a playbook with these roles and tasks for all hosts."""
    play = {"name": "Bench", "hosts": "all", "become": True, "roles": roles, "tasks": what}
    path.write_text(yaml.safe_dump([play], sort_keys=False), encoding="utf-8")
    return path


def timed(folder: Path, playbook: Path) -> tuple[Shape, float]:
    """Run a playbook on the scenario's hosts. Returns the shape of the host with the most tasks, and the seconds."""
    begin = time.monotonic()
    run = ansible_runner.run(
        private_data_dir=str(folder / "runner"),
        project_dir=str(ROOT),
        playbook=str(playbook),
        inventory=str(folder / "inventory"),
        envvars={
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            # Pipelining like with ssh (ansible.cfg).
            "ANSIBLE_PIPELINING": "true",
        },
        quiet=True,
    )
    seconds = time.monotonic() - begin
    if run.rc:
        raise RuntimeError(f"{playbook} failed: {run.stdout.read()[-2000:]}")
    most = {name: max((run.stats.get(name) or {}).values(), default=0) for name in ("ok", "skipped", "changed")}
    return Shape(most["ok"], most["skipped"], most["changed"]), seconds


def molecule(role: str, folder: Path, step: str) -> None:
    """Run one step of the role's scenario, with its state in a separate folder."""
    print(f"{role}: {step} ...", file=sys.stderr, flush=True)
    env = os.environ | {"MOLECULE_EPHEMERAL_DIRECTORY": str(folder), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    command = ["molecule", step, "--scenario-name", role]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")


def table(rows: list[Row]) -> str:
    """Rows as an aligned text table."""
    lines = [
        f"{'role':<28}{'tasks':>6}{'skipped':>9}{'changed':>9}{'role, s':>9}{'nothing, s':>12}{'ratio':>7}{'goal':>6}"
    ]
    for row in rows:
        shape = row.shape
        lines.append(
            f"{row.role:<28}{shape.ran:>6}{shape.skipped:>9}{shape.changed:>9}"
            f"{row.role_s:>9.1f}{row.nothing_s:>12.1f}{row.ratio:>7.2f}{GOAL:>6.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
