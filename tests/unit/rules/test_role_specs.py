"""Every role has an argument spec that equals its defaults, a scenario, a test module and a README."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from support.paths import ROLES, ROOT

NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir() and path.name != "__pycache__")
SCENARIOS = {path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")}


def load(role: str, part: str) -> dict[str, Any]:
    return yaml.safe_load((ROLES / role / part).read_text()) or {}


def load_defaults(role: str) -> dict[str, Any]:
    """The defaults of a role; an internal role may have none, because other roles pass all that it needs."""
    internal_without = role.startswith("_") and not (ROLES / role / "defaults").exists()
    return {} if internal_without else load(role, "defaults/main.yml")


@pytest.mark.parametrize("role", NAMES)
def test_name_is_one_that_ansible_galaxy_takes(role: str) -> None:
    assert re.fullmatch(r"_?[a-z][a-z0-9_]*", role)


@pytest.mark.parametrize("role", NAMES)
def test_spec_equals_defaults(role: str) -> None:
    defaults = load_defaults(role)
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]
    options = specs["main"]["options"]
    required = {name for name, option in options.items() if option.get("required")}
    assert not required or role.startswith("_"), "an inventory may leave out every variable of a public role"
    assert set(options) - required == set(defaults)
    differing = {n: (options[n].get("default"), v) for n, v in defaults.items() if options[n].get("default") != v}
    assert not differing


@pytest.mark.parametrize("role", NAMES)
def test_other_entry_points_repeat_no_value_that_differs(role: str) -> None:
    defaults = load_defaults(role)
    for entry, spec in load(role, "meta/argument_specs.yml")["argument_specs"].items():
        for name, option in (spec.get("options") or {}).items():
            if "default" in option:
                assert option["default"] == defaults[name], f"{entry}: {name}"


@pytest.mark.parametrize("role", NAMES)
def test_public_variables_carry_the_roles_name_and_a_description(role: str) -> None:
    for name, option in load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"].items():
        assert name.startswith(f"{role}_")
        assert option["description"]
        assert option["type"]


@pytest.mark.parametrize("role", NAMES)
def test_role_has_scenario_test_and_readme(role: str) -> None:
    assert role in SCENARIOS
    assert (ROOT / "tests" / "roles" / f"test_{role}.py").exists()
    assert (ROLES / role / "README.md").exists()


def test_every_scenario_has_a_test_module_and_the_makefile_runs_it_once() -> None:
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "roles").glob("test_*.py")}
    lists = re.findall(r"^(?:SLOW_)?SCENARIOS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(lists) == 2
    assert tested == SCENARIOS
    assert sorted(" ".join(lists).split()) == sorted(SCENARIOS)


def test_one_variable_has_the_folder_of_the_collection() -> None:
    files = [path for kind in ("tasks", "vars", "defaults", "handlers") for path in ROLES.glob(f"*/{kind}/**/*.yml")]
    hops = {path.relative_to(ROLES).as_posix() for path in files if re.search(r"role_path\s*\|", path.read_text())}
    assert hops == {"vllm/vars/main.yml"}
    users = {path.relative_to(ROLES).parts[0] for path in files if "__vllm_collection" in path.read_text()}
    depend = {role for role in users if {"role": "inference.vllm.vllm"} in load(role, "meta/main.yml")["dependencies"]}
    assert users - depend == {"vllm"}


def bool_options() -> set[str]:
    public = [role for role in NAMES if not role.startswith("_")]
    entries = [entry for role in public for entry in load(role, "meta/argument_specs.yml")["argument_specs"].values()]
    return {name for entry in entries for name, option in entry.get("options", {}).items() if option["type"] == "bool"}


@pytest.mark.parametrize("role", NAMES)
def test_a_truth_value_may_come_as_text_of_the_command_line(role: str) -> None:
    """``-e name=true`` is a text: a condition on it fails, and ``false`` would be taken for true."""
    used = re.compile(rf"\b({'|'.join(bool_options())})\b(?!\s*:)(?!(?: \| default\(false\))? \| bool)")
    conditional = re.compile(r"\bwhen:| if | or | and |\bnot ")
    for path in sorted((ROLES / role).glob("[thv]*/*.yml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            bare = used.search(line) if conditional.search(line) else None
            assert bare is None, f"{path.relative_to(ROLES)}:{number}: write {bare[1]} | bool"
