"""Which checks a run makes: none is forgotten, and no verdict is made of a part."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.inference.vllm.plugins.filter.proof import FilterModule
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import CHECKS
from support.paths import PLUGINS, ROLES

CHAIN = ["smoke", "vram", "stability"]
ALL = [check.name for check in CHECKS]
filters = FilterModule().filters()
chain, results, roles = (filters[f"proof_{name}"] for name in ("chain", "results", "roles"))


def test_a_row_is_a_role_with_a_module_of_its_name() -> None:
    for check in CHECKS:
        assert (ROLES / check.role / "tasks" / "main.yml").is_file()
        assert (PLUGINS / "modules" / f"{check.role}.py").is_file()
        tasks = (ROLES / check.role / "tasks" / "main.yml").read_text()
        assert f'report_path: "{{{{ {check.role}_report_dir }}}}/{check.file}"' in tasks


def test_a_proof_has_the_default_checks_and_those_that_are_added_or_left_out() -> None:
    assert chain([]) == CHAIN
    assert chain(["benchmark"]) == [*CHAIN, "benchmark"]
    assert chain([], ["vram"]) == ["smoke", "stability"]
    for unknown in ({"also": ["smoek"]}, {"also": [], "without": ["smoek"]}):
        with pytest.raises(AnsibleFilterError, match="no check smoek; there are smoke, vram"):
            chain(**unknown)


def test_a_role_on_its_own_is_judged_with_the_checks_before_it() -> None:
    """The default of vllm_check_results."""
    assert results(["all"]) == {name: [f"{item}.json" for item in ALL[: place + 1]] for place, name in enumerate(ALL)}


def test_the_playbook_runs_the_roles_in_order() -> None:
    assert roles({"stability": [], "smoke": []}) == ["smoke_test", "stability"]
    assert roles(results(["all"])) == [check.role for check in CHECKS]


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
