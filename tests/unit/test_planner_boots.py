"""The planner against every measured boot: weights within 1 %, KV tokens within 5 %, the right verdicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.boots import Boot, boots

BOOTS = boots()
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: boot.name)
def test_prediction_of_a_boot(boot: Boot) -> None:
    measured, plan = boot.measured, boot.plan
    if "weights_gib" in measured:
        assert plan.account.weights == pytest.approx(measured["weights_gib"], rel=0.01)
    if boot.tokens:
        assert plan.account.kv_cache_tokens == pytest.approx(boot.tokens, rel=0.05)
    assert plan.starts == measured["starts"]
    if "survives" in measured:
        assert plan.survives == measured["survives"]


def test_the_boots_hold_both_ends_of_both_verdicts() -> None:
    assert {boot.measured["starts"] for boot in BOOTS} == {True, False}
    assert {boot.measured.get("survives") for boot in BOOTS} >= {True, False}


def test_refusal_says_what_vllm_said() -> None:
    (refused,) = (boot for boot in BOOTS if not boot.measured["starts"])
    (reason, *_) = refused.plan.refusals
    assert reason.code == "kv_cache_too_small"
    assert "131072 tokens needs 8.00 GiB" in reason.message
    assert "1.94 GiB are available" in reason.message


def test_death_names_the_flag_that_mends_it() -> None:
    (dying,) = (boot for boot in BOOTS if boot.measured.get("survives") is False)
    (reason,) = dying.plan.refusals
    assert reason.code == "out_of_memory_under_load"
    assert '"max_pixels": ' in reason.fix


def test_constants_are_what_the_boots_give() -> None:
    done = subprocess.run([sys.executable, ROOT / "bench" / "plan_fit.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
