"""Which controllers and inventories are refused before a play begins."""

from __future__ import annotations

import re

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.collection import ROOT, Collection, read
from ansible_collections.inference.vllm.plugins.module_utils.controller import no_hosts, refusals

THIS = Collection("inference.vllm", "1.2.3", {"a.b": ">=3.0.0", "c.d": ">=10.0.0"}, ">=2.19.0", installed=True)
GROUPS = {"all": ["g1", "g2", "w1"], "ungrouped": [], "gpu": ["g1", "g2"], "web": ["w1"]}


@pytest.mark.parametrize("version", ["2.19.0", "2.21.5", "2.22.0.dev0"])
def test_a_supported_controller_is_accepted(version: str) -> None:
    assert refusals(THIS, version, {"a.b": "3.0.0", "c.d": "13.5.0"}.get) == []


@pytest.mark.parametrize("version", ["2.16.19", "2.18.19", "2.19.0b7"])
def test_an_older_ansible_is_refused(version: str) -> None:
    (refusal,) = refusals(THIS, version, {"a.b": "3.0.0", "c.d": "13.5.0"}.get)
    assert refusal.code == "ansible_unsupported"
    assert f"ansible-core is {version}; inference.vllm 1.2.3 needs >=2.19.0" in refusal.message
    assert "pip install 'ansible-core>=2.19.0'" in refusal.fix


def test_missing_and_old_collections_are_refused_together() -> None:
    (refusal,) = refusals(THIS, "2.21.5", {"c.d": "9.5.0"}.get)
    assert refusal.code == "collections_missing"
    assert "a.b >=3.0.0 (not installed), c.d >=10.0.0 (9.5.0)" in refusal.message
    assert refusal.fix == f"ansible-galaxy collection install --upgrade -r {ROOT}/requirements.yml"


def test_a_collection_that_does_not_say_its_version_is_accepted() -> None:
    assert refusals(THIS, "2.21.5", {"a.b": "", "c.d": "10.0.0"}.get) == []


def test_hosts_that_are_left_are_enough() -> None:
    assert no_hosts("gpu", GROUPS, ["g2"]) is None


def test_a_group_without_hosts_is_refused_with_the_groups_that_have_some() -> None:
    refusal = no_hosts("vllm", GROUPS, GROUPS["all"])
    assert refusal is not None
    assert refusal.message == "The inventory has no host in group vllm, but in gpu, web."
    assert "-e vllm_group=<group>" in refusal.fix


def test_an_empty_inventory_is_refused() -> None:
    refusal = no_hosts("vllm", {"all": [], "ungrouped": []}, [])
    assert refusal is not None
    assert refusal.message == "The inventory has no host in group vllm."


def test_a_limit_that_leaves_no_host_is_refused_with_the_hosts_of_the_group() -> None:
    refusal = no_hosts("gpu", GROUPS, ["w1"])
    assert refusal is not None
    assert "--limit excludes all hosts of group gpu: g1, g2" in refusal.message


@pytest.mark.parametrize(
    ("file", "python", "ansible"),
    [
        ("README.md", r"Python (3\.\d+) or newer", r"ansible-core (\d+\.\d+) or newer"),
        ("CONTRIBUTING.md", r"Python (3\.\d+) or newer", None),
        ("docs/collection.md", r"\| Python \| (3\.\d+) or newer", r"\| ansible-core \| (\d+\.\d+) or newer"),
        ("docs/reference/support.md", r"Python (3\.\d+) or newer", r"ansible-core (\d+\.\d+)\.0 or newer"),
        ("bin/bootstrap", r"Python (3\.\d+) or newer", None),
    ],
)
def test_all_pages_name_the_same_versions(file: str, python: str, ansible: str | None) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    ((major, minor),) = set(re.findall(r"sys.version_info < \((\d+), (\d+)\)", (ROOT / "bin/bootstrap").read_text()))
    assert set(re.findall(python, text)) == {f"{major}.{minor}"}
    if ansible:
        assert [f">={version}.0" for version in set(re.findall(ansible, text))] == [read().requires_ansible]
