"""Which hosts the playbooks work on, and that they refuse to work on none, from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT

PLAYBOOKS = [*sorted((ROOT / "playbooks").glob("*.yml")), ROOT / "deploy.yml"]
ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
INVENTORY = """
gpu:
  hosts:
    g1: {vram_plan_gpus: [{name: H100, count: 1}]}
    g2: {vram_plan_gpus: [{name: H100, count: 1}]}
web:
  hosts:
    w1:
"""


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in the checkout."""
    command = [ANSIBLE_PLAYBOOK, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.yml"
    path.write_text(INVENTORY, encoding="utf-8")
    return path


def listed(result: subprocess.CompletedProcess[str]) -> set[str]:
    """Hosts in the recap of a run."""
    recap = result.stdout.partition("PLAY RECAP")[2].splitlines()[1:]
    return {line.split()[0] for line in recap if line.strip()}


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_play_asks_the_lookup_for_its_hosts(path: Path) -> None:
    for play in yaml.safe_load(path.read_text(encoding="utf-8")):
        assert "hosts" in play or "ansible.builtin.import_playbook" in play
        assert "lookup('inference.vllm.hosts'" in play.get("hosts", "lookup('inference.vllm.hosts'")


@pytest.mark.parametrize("playbook", ["deploy.yml", "playbooks/status.yml", "playbooks/bundle.yml"])
def test_no_host_is_a_failure_that_names_the_groups(inventory: Path, playbook: str) -> None:
    result = run(playbook, "-i", inventory)
    assert result.returncode != 0
    assert "[no_hosts] The inventory has no host in group vllm, but in gpu, web." in result.stderr
    assert "TASK" not in result.stdout


def test_no_inventory_is_a_failure(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yml"
    empty.write_text("all: {}\n", encoding="utf-8")
    result = run("playbooks/plan.yml", "-i", empty)
    assert result.returncode != 0
    assert "[no_hosts] The inventory has no host in group vllm. Fix: Name the inventory with -i." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "hosts"), [((), {"g1", "g2"}), (("--limit", "g2"), {"g2"}), (("--limit", "g2,w1"), {"g2"})]
)
def test_another_group_by_one_variable(inventory: Path, arguments: tuple[str, ...], hosts: set[str]) -> None:
    result = run("playbooks/plan.yml", "-i", inventory, "-e", "vllm_group=gpu", *arguments)
    assert result.returncode == 0, result.stderr
    assert listed(result) == hosts


def test_a_group_may_be_a_child_of_ours(inventory: Path) -> None:
    inventory.write_text(f"{INVENTORY}\nvllm:\n  children:\n    gpu:\n", encoding="utf-8")
    result = run("playbooks/plan.yml", "-i", inventory)
    assert result.returncode == 0, result.stderr
    assert listed(result) == {"g1", "g2"}


def test_a_limit_that_leaves_no_host_is_a_failure(inventory: Path) -> None:
    result = run("playbooks/plan.yml", "-i", inventory, "-e", "vllm_group=gpu", "--limit", "w1")
    assert result.returncode != 0
    assert "[no_hosts] --limit excludes all hosts of group gpu: g1, g2." in result.stderr


def test_the_first_host_is_the_first_that_the_limit_leaves(inventory: Path) -> None:
    shown = run("playbooks/bundle.yml", "-i", inventory, "-e", "vllm_group=gpu", "--limit", "g2", "--list-hosts")
    assert shown.returncode == 0, shown.stderr
    assert "hosts (1):\n      g2\n" in shown.stdout
    assert (
        "hosts (1):\n      g1\n"
        in run("playbooks/bundle.yml", "-i", inventory, "-e", "vllm_group=gpu", "--list-hosts").stdout
    )


def test_the_syntax_can_be_checked_without_hosts() -> None:
    result = run("--syntax-check", "-i", "elsewhere,", *PLAYBOOKS)
    assert result.returncode == 0, result.stderr


def test_an_address_needs_no_inventory() -> None:
    shown = run("playbooks/verify.yml", "-e", "verify_url=http://127.0.0.1:9/v1", "-i", "elsewhere,", "--list-hosts")
    assert "hosts (1):\n      localhost\n" in shown.stdout


def test_missing_collections_are_a_failure_before_anything_happens(inventory: Path) -> None:
    """Without those that the package `ansible` brings, as where only ansible-core is installed."""
    result = run(
        "deploy.yml",
        *("-i", inventory, "-e", "vllm_group=gpu"),
        ANSIBLE_COLLECTIONS_SCAN_SYS_PATH="false",
        ANSIBLE_COLLECTIONS_PATH=str(ROOT / "collections"),
    )
    assert result.returncode != 0
    assert "[collections_missing]" in result.stderr
    assert "community.docker >=4.0.0 (not installed)" in result.stderr
    assert f"ansible-galaxy collection install --upgrade -r {ROOT}/requirements.yml" in result.stderr
    assert "TASK" not in result.stdout


def test_collections_of_the_user_are_not_hidden() -> None:
    """Where ansible-galaxy installs by default is still searched."""
    shown = subprocess.run(
        [ANSIBLE_PLAYBOOK.with_name("ansible-config"), "dump", "--only-changed", "--format", "json"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
        capture_output=True,
        text=True,
        check=True,
    )
    (paths,) = (entry["value"] for entry in yaml.safe_load(shown.stdout) if entry.get("name") == "COLLECTIONS_PATHS")
    assert paths == [
        str(ROOT / "collections"),
        str(Path.home() / ".ansible/collections"),
        "/usr/share/ansible/collections",
    ]
