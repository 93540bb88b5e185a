"""The plot of memory: every point is inside of it, and no file breaks the report."""

from __future__ import annotations

import os
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    MemoryLoad,
    Moment,
    Sampling,
    Term,
    VramResult,
)
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.report import memory as report_memory
from ansible_collections.inference.vllm.plugins.module_utils.report import view as report
from support.paths import GOLDEN, ROOT

TEMPLATE = (ROOT / "templates" / "report.html.j2").read_text(encoding="utf-8")
STYLE = (ROOT / "templates" / "report.css").read_text(encoding="utf-8")

CHECKS = (
    Check("vram_ready", True, message="GPU 0 holds 20.41 GiB before the load", value=20.41, limit=22.5, unit="GiB"),
    Check(
        "vram_under_load", False, message="memory_over_limit: GPU 0 held 23.61 GiB under the heaviest load",
        value=23.61, limit=23.5, unit="GiB", runbook="memory_over_limit",
    ),
    Check("load_answered", True, message="all answered", value=16, limit=16, unit="requests", seconds=41.2),
)  # fmt: skip
VERDICT = Verdict("r1", CHECKS, {"model": "qwen3-vl-32b", "base_url": "http://127.0.0.1:8000/v1"}, (), "s", "f")
VRAM = VramResult(
    *(getattr(VERDICT, each.name) for each in fields(VERDICT)),
    source="nvml",
    limit_gib=23.5,
    limit_is="the card",
    headroom_gib=-0.11,
    terms=(
        Term("resident", 20.5, 20.41, "GiB"),
        Term("step", 1.5, 3.2, "GiB"),
        Term("peak", 22.0, 23.61, "GiB"),
        Term("kv_cache_tokens", 32000, 31800, "tokens"),
        Term("headroom", 1.5, None, "GiB"),
    ),
    moments={
        "ready": Moment(0.1, 1.1, {}),
        "warm": Moment(20, 21, {}),
        "under_load": Moment(2, 40, {}),
        "after": Moment(40, 41, {}),
    },
    load=MemoryLoad(8, 2),
    sampling=Sampling(interval_seconds=0.2, readings=206, seconds=41.2, cpu_share=0.001),
    samples={
        "GPU 0": ((0, 20.41), (2.5, 20.5), (3, 22.9), (20, 22.9), (21, 23.61), (41.2, 23.0)),
        "GPU 1": ((0, 20.3), (2.5, 20.3), (3, 21.9), (20, 21.9), (21, 22.0), (41.2, 22.0)),
    },
)


def page(**files: str) -> str:
    found = {"verdict.json": VERDICT.to_json(), "vram.json": VRAM.to_json(), **files}
    return report.html(report.view(found, "r1", "gpu1", "/k", "/r"), TEMPLATE, STYLE)


@pytest.mark.usefixtures("short_runbooks")
def test_what_is_rendered() -> None:
    path = GOLDEN / "report_memory.html"
    text = page()
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_page_shows_the_lines_the_card_and_the_plan() -> None:
    text = page()
    assert text.count("<polyline") == 2
    for words in ("the card, 23.50 GiB", "planned under load, 22.00 GiB", "planned for the idle engine, 20.50 GiB"):
        assert words in text
    assert "<td>idle engine and images</td><td>22.00 GiB</td><td>23.61 GiB</td><td>+1.61 GiB</td>" in text
    assert "<td>tokens in the KV cache</td><td>32000 tokens</td><td>31800 tokens</td><td>-200 tokens</td>" in text
    assert "<td>head-room</td><td>1.50 GiB</td><td>-</td><td>-</td>" in text
    assert "docs/runbooks/memory_over_limit.md" in text
    assert "nvidia-smi --query-compute-apps" in text, "the runbook itself"


def test_the_table_in_the_terminal_has_units() -> None:
    seen = report.view({"verdict.json": VERDICT.to_json()}, "r1", "gpu1", "/k", "/r")
    assert "20.41 of 22.5 GiB" in report.text(seen)
    assert "16 of 16 requests" in report.text(seen)


def test_a_check_of_another_release_is_not_shown() -> None:
    assert "Memory, planned and measured" in page()
    assert "Memory, planned and measured" not in page(**{"vram.json": replace(VRAM, release="r0").to_json()})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"release": "r1"}', VRAM.to_json().replace("23.5", '"23.5"')])
def test_a_broken_file_takes_the_plot_and_not_the_report(text: str) -> None:
    broken = page(**{"vram.json": text})
    assert "<h1>Not proven" in broken
    assert "Memory, planned and measured" not in broken


def test_names_in_the_file_are_no_markup() -> None:
    evil = "<script>alert(1)</script>"
    data = replace(VRAM, samples={evil: ((0, 1), (1, 2))}, limit_is=evil)
    assert "<script" not in page(**{"vram.json": data.to_json()})


def test_without_readings_there_is_a_table_and_no_plot() -> None:
    text = page(**{"vram.json": replace(VRAM, samples={}, moments={}, source="none").to_json()})
    assert "Memory could not be read" in text
    assert "<polyline" not in text
    assert "idle engine and images" in text


def test_a_far_limit_is_told_in_words() -> None:
    seen = report_memory.view(replace(VRAM, limit_gib=640.0))
    assert "Limit: 640.00 GiB, the card." in seen["about"]
    assert not [rule for rule in seen["rules"] if rule["kind"] == "limit"]


@given(
    st.lists(st.floats(0.01, 200), min_size=1, max_size=50),
    st.floats(0.01, 500) | st.none(),
    st.floats(0.01, 5000),
)
def test_everything_lies_within_the_plot(levels: list[float], limit: float | None, seconds: float) -> None:
    points = tuple((seconds * number / len(levels), level) for number, level in enumerate(levels, 1))
    seen = report_memory.view(replace(VRAM, samples={"GPU 0": points}, limit_gib=limit))
    places = [mark["at"] for mark in (*seen["rules"], *seen["heights"], *seen["times"])]
    assert all(0 <= float(place) <= 100.01 for place in places)
    drawn = [float(part) for pair in seen["lines"][0]["points"].split() for part in pair.split(",")]
    assert all(-0.1 <= value <= 1000.1 for value in drawn)
    assert 3 <= len(seen["heights"]) <= 12
    assert 2 <= len(seen["times"]) <= 12
