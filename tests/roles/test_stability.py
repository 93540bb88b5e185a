"""Results of role stability for a real engine: healthy, killed during the check, and stopped."""

from __future__ import annotations

import json

import pytest

REPORTS = "/opt/vllm/reports"
KINDS = {"text", "image", "stream", "long_text", "json", "images"}


def result(host, release):
    return json.loads(host.file(f"{REPORTS}/{release}/stability.json").content)


def failures(host, release):
    return {check["code"]: check["runbook"] for check in result(host, release)["checks"] if not check["ok"]}


@pytest.mark.parametrize("release", ["good", "soaked"])
def test_good_engine_is_proven(host, release):
    assert failures(host, release) == {}
    verdict = json.loads(host.file(f"{REPORTS}/{release}/verdict.json").content)
    assert verdict["ok"] is True
    assert {"stability_requests", "stability_restarts"} <= {check["code"] for check in verdict["checks"]}


def test_more_than_twenty_requests_of_every_kind_were_answered(host):
    found = result(host, "good")
    assert found["requests"] >= 24
    assert found["errors"] == 0
    assert found["latency_ms"].keys() == KINDS
    assert all(times["count"] >= 4 for times in found["latency_ms"].values())


def test_a_soak_lasts_and_judges_drift(host):
    found = result(host, "soaked")
    assert found["seconds"] >= 30
    assert found["latency_drift"] > 0
    assert found["samples"]
    assert {"stability_latency", "stability_memory"} <= {check["code"] for check in found["checks"]}


def test_preemptions_are_counted_from_the_metrics(host):
    check = next(item for item in result(host, "good")["checks"] if item["code"] == "stability_preemptions")
    assert (check["ok"], check["value"]) == (True, 0)


def test_report_has_the_results(host):
    page = host.file(f"{REPORTS}/good/report.html").content_string
    assert "stability_requests" in page


def test_missing_container_is_named(host):
    assert failures(host, "no-container") == {"stability_restarts": "container_unreadable"}


def test_engine_that_dies_is_named(host):
    found = failures(host, "killed")
    assert found["stability_restarts"] == "engine_restarted"
    assert found["stability_requests"] in ("connection_lost", "server_error", "endpoint_unreachable")


def test_dead_engine_is_unreachable(host):
    assert failures(host, "dead")["stability_endpoint"] == "endpoint_unreachable"


@pytest.mark.parametrize("release", ["good", "soaked", "no-container", "killed", "dead"])
def test_results_are_complete_protected_and_without_the_key(host, release):
    key = host.file("/opt/vllm/secrets/api_key").content_string.strip()
    assert key
    for name in ("stability.json", "verdict.json", "junit.xml"):
        report = host.file(f"{REPORTS}/{release}/{name}")
        assert (report.user, report.mode) == ("root", 0o640)
        assert key not in report.content_string
