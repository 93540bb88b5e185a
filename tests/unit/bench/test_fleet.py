"""The hosts that `make bench-fleet` puts on one machine, and what it makes of their times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench import fleet
from hypothesis import given
from hypothesis import strategies as st

EMBEDDED = fleet.ROOT / "inventories" / "embedded" / "group_vars" / "vllm.yml"
COUNT = 3
#: A host's own variables that are the same for all.
SHARED = {"ansible_connection", "embedded_project_dir", "host_python_wheels"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All variables of the hosts, as Ansible itself reads them."""
    path = fleet.write(tmp_path_factory.mktemp("fleet"), COUNT, range(8))
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "--list", f"--inventory={path}"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(fleet.ROOT / "ansible.cfg")}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(shown.stdout)["_meta"]["hostvars"])


def test_hosts_have_what_the_demo_has(hosts: dict[str, dict[str, Any]]) -> None:
    demo = yaml.safe_load(EMBEDDED.read_text())
    assert list(hosts) == ["fleet1", "fleet2", "fleet3"]
    for found in hosts.values():
        assert found.keys() >= demo.keys()


def test_nothing_of_the_demo_is_written_to(hosts: dict[str, dict[str, Any]]) -> None:
    demo = yaml.safe_load(EMBEDDED.read_text())
    own = {name for name, value in demo.items() if "/.demo/" in str(value) or name.endswith(("_port", "_project"))}
    assert own >= {"vllm_home", "vllm_port", "vllm_project", "local_hub_home", "local_hub_port"}
    for name, found in hosts.items():
        assert [variable for variable in own if found[variable] == demo[variable]] == [], name
        assert "/.demo/" not in json.dumps(found)


def test_two_hosts_share_nothing_that_only_one_may_have(hosts: dict[str, dict[str, Any]]) -> None:
    own = fleet.inventory(Path("/fleet"), COUNT, range(8))["vllm"]["hosts"]["fleet1"].keys() - SHARED
    for one, other in combinations(hosts.values(), 2):
        assert [variable for variable in own if one[variable] == other[variable]] == []
    ports = [found[variable] for found in hosts.values() for variable in ("vllm_port", "local_hub_port")]
    assert len(set(ports)) == 2 * COUNT


@given(count=st.integers(1, 20), cores=st.sets(st.integers(0, 63), min_size=1).map(sorted))
def test_engines_meet_on_a_core_only_where_there_are_too_few(count: int, cores: list[int]) -> None:
    shares = [list(fleet.share(number, count, cores)) for number in range(count)]
    bound = [core for one in shares for core in one]
    assert set(bound) <= set(cores)
    assert {len(one) for one in shares} == {max(1, len(cores) // count)}
    if count <= len(cores):
        assert len(set(bound)) == len(bound)
    else:
        assert set(bound) == set(cores)


def test_a_link_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "group_vars").symlink_to(tmp_path / "gone")
    fleet.write(tmp_path, 1, [0])
    assert (tmp_path / "group_vars" / "vllm.yml").is_file()


def test_each_round_is_compared_separately() -> None:
    rows = fleet.figures(8, [(10, 15), (20, 50), (30, 48)])
    assert [row.value for row in rows] == [20, 48, 1.6, 1.5, 2.5]
    assert rows[2].goal == 2
    assert rows[2].met
    assert not fleet.figures(8, [(10, 21)])[2].met


def test_fewer_hosts_than_the_goal_speaks_of_do_not_reach_it() -> None:
    assert fleet.figures(2, [(10, 11)])[2].goal is None
