"""Results of role vram_check for a real engine under load: healthy, and killed during the check."""

from __future__ import annotations

import json

import pytest

REPORTS = "/opt/vllm/reports"
MEMORY = {"vram_ready", "vram_under_load", "vram_after"}


def result(host, release):
    return json.loads(host.file(f"{REPORTS}/{release}/vram.json").content)


def failures(host, release):
    return {check["code"]: check["runbook"] for check in result(host, release)["checks"] if not check["ok"]}


def test_good_engine_is_proven(host):
    assert failures(host, "good") == {}
    verdict = json.loads(host.file(f"{REPORTS}/good/verdict.json").content)
    assert verdict["ok"] is True
    assert {check["code"] for check in verdict["checks"]} >= MEMORY


def test_memory_was_read_before_under_and_after_the_load(host):
    found = result(host, "good")
    assert found["source"] in ("container", "processes")
    assert list(found["moments"]) == ["ready", "warm", "under_load", "after"]
    (points,) = found["samples"].values()
    assert len(points) > 10
    assert all(0.5 < gib < 16 for _, gib in points)
    terms = {term["term"]: term for term in found["terms"]}
    assert terms["kv_cache_tokens"]["measured"] == pytest.approx(699050, rel=0.01)
    # The table is rounded to hundredths.
    assert terms["headroom"]["measured"] == pytest.approx(found["headroom_gib"], abs=0.006)
    assert found["headroom_gib"] > 0


def test_load_filled_the_longest_requests_with_images(host):
    load = result(host, "good")["load"]
    # The cache holds far more than two requests.
    assert (load["images"], load["side"], load["concurrency"]) == (2 * 4, 512, 2)
    assert 3800 < load["longest"] < 4096
    assert load["tokens"] == 2 * load["longest"]


def test_report_has_the_results(host):
    page = host.file(f"{REPORTS}/good/report.html").content_string
    assert "<polyline" in page
    assert "Memory, planned and measured" in page


def test_engine_that_breaks_its_plan_is_named(host):
    assert failures(host, "other-plan") == {"kv_cache_tokens": "plan_missed"}


def test_missing_container_is_named(host):
    assert failures(host, "no-container") == dict.fromkeys({*MEMORY, "restarts"}, "container_unreadable")


def test_engine_that_dies_under_load_is_named(host):
    found = failures(host, "killed")
    assert found["load_answered"] == "connection_lost"
    assert found["restarts"] == "engine_restarted"
    assert {"vram_under_load", "vram_after"} <= found.keys()


def test_dead_engine_is_unreachable(host):
    assert failures(host, "dead")["vram_endpoint"] == "endpoint_unreachable"
    assert failures(host, "dead").keys() >= MEMORY


def test_a_cpu_host_writes_no_calibration_row(host):
    assert not host.file(f"{REPORTS}/good/calibration.json").exists


@pytest.mark.parametrize("release", ["good", "other-plan", "no-container", "killed", "dead"])
def test_results_are_complete_protected_and_without_the_key(host, release):
    key = host.file("/opt/vllm/secrets/api_key").content_string.strip()
    assert key
    for name in ("vram.json", "verdict.json", "junit.xml"):
        report = host.file(f"{REPORTS}/{release}/{name}")
        assert (report.user, report.mode) == ("root", 0o640)
        assert key not in report.content_string
