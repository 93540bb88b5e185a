"""Steps: which run at the same time, what each becomes, and that a failure has a name that a runbook explains."""

from __future__ import annotations

import threading

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session, Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.checks.steps import Seen, Step, run_steps
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check
from support.lying_server import KEY, MODEL, lying_server


def checked(steps: list[Step]) -> list[Check]:
    with lying_server() as base_url:
        return run_steps(Session(Target(base_url, KEY, MODEL, timeout=5, concurrency=4)), steps)


def test_concurrent_steps_run_together_and_are_reported_in_order() -> None:
    """A barrier that needs four concurrent steps; a step that is not concurrent runs alone."""
    barrier = threading.Barrier(4)

    def meet(_: Session) -> Seen:
        barrier.wait(5)
        return Seen("met")

    def alone(_: Session) -> Seen:
        assert not barrier.n_waiting
        return Seen("alone")

    together = [Step(f"q{number}", meet, concurrent=True) for number in range(8)]
    steps = [Step("first", alone, gate=True), *together, Step("last", alone)]
    assert [(item.code, item.ok) for item in checked(steps)] == [(step.code, True) for step in steps]


def test_a_step_that_fails_by_name_keeps_its_severity_and_value() -> None:
    def low(_: Session) -> Seen:
        raise Failure("slower", f"key {KEY}", 3)

    (check,) = checked([Step("speed", low, "warning", limit=2, unit="figures")])
    assert (check.ok, check.severity, check.runbook) == (False, "warning", "slower")
    assert (check.message, check.value, check.limit, check.unit) == ("slower: key ***", 3, 2, "figures")


def test_an_error_of_the_check_itself_is_a_named_failure() -> None:
    def broken(_: Session) -> Seen:
        raise KeyError("choices")

    (check,) = checked([Step("broken", broken)])
    assert (check.runbook, check.message) == ("client_error", "client_error: KeyError: 'choices'")


def test_after_a_gate_no_step_runs() -> None:
    ran: list[str] = []

    def gate(_: Session) -> Seen:
        raise Failure("unknown_model", "another one")

    def later(_: Session) -> Seen:
        ran.append("later")
        return Seen("ran")

    checks = checked([Step("gate", gate, gate=True), Step("later", later)])
    assert ran == []
    assert checks[1].message == "unknown_model: not run, because gate failed: another one"


def test_a_failure_without_a_runbook_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="unknown failure 'sloow'"):
        Failure("sloow", "text")


def test_a_failed_check_names_its_failure() -> None:
    check = failed("restarts", Failure("engine_restarted", "again", 1), 0, "restarts", seconds=1.5)
    expected = Check("restarts", False, "error", "engine_restarted: again", 1, 0, "restarts", 1.5, "engine_restarted")
    assert check == expected
