"""State of a host after role watchdog: it restarted an engine after the first hang and stopped it after the second."""

from __future__ import annotations

import json

import pytest

HOME = "/opt/vllm/watchdog"


@pytest.fixture(scope="module")
def events(host):
    return [json.loads(line) for line in host.file(f"{HOME}/events.jsonl").content_string.splitlines()]


def test_service_runs_and_is_enabled_at_boot(host):
    service = host.service("vllm-watchdog")
    assert service.is_running
    assert service.is_enabled


def test_hang_was_restarted_then_stopped(events):
    assert [(event["event"], event["action"]) for event in events] == [
        ("engine_hung", "restart"),
        ("crash_loop", "stop"),
    ]


def test_events_have_the_cause(events):
    first, second = events
    assert "requests are pending" in first["cause"]
    assert "after 1 restarts" in second["cause"]


def test_journal_has_the_event(host):
    journal = host.check_output("journalctl --unit vllm-watchdog --no-pager")
    assert "[crash_loop] watchdog-engine: " in journal


def test_program_and_configuration_are_writable_by_root_only(host):
    for name in ("vllm_watchdog.py", "deploy_lock.py", "config.json"):
        file = host.file(f"{HOME}/{name}")
        assert (file.user, file.mode) == ("root", 0o644)
