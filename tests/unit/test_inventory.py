"""What the inventory check accepts and refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils import inventory
from support.paths import ROOT

SPECS = {
    path.parents[1].name: yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")
}
OPTIONS = {name for spec in SPECS.values() for entry in spec.values() for name in entry.get("options") or {}}


def judged(name: str) -> tuple[list[str], list[str]]:
    refusals, warnings = inventory.unknown_variables({name}, OPTIONS, SPECS)
    return [str(refusal) for refusal in refusals], warnings


@pytest.mark.parametrize(
    "name",
    [
        *("vllm_port", "ansible_host", "site_name", "proxy"),
        # A name of one's own that holds the name of a variable.
        *("site_vllm_port", "vault_gateway_keys", "my_gateway_tls_names", "vault_vllm_service_api_key_file"),
    ],
)
def test_known_and_foreign_variables_are_left_alone(name: str) -> None:
    assert judged(name) == ([], [])


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        # One letter missing, added, another one, or swapped with its neighbour, in the prefix too.
        ("vllm_modle", "vllm_model"),
        ("vllm_prot", "vllm_port"),
        ("vllm_homee", "vllm_home"),
        ("vllm_bind_adress", "vllm_bind_address"),
        ("vllm_servce_pids_limit", "vllm_service_pids_limit"),
        ("vlm_port", "vllm_port"),
        ("gatway_enabled", "gateway_enabled"),
        ("smoke_tests_level", "smoke_test_level"),
        ("bundle_foldr", "bundle_folder"),
        ("teardown_remove_date", "teardown_remove_data"),
        # An underscore, a capital letter, a plural.
        ("vllm_bindaddress", "vllm_bind_address"),
        ("vllm_Port", "vllm_port"),
        ("gateway_key", "gateway_keys"),
        ("gateway_tls_name", "gateway_tls_names"),
        ("watchdog_enable", "watchdog_enabled"),
        ("benchmark_workload", "benchmark_workloads"),
        ("model_weights_max_worker", "model_weights_max_workers"),
        # A letter off in several words.
        ("watchdg_max_restart", "watchdog_max_restarts"),
        # The words in another order, one missing, one too many.
        ("vllm_service_timeout_stop", "vllm_service_stop_timeout"),
        ("nvidia_driver_timeout_reboot", "nvidia_driver_reboot_timeout"),
        ("gateway_requests_minute", "gateway_requests_per_minute"),
        ("docker_engine_repository_key", "docker_engine_repository_key_url"),
        ("vllm_pids_limit", "vllm_service_pids_limit"),
        ("vllm_service_health_check_interval", "vllm_service_health_interval"),
        # The prefix of all roles instead of the role's own.
        ("vllm_tensor_parallel_size", "vram_plan_tensor_parallel_size"),
        ("vllm_max_workers", "model_weights_max_workers"),
    ],
)
def test_a_slip_is_refused_with_what_was_meant(slip: str, meant: str) -> None:
    refusals, warnings = judged(slip)
    (text,) = refusals
    assert warnings == []
    assert text.startswith(f"[unknown_variable] {slip} is set")
    assert f"Did you mean {meant}" in text


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("max_model_len", "vram_plan_max_model_len"),
        ("vllm_max_model_len", "vram_plan_max_model_len"),
        ("vllm_service_max_model_len", "vram_plan_max_model_len"),
        ("tensor_parallel_size", "vram_plan_tensor_parallel_size"),
        ("enforce_eager", "vram_plan_enforce_eager"),
        ("limit_mm_per_prompt", "vram_plan_images_per_prompt"),
        ("vllm_mm_processor_kwargs", "vram_plan_max_pixels"),
    ],
)
def test_a_flag_of_vllm_leads_to_the_variable_that_sets_it(flag: str, meant: str) -> None:
    (text,), warnings = judged(flag)
    assert warnings == []
    assert text == f"[unknown_variable] {flag} is set, but nothing reads it. Fix: Did you mean {meant}?"


@pytest.mark.parametrize("name", ["port", "model", "seed", "max_pixels", "site_max_model_len"])
def test_names_that_are_no_flags_of_the_plan_are_left_alone(name: str) -> None:
    assert judged(name) == ([], [])


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("gateway_ip", "gateway"), ("watchdog_timeout", "watchdog"), ("benchmark_owner", "benchmark")),
        *(("bundle_dir", "bundle"), ("gateway_mac", "gateway"), ("gateway_interface", "gateway")),
        *(("gateway_hostname", "gateway"), ("gateway_zone", "gateway"), ("gateway_ipv6_prefix", "gateway")),
        *(("watchdog_device", "watchdog"), ("watchdog_kernel_module", "watchdog"), ("benchmark_team", "benchmark")),
        *(("bundle_version", "bundle"), ("bundle_url", "bundle"), ("teardown_date", "teardown")),
        *(("preflight_contact", "preflight"), ("stability_channel", "stability"), ("vllm_team", "vllm")),
        *(("vllm_cost_center", "vllm"), ("vllm_service_owner", "vllm_service"), ("vllm_something_else", "vllm")),
        # Short names tell too little: this is neither vllm_uid nor vllm_gid for sure.
        ("vllm_id", "vllm"),
        # Alike in most letters, and another word.
        *(("gateway_read_timeout", "gateway"), ("gateway_tls_version", "gateway")),
        # Made from a variable of the role.
        *(("gateway_keys_team_a", "gateway"), ("gateway_tls_names_extra", "gateway")),
    ],
)
def test_a_variable_that_only_begins_like_a_roles_is_a_warning(name: str, role: str) -> None:
    refusals, (warning,) = judged(name)
    assert refusals == []
    assert warning.startswith(f"{name} has the prefix of role {role}, but no role reads it.")


def test_a_warning_names_what_is_very_near() -> None:
    assert "gateway_reload_timeout" in judged("gateway_read_timeout")[1][0]
    assert "closest" not in judged("bundle_url")[1][0]


@given(st.sampled_from(sorted(OPTIONS)), st.data())
def test_two_letters_in_the_wrong_order_are_always_a_slip(option: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(option) - 2))
    slip = option[:place] + option[place + 1] + option[place] + option[place + 2 :]
    if slip not in OPTIONS:
        assert judged(slip)[0]


@pytest.mark.parametrize(
    ("name", "value", "option", "code"),
    [
        ("vllm_port", 0, {"type": "int"}, "out_of_range"),
        ("vllm_port", 65536, {"type": "int"}, "out_of_range"),
        ("vllm_port", "eighty", {"type": "int"}, "wrong_type"),
        ("vllm_port", True, {"type": "int"}, "wrong_type"),
        ("preflight_min_free_gib", -1, {"type": "float"}, "out_of_range"),
        ("vram_plan_max_model_len", "-5", {"type": "str"}, "out_of_range"),
        ("vram_plan_max_model_len", "many", {"type": "str"}, "wrong_type"),
        ("vram_plan_gpu_memory_utilization", 1.5, {"type": "str"}, "out_of_range"),
        ("vram_plan_gpu_memory_utilization", "0", {"type": "str"}, "out_of_range"),
        ("preflight_min_free_gib", "much", {"type": "float"}, "wrong_type"),
        ("x", "gpu", {"type": "str", "choices": ["nvidia", "cpu"]}, "not_a_choice"),
        ("x", "maybe", {"type": "bool"}, "wrong_type"),
        ("x", "opt/vllm", {"type": "path"}, "relative_path"),
        ("x", ["a"], {"type": "dict"}, "wrong_type"),
        ("x", "a", {"type": "list"}, "wrong_type"),
        ("x", None, {"type": "str"}, "wrong_type"),
        ("vllm_service_stop_timeout", 0, {"type": "int"}, "out_of_range"),
        ("vllm_service_pids_limit", 63, {"type": "int"}, "out_of_range"),
        ("vllm_service_log_max_files", 0, {"type": "int"}, "out_of_range"),
        ("vllm_service_memory_limit", "32GiB", {"type": "str"}, "bad_size"),
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
        ("vram_plan_max_model_len", "auto", {"type": "str"}),
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


KEYS = {
    "type": "list",
    "elements": "dict",
    "options": {"name": {"type": "str", "required": True}, "key": {"type": "str", "no_log": True}},
}


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ([{"nme": "a", "key": "s3cret"}], "bad_element", "missing required arguments: name"),
        ([{"name": "a", "kei": "s3cret"}], "bad_element", "Supported parameters include: key, name"),
        (["s3cret"], "bad_element", "dict"),
        ({"name": "a", "key": "s3cret"}, "wrong_type", "x is a dict, but must be a list"),
    ],
)
def test_elements_are_refused_without_what_they_hold(value: object, code: str, message: str) -> None:
    refusal = inventory.value_refusal("x", value, KEYS)
    assert refusal is not None
    assert refusal.code == code
    assert message in refusal.message
    assert "s3cret" not in str(refusal)


def test_right_elements_are_accepted() -> None:
    assert inventory.value_refusal("x", [{"name": "a", "key": "s3cret"}], KEYS) is None


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


def test_the_lookup_refuses_what_the_service_would_refuse_and_warns_of_what_may_be_foreign(tmp_path: Path) -> None:
    given = {
        "vllm_service_extra_flags": {"trust-remote-code": True, "max-model-len": 32768, "seed": "abc"},
        "vllm_service_environment": {"LD_PRELOAD": "x"},
        "vllm_service_ulimits": {"memlock": "many"},
        "vllm_service_memory_limit": "32GiB",
        "vllm_service_stop_timeout": 0,
        "vllm_prot": 8000,
        "gateway_ip": "192.0.2.1",
        "vllm_model": "tiny-qwen3-vl",
        "vllm_bind_address": "127.0.0.1",
        "preflight_allow_public_address": False,
    }
    (tmp_path / "given.yml").write_text(yaml.safe_dump(given), encoding="utf-8")
    message = "{{ lookup('inference.vllm.inventory', '" + str(ROOT / "roles") + "', wantlist=true) | join('|') }}"
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-m", "debug", "-a", f"msg={message}"]
    command += ["-e", f"@{tmp_path}/given.yml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert set(re.findall(r"\[(\w+)\]", result.stdout)) == {
        *("flag_refused", "flag_of_plan", "flag_type", "refused_environment", "bad_number", "bad_size"),
        *("out_of_range", "unknown_variable"),
    }
    assert "gateway_ip has the prefix of role gateway" in result.stderr
    assert "gateway_ip" not in result.stdout


def test_every_limit_belongs_to_a_variable_of_a_role() -> None:
    assert {*inventory.RANGES, *inventory.SIZES} <= OPTIONS


@pytest.mark.parametrize(("old", "new"), inventory.RENAMED.items())
def test_a_renamed_variable_is_refused_with_its_new_name(old: str, new: str) -> None:
    assert (old in OPTIONS, new in OPTIONS) == (False, True)
    assert judged(old) == ([f"[renamed_variable] {old} was renamed to {new}. Fix: Set {new} instead."], [])
