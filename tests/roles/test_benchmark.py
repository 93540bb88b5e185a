"""Results of role benchmark for a real engine, and its failures without a tool, a container or an engine."""

from __future__ import annotations

import json

import pytest

REPORTS = "/opt/vllm/reports"


def result(host, release):
    return json.loads(host.file(f"{REPORTS}/{release}/benchmark.json").content)


def failures(host, release):
    return {check["code"]: check["runbook"] for check in result(host, release)["checks"] if not check["ok"]}


def test_good_engine_is_measured(host):
    assert failures(host, "good") == {}
    assert json.loads(host.file(f"{REPORTS}/good/verdict.json").content)["ok"] is True
    points = {(point["workload"], point["again"]): point for point in result(host, "good")["points"]}
    assert points.keys() == {("text", False), ("text", True), ("image", False), ("image", True)}
    for point in points.values():
        assert (point["requests"], point["failed"], point["concurrency"]) == (8, 0, 2)
        assert point["output_tokens_per_s"] > 0
        assert point["goodput_per_s"] == pytest.approx(point["requests_per_s"], rel=0.01)
        assert 0 < point["ttft_ms"]["median"] <= point["e2el_ms"]["median"]


def test_each_run_has_new_prompts_that_are_repeated_once(host):
    points = result(host, "good")["points"]
    assert points[0]["seed"] == points[1]["seed"] != points[2]["seed"]
    assert result(host, "good")["seed"] != result(host, "warned")["seed"]


def test_the_first_result_is_kept_and_compared_with(host):
    assert host.file("/opt/vllm/baselines").mode == 0o750
    # One result of each tool, and the fast one.
    assert len(host.file("/opt/vllm/baselines").listdir()) == 3
    # The scenario converges twice, so the second run was compared with the first.
    assert "baseline" in result(host, "good")["comparisons"]


def test_a_slower_service_is_a_warning_or_a_failure(host):
    assert failures(host, "warned") == {"benchmark_text_regression": "slower"}
    assert result(host, "warned")["ok"] is True
    assert failures(host, "gated") == {"benchmark_text_regression": "slower"}
    assert result(host, "gated")["ok"] is False


def test_two_releases_are_shown_side_by_side(host):
    page = host.file(f"{REPORTS}/warned/compare-good.html")
    assert page.mode == 0o640
    assert "text, 2 at once: output" in page.content_string
    assert "benchmark_text_regression" in page.content_string


def test_report_has_the_results(host):
    page = host.file(f"{REPORTS}/good/report.html").content_string
    assert "Speed: latency and throughput" in page
    assert '<path class="dots' in page


def test_another_tool_measures_the_same(host):
    assert failures(host, "guidellm") == {}
    data, other = result(host, "guidellm"), result(host, "good")
    assert data["driver"] == "guidellm run"
    assert data["comparisons"] == {}, "figures of two tools were compared"
    assert len(data["points"]) == len(other["points"]) == 4
    for point, alike in zip(data["points"], other["points"], strict=True):
        assert (point["requests"], point["failed"], point["concurrency"]) == (8, 0, 2)
        assert point.keys() | {"itl_ms"} == alike.keys()
        # Both tools request answers of the same length.
        tokens = point["output_tokens_per_s"] * point["seconds"]
        assert tokens == pytest.approx(alike["output_tokens_per_s"] * alike["seconds"], rel=0.02)
    assert "guidellm run, prompts of seed" in host.file(f"{REPORTS}/guidellm/report.html").content_string


def test_missing_guidellm_is_named(host):
    assert set(failures(host, "no-guidellm").values()) == {"bench_tool_missing"}


def test_missing_container_is_named(host):
    assert set(failures(host, "no-container").values()) == {"bench_tool_missing"}


def test_dead_engine_is_unreachable(host):
    assert set(failures(host, "dead").values()) == {"endpoint_unreachable"}


@pytest.mark.parametrize("release", ["good", "warned", "gated", "guidellm", "no-container", "dead"])
def test_results_are_complete_protected_and_without_the_key(host, release):
    key = host.file("/opt/vllm/secrets/api_key").content_string.strip()
    assert key
    for name in ("benchmark.json", "verdict.json", "junit.xml"):
        report = host.file(f"{REPORTS}/{release}/{name}")
        assert (report.user, report.mode) == ("root", 0o640)
        assert key not in report.content_string
