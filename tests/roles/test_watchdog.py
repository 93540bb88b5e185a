"""Role watchdog runs its service, restarted the engine that hung, and stopped the one that hung again."""

from __future__ import annotations

import json

import pytest

HOME = "/opt/vllm/watchdog"


@pytest.fixture(scope="module")
def events(host):
    return [json.loads(line) for line in host.file(f"{HOME}/events.jsonl").content_string.splitlines()]


def test_service_runs_and_comes_back_after_a_boot(host):
    service = host.service("vllm-watchdog")
    assert service.is_running
    assert service.is_enabled


def test_hang_was_restarted_then_stopped(events):
    assert [(event["event"], event["action"]) for event in events] == [
        ("engine_hung", "restart"),
        ("crash_loop", "stop"),
    ]


def test_cause_is_told(events):
    first, second = events
    assert "requests wait" in first["cause"]
    assert "after 1 restarts" in second["cause"]


def test_journal_tells_it_too(host):
    journal = host.check_output("journalctl --unit vllm-watchdog --no-pager")
    assert "[crash_loop] watchdog-engine: " in journal


def test_only_root_changes_what_it_runs(host):
    for name in ("vllm_watchdog.py", "config.json"):
        file = host.file(f"{HOME}/{name}")
        assert (file.user, file.mode) == ("root", 0o644)
