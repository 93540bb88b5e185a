"""Each role's argument spec lists exactly its defaults, with the same values, and each variable is described."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from support.paths import ROLES

NAMES = sorted(path.name for path in ROLES.iterdir() if (path / "defaults" / "main.yml").exists())


def load(role: str, part: str) -> dict[str, Any]:
    return yaml.safe_load((ROLES / role / part).read_text()) or {}


@pytest.mark.parametrize("role", NAMES)
def test_spec_equals_defaults(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]
    options = specs["main"]["options"]
    assert set(options) == set(defaults)
    differing = {n: (options[n].get("default"), v) for n, v in defaults.items() if options[n].get("default") != v}
    assert not differing


@pytest.mark.parametrize("role", NAMES)
def test_other_entry_points_repeat_no_value_that_differs(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
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
    if not (ROLES / role / "tasks").exists():
        pytest.skip("a role without tasks has nothing to run")
    root = ROLES.parent
    assert (root / "molecule" / role / "molecule.yml").exists()
    assert (root / "tests" / "roles" / f"test_{role}.py").exists()
    assert (ROLES / role / "README.md").exists()


def test_one_variable_says_where_the_collection_lies() -> None:
    files = [path for kind in ("tasks", "vars", "defaults", "handlers") for path in ROLES.glob(f"*/{kind}/**/*.yml")]
    hops = {path.relative_to(ROLES).as_posix() for path in files if re.search(r"role_path\s*\|", path.read_text())}
    assert hops == {"vllm/vars/main.yml"}
    users = {path.relative_to(ROLES).parts[0] for path in files if "__vllm_collection" in path.read_text()}
    depend = {role for role in users if {"role": "inference.vllm.vllm"} in load(role, "meta/main.yml")["dependencies"]}
    assert users - depend == {"vllm"}


def bool_options() -> set[str]:
    entries = [entry for role in NAMES for entry in load(role, "meta/argument_specs.yml")["argument_specs"].values()]
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
