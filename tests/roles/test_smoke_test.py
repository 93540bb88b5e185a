"""Results of role smoke_test for a real engine: healthy, hung, stopped, and with a corrupt model."""

from __future__ import annotations

import json

import pytest

REPORTS = "/opt/vllm/reports"


def verdict(host, release):
    return json.loads(host.file(f"{REPORTS}/{release}/verdict.json").content)


def failures(host, release):
    return {check["code"]: check["runbook"] for check in verdict(host, release)["checks"] if not check["ok"]}


@pytest.mark.parametrize("release", ["good", "healed"])
def test_good_engine_is_proven(host, release):
    proof = verdict(host, release)
    assert proof["ok"] is True
    assert failures(host, release) == {}
    assert proof["engine"]["model"] == "tiny-qwen3-vl"
    assert proof["engine"]["version"].startswith("0.32.0")
    assert proof["engine"]["max_model_len"] == 4096


def test_every_check_has_a_duration_and_a_message(host):
    checks = verdict(host, "good")["checks"]
    assert len(checks) > 25
    assert all(check["message"] for check in checks)
    assert all(check["seconds"] > 0 for check in checks)


def test_every_form_of_request_is_served(host):
    proof = verdict(host, "full")
    assert failures(host, "full") == {}
    codes = {check["code"] for check in proof["checks"]}
    assert {"form_jpeg", "form_one_pixel", "tool_required", "logprobs", "seed", "long_prompt"} <= codes


@pytest.mark.parametrize("release", ["good", "full"])
def test_largest_image_was_sent(host, release):
    (largest,) = (check for check in verdict(host, release)["checks"] if check["code"] == "largest_image")
    # 512 x 512 pixels are 256 tokens.
    assert (largest["ok"], largest["unit"]) == (True, "tokens")
    assert 240 < largest["value"] < 270


def test_hung_engine_is_a_timeout_although_it_looks_healthy(host):
    assert set(failures(host, "hung").values()) == {"timeout"}
    answered = {check["code"] for check in verdict(host, "hung")["checks"] if check["ok"]}
    assert answered == {"endpoint_identity", "engine_version"}
    assert len(verdict(host, "hung")["checks"]) == len(verdict(host, "good")["checks"])


def test_stopped_engine_is_unreachable(host):
    assert set(failures(host, "killed").values()) == {"endpoint_unreachable"}


def test_engine_with_a_corrupt_vision_tower_answers_wrongly(host):
    red = failures(host, "blind")
    assert set(red.values()) == {"wrong_answer"}
    assert {"colour", "shape", "ocr"} <= {code.split("_")[0] for code in red}
    assert not {"greeting", "stream", "alive_after_bad_requests"} & red.keys()
    assert not any(code.startswith("reject_") for code in red)


@pytest.mark.parametrize("release", ["good", "full", "hung", "healed", "killed", "blind"])
def test_reports_are_complete_protected_and_without_the_key(host, release):
    key = host.file("/opt/vllm/secrets/api_key").content_string.strip()
    assert key
    for name in ("smoke.json", "verdict.json", "junit.xml"):
        report = host.file(f"{REPORTS}/{release}/{name}")
        assert (report.user, report.mode) == ("root", 0o640)
        assert key not in report.content_string
    assert verdict(host, release)["release"] == release
    left = [name for name in host.file(f"{REPORTS}/{release}").listdir() if name.startswith(".")]
    assert left == []
