"""Which checks a run makes: none is forgotten, and no verdict is made of a part."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.inference.vllm.plugins.filter.proof import FilterModule

CHAIN = ["smoke", "vram", "stability"]
results = FilterModule().filters()["proof_results"]


def test_without_tags_the_chain_runs_and_each_verdict_holds_what_was_seen_so_far() -> None:
    assert results(["all"], [], CHAIN) == {
        "smoke": ["smoke.json"],
        "vram": ["smoke.json", "vram.json"],
        "stability": ["smoke.json", "vram.json", "stability.json"],
    }
    assert list(results(["all"], [], [*CHAIN, "benchmark"])) == [*CHAIN, "benchmark"]


@pytest.mark.parametrize("step", [*CHAIN, "benchmark"])
def test_a_check_alone_is_judged_with_the_stored_results_of_the_others(step: str) -> None:
    found = results([step], [], CHAIN)
    assert list(found) == [step]
    assert sorted(found[step]) == sorted({*(f"{name}.json" for name in CHAIN), f"{step}.json"})


def test_the_last_verdict_of_every_choice_holds_the_whole_chain() -> None:
    for chosen in (["vram", "smoke"], ["stability", "benchmark"], ["all"]):
        assert {f"{name}.json" for name in CHAIN} <= set(list(results(chosen, [], CHAIN).values())[-1])
    assert list(results(["all"], ["vram"], CHAIN)) == ["smoke", "stability"]


def test_at_an_address_only_what_was_asked_counts() -> None:
    assert results(["smoke"], [], ["smoke"]) == {"smoke": ["smoke.json"]}


@pytest.mark.parametrize(("chosen", "skipped"), [(["weights"], []), (["smoke"], ["smoke"]), (["all"], CHAIN)])
def test_a_run_that_would_prove_nothing_is_refused(chosen: list[str], skipped: list[str]) -> None:
    with pytest.raises(AnsibleFilterError, match=r"\[no_check\].*Fix: choose of smoke, vram, stability, benchmark"):
        results(chosen, skipped, CHAIN)


def test_a_check_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="no check smoek"):
        results(["all"], [], ["smoek"])
