"""What the inventory check accepts and refuses."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils import inventory
from support.paths import ROOT

OPTIONS = {"vllm_port", "vllm_model", "vllm_service_pids_limit", "smoke_test_level"}
ROLES = ("vllm", "vllm_service", "smoke_test")


def codes(names: set[str]) -> list[str]:
    return [str(r) for r in inventory.unknown_variables(names, OPTIONS, ROLES)]


def test_known_and_foreign_variables_are_left_alone() -> None:
    assert codes({"vllm_port", "ansible_host", "site_name", "proxy"}) == []


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("vllm_modle", "vllm_model"),
        ("vllm_servce_pids_limit", "vllm_service_pids_limit"),
        ("vlm_port", "vllm_port"),
        ("smoke_tests_level", "smoke_test_level"),
    ],
)
def test_a_slip_is_named_with_what_was_meant(slip: str, meant: str) -> None:
    (text,) = codes({slip})
    assert text.startswith(f"[unknown_variable] {slip} is set")
    assert meant in text


def test_an_invented_variable_of_a_role_is_refused() -> None:
    assert len(codes({"vllm_something_else_entirely"})) == 1


@pytest.mark.parametrize(
    ("name", "value", "option", "code"),
    [
        ("vllm_port", 0, {"type": "int"}, "out_of_range"),
        ("vllm_port", 65536, {"type": "int"}, "out_of_range"),
        ("vllm_port", "eighty", {"type": "int"}, "wrong_type"),
        ("vllm_port", True, {"type": "int"}, "wrong_type"),
        ("preflight_min_free_gib", -1, {"type": "float"}, "out_of_range"),
        ("vram_plan_context", "-5", {"type": "str"}, "out_of_range"),
        ("preflight_min_free_gib", "much", {"type": "float"}, "wrong_type"),
        ("x", "gpu", {"type": "str", "choices": ["nvidia", "cpu"]}, "not_a_choice"),
        ("x", "maybe", {"type": "bool"}, "wrong_type"),
        ("x", "opt/vllm", {"type": "path"}, "relative_path"),
        ("x", ["a"], {"type": "dict"}, "wrong_type"),
        ("x", "a", {"type": "list"}, "wrong_type"),
        ("x", None, {"type": "str"}, "wrong_type"),
    ],
)
def test_refused_values(name: str, value: object, option: dict[str, object], code: str) -> None:
    refusal = inventory.value_refusal(name, value, option)
    assert refusal is not None
    assert refusal.code == code
    assert name in refusal.message
    assert str(value) in refusal.message


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("vllm_port", "8000", {"type": "int"}),
        ("vllm_port", 65535, {"type": "int"}),
        ("vram_plan_context", "auto", {"type": "str"}),
        ("x", "yes", {"type": "bool"}),
        ("x", False, {"type": "bool"}),
        ("x", "/opt/vllm", {"type": "path"}),
        ("x", "", {"type": "path"}),
        ("x", "cpu", {"type": "str", "choices": ["nvidia", "cpu"]}),
        ("x", {}, {"type": "dict"}),
    ],
)
def test_accepted_values(name: str, value: object, option: dict[str, object]) -> None:
    assert inventory.value_refusal(name, value, option) is None


@given(st.integers())
def test_ports_are_accepted_exactly_in_their_range(port: int) -> None:
    accepted = inventory.value_refusal("vllm_port", port, {"type": "int"}) is None
    assert accepted == (1 <= port <= 65535)


@pytest.mark.parametrize(
    ("address", "allow", "code"),
    [
        ("127.0.0.1", False, None),
        ("::1", False, None),
        ("0.0.0.0", False, "public_address"),
        ("0.0.0.0", True, None),
        ("localhost", False, "bad_address"),
    ],
)
def test_address(address: str, allow: bool, code: str | None) -> None:
    refusal = inventory.address_refusal(address, allow_public=allow)
    assert (refusal.code if refusal else None) == code


def test_missing_file_is_named_with_its_variable() -> None:
    (refusal,) = inventory.missing_files({"key_file": "/nope", "unset": "", "there": "/yes"}, lambda p: p == "/yes")
    assert "key_file" in refusal.message
    assert "/nope" in refusal.message


def variables() -> set[str]:
    known: set[str] = set()
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        known |= set(yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"])
    return known


def test_every_range_belongs_to_a_variable_of_a_role() -> None:
    assert set(inventory.RANGES) <= variables()


@pytest.mark.parametrize(("old", "new"), inventory.RENAMED.items())
def test_a_renamed_variable_is_refused_with_its_new_name(old: str, new: str) -> None:
    assert (old in variables(), new in variables()) == (False, True)
    (text,) = codes({old})
    assert text == f"[renamed_variable] {old} was renamed to {new}. Fix: Set {new} instead."
