"""The flag table against what vLLM's own parser says of each flag."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.service import flags
from ansible_collections.inference.vllm.plugins.module_utils.service.flags import ALIASES, LAYERS, TABLE, Flag
from support.paths import GOLDEN

TRUTH: dict[str, Any] = json.loads((GOLDEN / "vllm_serve_flags.json").read_text())
HISTORY = TRUTH["history"]
FLAGS = list(TABLE.values())
ROWS = [pytest.param(row, id=row.name) for row in FLAGS]

# vLLM's names for the types of the table; the names with an underscore in front take None or a JSON text as well.
SAME = {
    "bool": {"bool"},
    "int": {"int", "human_readable_int", "human_readable_int_or_auto", "_optional_type"},
    "float": {"float", "_optional_type"},
    "str": {"str", "_optional_type", "<lambda>"},
    "list": {"list", "str"},
    "map": {"_parse_type", "_optional_type", "parse_dataclass", "loads", "union_dict_and_str"},
}


def in_release(row: Flag) -> bool:
    return not row.removed


def test_each_name_stands_once() -> None:
    assert len(TABLE) == len(flags._ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_vllm_has_the_flag(row: Flag) -> None:
    assert (row.name in TRUTH["parser"]) is in_release(row)


@pytest.mark.parametrize("row", [row for row in FLAGS if in_release(row)])
def test_type_choices_and_negation_are_those_of_the_parser(row: Flag) -> None:
    truth = TRUTH["parser"][row.name]
    assert truth["kind"] in SAME[row.kind]
    if row.kind == "bool":
        assert truth["negatable"] is row.negatable
    if truth["choices"]:
        assert set(row.choices) <= set(truth["choices"])
        assert row.choices


@pytest.mark.parametrize("row", ROWS)
def test_versions_are_those_of_the_releases(row: Flag) -> None:
    since, removed = HISTORY[row.name]
    assert row.since.rpartition(".")[0] == (since or "")
    assert row.removed.rpartition(".")[0] == (removed or "")


@pytest.mark.parametrize("row", ROWS)
def test_row_is_complete(row: Flag) -> None:
    assert set(row.owners) <= set(LAYERS)
    assert row.owners or row.why, "a flag without owners needs a reason"
    assert row.kind in flags._KINDS
    assert row.low is None or row.high is None or row.low < row.high
    if row.kind in ("bool", "list", "map"):
        assert not row.choices


@pytest.mark.parametrize("row", [row for row in FLAGS if "plan" in row.owners])
def test_what_takes_memory_is_not_the_users(row: Flag) -> None:
    harmless = {
        "enforce-eager",
        "enable-chunked-prefill",
        "enable-prefix-caching",
        "structured-outputs-config",
        "disable-custom-all-reduce",
        "attention-backend",
        "mm-encoder-attn-backend",
        "compilation-config",
    }
    assert ("user" in row.owners) is (row.name in harmless)


@pytest.mark.parametrize("short", ALIASES)
def test_short_names_lead_to_rows(short: str) -> None:
    assert ALIASES[short] in TABLE
    assert short not in TABLE
