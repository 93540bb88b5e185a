"""Flags: merged by layer, refused one by one and in pairs, and written so that vLLM reads the same again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.service import flags as module
from ansible_collections.inference.vllm.plugins.module_utils.service.flags import (
    TABLE,
    Setting,
    canonical,
    engine_refusals,
    merge,
    plain,
    render,
    validate,
)

INSTRUCT = {
    "name": "qwen3-vl-32b-instruct-fp8",
    "variant": "instruct",
    "quantization": {"method": "fp8"},
    "min_engine_version": "0.32.0",
}
THINKING = {**INSTRUCT, "name": "qwen3-vl-32b-thinking-fp8", "variant": "thinking"}
GOOD = {
    "tool-call-parser": "hermes",
    "enable-auto-tool-choice": True,
    "max-model-len": 4096,
    "max-num-seqs": 4,
    "limit-mm-per-prompt": {"image": 4, "video": 0},
}


def codes(
    layer: str, given_flags: dict[str, Any], model: dict[str, Any] = INSTRUCT, version: str = "0.33.0"
) -> list[str]:
    merged, refusals = merge([(layer, given_flags)])
    return [refusal.code for refusal in refusals or validate(merged, version, model)]


def as_settings(values: dict[str, Any], layer: str = "plan") -> dict[str, Setting]:
    return {name: Setting(value, layer) for name, value in values.items()}


def test_good_flags_pass() -> None:
    assert validate(as_settings(GOOD), "0.33.0", INSTRUCT) == []


def test_later_layers_win_and_none_takes_back() -> None:
    merged, refusals = merge(
        [
            ("catalogue", {"interleave-mm-strings": True, "generation-config": "vllm"}),
            ("plan", {"enforce-eager": True}),
            ("user", {"enforce-eager": False, "generation-config": None}),
        ]
    )
    assert refusals == []
    assert plain(merged) == {"enforce-eager": False, "interleave-mm-strings": True}
    assert merged["enforce-eager"].layer == "user"


@pytest.mark.parametrize(
    ("spelt", "value", "name", "means"),
    [
        ("--max-num-seqs", 4, "max-num-seqs", 4),
        ("max_num_seqs", 4, "max-num-seqs", 4),
        ("tp", 2, "tensor-parallel-size", 2),
        ("no-enable-prefix-caching", True, "enable-prefix-caching", False),
        ("no_enable_prefix_caching", False, "enable-prefix-caching", True),
        ("no-such-flag", True, "no-such-flag", True),
    ],
)
def test_each_spelling_is_one_flag(spelt: str, value: Any, name: str, means: Any) -> None:
    assert canonical(spelt, value) == (name, means)


@pytest.mark.parametrize(
    ("layer", "given_flags", "code"),
    [
        ("user", {"gpu-memory-utilization": 0.8}, "flag_of_plan"),
        ("user", {"device_memory_utilization": 0.8}, "flag_of_plan"),
        ("user", {"max-model-len": 4096}, "flag_of_plan"),
        ("user", {"kv-cache-dtype": "fp8_e5m2"}, "flag_of_plan"),
        ("user", {"host": "0.0.0.0"}, "flag_of_service"),
        ("user", {"port": 9000}, "flag_of_service"),
        ("user", {"model": "other"}, "flag_of_service"),
        ("user", {"allowed-media-domains": ["example.org"]}, "flag_of_service"),
        ("user", {"reasoning-parser": "qwen3"}, "flag_of_catalogue"),
        ("plan", {"seed": 1}, "flag_of_user"),
        ("user", {"trust-remote-code": True}, "flag_refused"),
        ("catalogue", {"trust_remote_code": False}, "flag_refused"),
        ("user", {"api-key": ["x"]}, "flag_refused"),
        ("user", {"allowed-local-media-path": "/"}, "flag_refused"),
        ("user", {"enable-log-requests": True}, "flag_refused"),
        ("user", {"max-nun-seqs": 4}, "unknown_flag"),
        ("user", {"stream-interval": 1, "stream_interval": 2}, "flag_twice"),
        ("plan", {"kv-cache-dtype": "fp8_e5m2"}, "fp8_e5m2"),
        ("plan", {"kv-cache-dtype": "fp4"}, "flag_choice"),
        ("plan", {"gpu-memory-utilization": 7}, "flag_range"),
        ("plan", {"gpu-memory-utilization": 0}, "flag_range"),
        ("plan", {"gpu-memory-utilization": math.nan}, "flag_range"),
        ("plan", {"gpu-memory-utilization": "0.9"}, "flag_type"),
        ("plan", {"gpu-memory-utilization": True}, "flag_type"),
        ("plan", {"max-num-seqs": -1}, "flag_range"),
        ("plan", {"max-num-seqs": 2.5}, "flag_type"),
        ("plan", {"max-model-len": 0}, "flag_range"),
        ("plan", {"max-model-len": "32k"}, "flag_type"),
        ("plan", {"limit-mm-per-prompt": {"vidoe": 0}}, "flag_keys"),
        ("plan", {"limit-mm-per-prompt": {"image": -1}}, "flag_range"),
        ("plan", {"limit-mm-per-prompt": {"image": "4"}}, "flag_range"),
        ("catalogue", {"tool-call-parser": "hermse", "enable-auto-tool-choice": True}, "flag_choice"),
        ("catalogue", {"tool-call-parser": "hermes"}, "flag_pair"),
        ("catalogue", {"tool-call-parser": "hermes", "enable-auto-tool-choice": False}, "flag_pair"),
        ("catalogue", {"enable-auto-tool-choice": True}, "flag_pair"),
        ("catalogue", {"reasoning-parser": "qwen3"}, "reasoning_parser_on_instruct"),
        ("catalogue", {"quantization": "awq"}, "flag_pair"),
        ("catalogue", {"served-model-name": []}, "flag_empty"),
        ("catalogue", {"served-model-name": "one"}, "flag_type"),
        ("catalogue", {"served-model-name": [""]}, "flag_type"),
        ("plan", {"max-num-batched-tokens": 4, "max-num-seqs": 8}, "flag_pair"),
        ("plan", {"max-num-batched-tokens": 512, "max-model-len": 4096, "enable-chunked-prefill": False}, "flag_pair"),
        ("user", {"structured-outputs-config": {"disable_any_whitespace": True}}, "flag_pair"),
        ("user", {"structured-outputs-config": {"disable_additional_properties": True}}, "flag_pair"),
        ("user", {"structured-outputs-config": {"reasoning_parser": "qwen3"}}, "flag_refused"),
        ("user", {"structured-outputs-config": {"beckend": "xgrammar"}}, "flag_keys"),
        ("user", {"enforce-eager": "yes"}, "flag_type"),
        ("user", {"response-role": ""}, "flag_type"),
        ("user", {"seed": 2**32}, "flag_range"),
        ("plan", {"swap-space": 4}, "flag_removed"),
    ],
)
def test_refused(layer: str, given_flags: dict[str, Any], code: str) -> None:
    assert codes(layer, given_flags) == [code]


@pytest.mark.parametrize(
    ("layer", "given_flags"),
    [
        ("plan", {"max-model-len": "auto"}),
        ("plan", {"max-model-len": -1}),
        ("plan", {"gpu-memory-utilization": 1}),
        ("plan", {"max-num-batched-tokens": 8, "max-num-seqs": 8}),
        ("plan", {"max-num-batched-tokens": 512, "max-model-len": 4096}),
        ("plan", {"cudagraph-capture-sizes": [1, 2, 4]}),
        ("catalogue", {"quantization": "fp8"}),
        ("user", {"structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True}}),
        ("user", {"seed": 2**32 - 1}),
    ],
)
def test_allowed(layer: str, given_flags: dict[str, Any]) -> None:
    assert codes(layer, given_flags) == []


def test_reasoning_parser_is_right_for_a_thinking_variant() -> None:
    assert codes("catalogue", {"reasoning-parser": "qwen3"}, THINKING) == []


def test_a_flag_needs_its_release() -> None:
    flag = {"max-num-queued-reqs": 100}
    assert codes("user", flag, version="0.28.0") == ["flag_too_new"]
    assert codes("user", flag, version="v0.29.0") == []
    assert codes("plan", {"swap-space": 4}, version="0.17.1") == []


def test_a_refusal_names_variable_value_limit_and_fix() -> None:
    merged, _ = merge([("user", {"stream-interval": 0})])
    (refusal,) = validate(merged, "0.33.0", INSTRUCT)
    assert refusal.message == "vllm_service_extra_flags: stream-interval is 0; allowed: at least 1."
    assert refusal.fix == "Set it to at least 1."
    _, (unknown,) = merge([("user", {"max-nun-seqs": 4})])
    assert "max-num-seqs" in unknown.fix
    _, (foreign,) = merge([("user", {"max-model-len": 1})])
    assert "vram_plan" in foreign.fix


@pytest.mark.parametrize(
    ("version", "allow_old", "found"),
    [
        ("0.33.0", False, []),
        ("0.32.0+cpu", False, []),
        ("0.31.9", False, ["engine_unsafe", "engine_too_old_for_model"]),
        ("0.11.0", True, []),
        ("latest", False, ["engine_version_unknown"]),
    ],
)
def test_engines_below_the_floor_are_refused(version: str, allow_old: bool, found: list[str]) -> None:
    assert [r.code for r in engine_refusals(version, INSTRUCT, allow_old=allow_old)] == found


def test_a_model_may_need_a_newer_engine_than_the_floor() -> None:
    found = engine_refusals("0.32.0", {**INSTRUCT, "min_engine_version": "0.33.0"})
    assert [refusal.code for refusal in found] == ["engine_too_old_for_model"]


def vllm_reads(text: str) -> dict[str, Any]:
    """What vLLM's load_config_file makes of a file: arguments in a row, here as a mapping again."""
    read: dict[str, Any] = {}
    for key, value in yaml.safe_load(text).items():
        if isinstance(value, bool):
            if value or TABLE[key].negatable:
                read[key] = value
        elif not (isinstance(value, list) and not value):
            read[key] = value
    return read


values = {
    "bool": st.booleans(),
    "int": st.integers(1, 2**31),
    "float": st.floats(0.001, 1e9),
    "str": st.text(min_size=1),
    "list": st.lists(st.text(min_size=1), min_size=1),
    "map": st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()),
}
some_flags = st.lists(st.sampled_from(sorted(TABLE)), unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values[TABLE[name].kind] for name in names})
)


@given(some_flags)
def test_what_is_written_is_what_vllm_reads(given_flags: dict[str, Any]) -> None:
    expected = {n: v for n, v in given_flags.items() if v is not False or TABLE[n].negatable}
    assert vllm_reads(render(as_settings(given_flags)) or "{}") == expected


@given(some_flags, st.randoms())
def test_order_does_not_matter(given_flags: dict[str, Any], random: Any) -> None:
    shuffled = list(given_flags.items())
    random.shuffle(shuffled)
    assert render(as_settings(dict(shuffled))) == render(as_settings(given_flags))


def test_a_false_that_vllm_would_drop_is_not_written() -> None:
    assert module.render(as_settings({"grpc": False, "enforce-eager": False})) == "enforce-eager: false\n"
