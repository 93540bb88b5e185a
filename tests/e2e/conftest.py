"""Fixtures that run the project's playbooks on this machine through ansible-runner, like `make demo`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner
import docker
import pytest

ROOT = Path(__file__).parents[2]
INVENTORY = ROOT / "inventories" / "embedded"
HOME = ROOT / ".demo" / "home"
PROJECT = "vllm-demo"
PORT = 18000


@dataclass
class Run:
    """Result of a playbook run."""

    rc: int
    stats: dict[str, dict[str, int]]
    failures: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Number of changed tasks on all hosts."""
        return sum((self.stats.get("changed") or {}).values())

    @property
    def text(self) -> str:
        """All failures as one text."""
        return "\n".join(self.failures)


def play(playbook: str, cmdline: str = "", inventory: Path = INVENTORY, **extravars: Any) -> Run:
    """Run a playbook, by default with the embedded inventory. Returns its failures and the time of each task."""
    private = Path(os.environ.get("RUNNER_DIR", ROOT / ".cache" / "runner"))
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir(parents=True)
    result = ansible_runner.run(
        private_data_dir=str(private),
        project_dir=str(ROOT),
        playbook=playbook,
        inventory=str(inventory),
        extravars=extravars,
        cmdline=cmdline or None,
        envvars={"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    run = Run(rc=result.rc, stats=result.stats or {})
    for event in result.events:
        data = event.get("event_data", {})
        if event["event"] in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            run.failures.append(str(data.get("res", {}).get("msg", data)))
        if "duration" in data:
            run.seconds[data["task"]] = run.seconds.get(data["task"], 0) + data["duration"]
    return run


@pytest.fixture(scope="session")
def playbook() -> Callable[..., Run]:
    """Run a playbook by name with extra variables."""
    return play


@pytest.fixture(scope="session")
def demo() -> Iterator[Run]:
    """Deploy the demo on a clean machine, and remove it at the end of the session."""
    play("playbooks/teardown.yml", teardown_remove_data=True, teardown_stop_docker=False)
    yield play("deploy.yml")
    if not os.environ.get("KEEP_DEMO"):
        play("playbooks/teardown.yml", teardown_remove_data=True, teardown_stop_docker=False)


@pytest.fixture(scope="session")
def engine(demo: Run) -> docker.DockerClient:
    """Client of the Docker engine on this machine, after the demo is deployed."""
    return docker.from_env()


@pytest.fixture
def container(engine: docker.DockerClient) -> Any:
    """Container of the demo."""
    (found,) = engine.containers.list(all=True, filters={"label": f"com.docker.compose.project={PROJECT}"})
    return found


@pytest.fixture
def verdict() -> Callable[[], dict[str, Any]]:
    """Function that reads the newest verdict.json."""

    def read() -> dict[str, Any]:
        newest = max((HOME / "reports").glob("*/verdict.json"), key=lambda p: p.stat().st_mtime)
        return dict(json.loads(newest.read_text()))

    return read
