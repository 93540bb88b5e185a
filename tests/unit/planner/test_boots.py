"""The planner against every measured boot: weights within 0.2 %, KV cache within 2 % or 0.06 GiB, right verdicts."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import judge_settings
from support.boots import Boot, boots
from support.paths import ROOT

BOOTS = boots()


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: f"{boot.name}, {boot.date}")
def test_prediction_of_a_boot(boot: Boot) -> None:
    measured, plan = boot.measured, boot.plan
    if "weights_gib" in measured:
        assert plan.account.weights == pytest.approx(measured["weights_gib"], rel=0.002)
    if boot.tokens:
        per_token = plan.account.kv_cache / plan.account.kv_cache_tokens
        assert plan.account.kv_cache_tokens == pytest.approx(boot.tokens, rel=0.02, abs=0.06 / per_token)
    assert plan.starts == measured["starts"]
    if "survives" in measured:
        assert plan.survives == measured["survives"]


def test_the_boots_hold_both_ends_of_both_verdicts() -> None:
    assert {boot.measured["starts"] for boot in BOOTS} == {True, False}
    assert {boot.measured.get("survives") for boot in BOOTS} >= {True, False}


def test_refusal_has_the_figures_of_vllm() -> None:
    boot = named("32B FP8, 2x 24 GB at 0.85, 128k")
    (reason, *_) = boot.plan.refusals
    assert reason.code == "kv_cache_too_small"
    assert "131072 tokens needs 8.00 GiB" in reason.message
    assert "1.95 GiB are available" in reason.message  # measured: 1.94


def test_every_death_is_refused_with_what_mends_it() -> None:
    for boot in BOOTS:
        codes = [refusal.code for refusal in boot.plan.refusals]
        if boot.measured.get("survives") is False:
            assert codes == ["out_of_memory_under_load"], boot.name
            assert re.match(r"Cap the images: set --max-pixels to \d+|Lower --gpu-mem", boot.plan.refusals[0].fix), (
                boot.name
            )


@pytest.mark.parametrize(
    "settings",
    [
        "at 0.93, any image",
        "at 0.93, kept caches",
        "at 0.92, 256 sequences",
        "at 0.88, 256 sequences",
        "at 0.85, 256 sequences",
    ],
)
def test_a_death_while_it_starts_is_not_a_start(settings: str) -> None:
    (boot,) = (boot for boot in BOOTS if settings in boot.name)
    (reason,) = boot.plan.refusals
    assert reason.code == "out_of_memory_at_start"
    assert (boot.plan.starts, boot.plan.survives) == (False, False)


def test_a_budget_above_what_is_free_after_nccl_is_refused() -> None:
    # Seen on two GPUs with NVLink, held to 23.52 GiB: "Free memory on device cuda:0 (21.99/79.18 GiB) on startup is
    # less than desired GPU memory utilization (0.27923, 22.11 GiB)".
    plan = named("32B FP8, 2x 24 GB at 0.92, images of 4 megapixels").plan
    higher = judge_settings(plan.case, replace(plan.settings, budget_gib=0.94 * 23.52))
    assert higher.refusals[0].code == "budget_above_free_memory"
    assert "21.99 GiB that are free" in higher.refusals[0].message
    assert higher.refusals[0].fix == "Set --gpu-memory-utilization to at most 0.93."


def named(name: str) -> Boot:
    (boot,) = (boot for boot in BOOTS if boot.name == name)
    return boot


def test_constants_are_what_the_boots_give() -> None:
    done = subprocess.run([sys.executable, ROOT / "bench" / "plan_fit.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
