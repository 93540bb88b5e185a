"""Stability, benchmark, criteria and comparison: nothing that was not seen counts, and no file breaks the report."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.filter.report import FilterModule
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import figures
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import DRIVERS, normalised
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Point, Workload
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    BenchmarkComparison,
    BenchmarkResult,
    Latency,
    MemoryLoad,
    Sampling,
    ServiceLevel,
    StabilityResult,
    Term,
    VramResult,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.report import compare as report_compare
from ansible_collections.inference.vllm.plugins.module_utils.report import criteria as report_criteria
from ansible_collections.inference.vllm.plugins.module_utils.report import load as report_load
from ansible_collections.inference.vllm.plugins.module_utils.report import view as report
from support.paths import FIXTURES, ROOT
from support.plans import cpu_plan, gpu_plan, manifest

TEMPLATES = ROOT / "templates"
RAW = json.loads((FIXTURES / "vllm_bench/0.32.0-image.json").read_text())
CHECKS = (Check("stability_requests", True, value=24, message="24 mixed requests"), Check("stability_restarts", True))
VERDICT = Verdict("r1", CHECKS, {}, (), "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")
WORKLOAD = Workload("image", 16, 8, (1, 8), images=1, side=256)
BASE = [getattr(VERDICT, each.name) for each in fields(VERDICT)]
STABILITY = StabilityResult(
    *BASE,
    requests=24,
    errors=0,
    seconds=9.0,
    concurrency=4,
    minutes=0,
    latency_drift=1.02,
    memory_drift_gib=0.1,
    latency_ms={"text": Latency(12, 100, 120), "image": Latency(0)},
    points={"text": ((0.0, 0.1), (8.0, 0.12)), "image": ()},
    source="nvml",
    samples={},
)
MEASURED = BenchmarkResult(
    *BASE,
    key={"gpus": ["cpu"]},
    driver="vllm bench serve",
    seed=7,
    tool="sha256:1",
    goals=ServiceLevel(3500.0, 50.0),
    points=(
        normalised(DRIVERS["vllm"], Point(WORKLOAD, 1, 7), {**RAW, "output_throughput": 20.0}),
        normalised(DRIVERS["vllm"], Point(WORKLOAD, 8, 8), RAW),
        normalised(DRIVERS["vllm"], Point(WORKLOAD, 8, 8, again=True), {**RAW, "median_ttft_ms": 20.0}),
    ),
    comparisons={},
)
COMPARISON = BenchmarkComparison("r0", 0.1, figures.compare(MEASURED, MEASURED, 0.1))
BENCHMARK = replace(MEASURED, comparisons={"baseline": COMPARISON})


def page(template: str, seen: dict[str, Any]) -> str:
    return report.html(seen, (TEMPLATES / template).read_text(), (TEMPLATES / "report.css").read_text())


def view(stability: str = STABILITY.to_json(), benchmark: str = BENCHMARK.to_json()) -> dict[str, Any]:
    files = {"verdict.json": VERDICT.to_json(), "stability.json": stability, "benchmark.json": benchmark}
    return report.view(files, "r1", "gpu1", "/k", "/r")


def test_both_are_shown_with_their_plots() -> None:
    text = page("report.html.j2", view())
    for part in ("Stability: mixed requests", "Speed: latency and throughput", "Baseline: compared with release r0"):
        assert part in text
    assert text.count('<path class="dots') == 1 + 2 * 2
    assert "24 requests in 9 s by 4 concurrent clients, 0 errors. The last third took 1.02 times as long" in text
    assert "image again (16 in, 8 out, 1 x 256 px)" in text


def test_a_figure_that_the_tool_does_not_tell_is_left_out() -> None:
    points = tuple(replace(point, itl_ms=None) for point in BENCHMARK.points)
    seen = report_load.benchmark(replace(BENCHMARK, driver="guidellm run", points=points))
    assert [row["itl"] for row in seen["table"]] == ["-"] * 3
    assert seen["about"].startswith("guidellm run, ")


def places(plot: dict[str, Any]) -> list[float]:
    corners = [pair.split(",") for line in plot["lines"] for pair in line["points"].split()]
    dots = [pair[:-2].split() for dots in plot["dots"] for pair in dots["path"].split("M")[1:]]
    return [float(number) for pair in [*corners, *dots] for number in pair]


def test_every_place_lies_on_the_plot() -> None:
    seen = view()
    for plot in (seen["stability"]["plot"], *seen["benchmark"]["plots"]):
        assert places(plot)
        assert all(0 <= number <= 1000 for number in places(plot))
        assert all(0 <= float(mark["at"]) <= 100 for mark in [*plot["heights"], *plot["times"]])


@pytest.mark.parametrize("broken", ["", "{}", '{"release": "r1"}', STABILITY.to_json().replace("24", '"24"')])
def test_a_broken_result_leaves_the_report_whole(broken: str) -> None:
    seen = view(stability=broken, benchmark=broken)
    assert (seen["stability"], seen["benchmark"]) == (None, None)
    assert "Acceptance criteria" in page("report.html.j2", seen)


def test_results_of_another_release_are_not_shown() -> None:
    seen = view(replace(STABILITY, release="r0").to_json(), replace(BENCHMARK, release="r0").to_json())
    assert (seen["stability"], seen["benchmark"]) == (None, None)


def test_a_benchmark_without_a_point_has_no_plot() -> None:
    seen = report_load.benchmark(replace(BENCHMARK, points=(), comparisons={}))
    assert (seen["plots"], seen["table"]) == ([], [])


# --- Criteria -------------------------------------------------------------------------------------------------------


def states(*checks: Check, source: str = "nvml") -> list[str]:
    return [criterion["state"] for criterion in report_criteria.criteria(checks, source)]


EYES = [Check(case.code, True, limit="Red") for case in CASES if case.images]
GPU = Check("vram_under_load", True, value=21.9, message="GPU 0 held 21.9 GiB")
TEXTS = Check("benchmark_text_regression", True, "warning")


def test_what_nobody_saw_is_not_met() -> None:
    assert states() == ["not measured"] * 4 + ["see"]


def test_all_is_met_where_all_was_seen() -> None:
    assert states(GPU, *EYES, TEXTS, *CHECKS) == ["met"] * 4 + ["see"]


@pytest.mark.parametrize(
    ("place", "checks", "state"),
    [
        (0, [replace(GPU, ok=False)], "missed"),
        (0, [replace(GPU, value=60.0)], "missed"),
        (1, [replace(EYES[0], ok=False), *EYES[1:]], "missed"),
        # At level protocol nobody judged the answers.
        (1, [replace(check, limit=None) for check in EYES], "not measured"),
        (2, [replace(TEXTS, ok=False)], "missed"),
        (3, [replace(CHECKS[0], ok=False), CHECKS[1]], "missed"),
        (3, [CHECKS[0], replace(CHECKS[1], ok=False)], "missed"),
        (3, [replace(CHECKS[0], value=19), CHECKS[1]], "not measured"),
        (3, [CHECKS[0]], "not measured"),
        (3, [CHECKS[0], replace(CHECKS[1], ok=False, severity="warning")], "not measured"),
    ],
)
def test_each_criterion_can_be_missed(place: int, checks: list[Check], state: str) -> None:
    assert states(*checks)[place] == state


def test_memory_of_a_cpu_host_is_no_memory_of_a_gpu() -> None:
    assert states(GPU, source="container")[0] == "not measured"


def test_the_guides_that_the_report_names_exist() -> None:
    for guide in report_criteria.GUIDES:
        assert (ROOT / guide).is_file(), guide


# --- Two releases ---------------------------------------------------------------------------------------------------


def files(release: str, **changes: Any) -> dict[str, str]:
    """The files of a release that differs in ``sequences``, ``checks``, ``figures`` or ``peak``."""
    verdict = replace(VERDICT, release=release, checks=changes.get("checks", CHECKS))
    plan = cpu_plan()
    plan = replace(plan, flags={**plan.flags, "max-num-seqs": changes.get("sequences", 4)})
    points = tuple(replace(point, **changes.get("figures", {})) for point in BENCHMARK.points)
    vram = VramResult(
        *(getattr(verdict, each.name) for each in fields(verdict)),
        source="nvml",
        limit_gib=None,
        limit_is="",
        headroom_gib=None,
        terms=(Term("peak", 1.0, changes.get("peak", 21.0), "GiB"),),
        moments={},
        load=MemoryLoad(1, 2),
        sampling=Sampling(0.2, 0, 0.0, None),
        samples={},
    )
    return {
        "manifest.json": manifest(plan).to_json(),
        "verdict.json": verdict.to_json(),
        "stability.json": replace(STABILITY, release=release).to_json(),
        "benchmark.json": replace(BENCHMARK, release=release, points=points).to_json(),
        "vram.json": vram.to_json(),
    }


def compared(before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
    return report_compare.view(before, after, ("r0", "r1"), "gpu1", 0.1)


def test_what_differs_is_told_and_nothing_else() -> None:
    bad = (replace(CHECKS[0], ok=False, message="timeout: none", runbook="timeout"), CHECKS[1])
    slow = {"output_tokens_per_s": 10.0}
    seen = compared(files("r0"), files("r1", sequences=8, checks=bad, figures=slow, peak=25.0))
    assert seen["facts"] == [{"label": "flags.max-num-seqs", "before": "4", "after": "8"}]
    assert [(row["code"], row["before"], row["after"]) for row in seen["checks"]] == [
        ("stability_requests", "ok", "failed")
    ]
    worse = [row["what"] for row in seen["figures"] if row["judged"] == "worse"]
    assert worse == [
        *(f"image{again}, {count} concurrent: output" for again, count in (("", 1), ("", 8), (" again", 8))),
        "memory under load",
    ]
    text = report_compare.text(seen)
    assert "NOT PROVEN: r1, 1 of 2 checks ok" in text
    assert "flags.max-num-seqs: 4 -> 8" in text
    assert "4 worse" in text
    assert seen["checks"][0]["message"] == "timeout: none"
    mended = compared(files("r0", checks=bad), files("r1"))["checks"]
    assert [(row["before"], row["after"], row["message"]) for row in mended] == [("failed", "ok", "timeout: none")]
    html = page("compare.html.j2", seen)
    assert "Before: r0" in html
    assert "timeout: none" in html


def test_other_gpus_are_a_difference() -> None:
    two, four = (
        {"manifest.json": manifest(gpu_plan(f"{count}x RTX 4090", tensor_parallel_size=count)).to_json()}
        for count in (2, 4)
    )
    rows = {row["label"]: (row["before"], row["after"]) for row in compared(two, four)["facts"]}
    assert rows["gpus"] == ("2x RTX 4090", "4x RTX 4090")


def test_the_same_twice_differs_in_nothing() -> None:
    seen = compared(files("r0"), files("r1"))
    assert (seen["facts"], seen["checks"]) == ([], [])
    assert {row["judged"] for row in seen["figures"]} == {"same"}
    assert "Both are made of the same" in report_compare.text(seen)


def test_releases_that_were_never_measured_can_be_compared() -> None:
    seen = compared({}, {"benchmark.json": "{", "vram.json": "[]", "stability.json": '{"release": "r1"}'})
    assert seen["figures"] == []
    assert "The releases have no figure in common" in report_compare.text(seen)
    assert "The releases have no figure in common" in page("compare.html.j2", seen)


def test_files_belong_to_the_release_of_their_folder() -> None:
    read = [
        {"path": f"/opt/vllm/{kind}/{release}/{name}", "text": text}
        for release, found in (("r0", files("r0", sequences=2)), ("r1", files("r1")))
        for name, text in found.items()
        for kind in ("releases" if name == "manifest.json" else "reports",)
    ]
    seen = FilterModule().filters()["report_compare"](read, ["r0", "r1"], "gpu1", 0.1)
    assert [row["before"] for row in seen["facts"]] == ["2"]
    assert [side["ok"] for side in seen["verdicts"]] == [True, True]


def test_nothing_that_a_file_says_becomes_markup() -> None:
    evil = "<script>alert(1)</script>"
    bad = (replace(CHECKS[0], ok=False, message=evil, runbook="x"), CHECKS[1])
    assert evil not in page("compare.html.j2", compared(files("r0"), files("r1", checks=bad)))
    points = (replace(BENCHMARK.points[0], workload=evil),)
    assert evil not in page("report.html.j2", view(benchmark=replace(BENCHMARK, points=points).to_json()))
