"""What the state of a host means: does what clients get, what is current and what was proven agree, and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.contracts import StateFile, Trial
from ansible_collections.inference.vllm.plugins.module_utils.state.judge import (
    Action,
    Backend,
    Container,
    Seen,
    after_failure,
    invariant,
    repairs,
    serving,
    stranger_refusal,
)

STATE = StateFile("vllm", keys="k")
OLD = Container("1", "vllm-vllm-1", "old", True, "healthy", "t1", "unless-stopped", "/srv/releases/old", "vllm")
NEW = replace(OLD, id="2", release="new", started="t2", policy="no", folder="/srv/releases/new")
SPARE = replace(NEW, id="3", name="vllm-spare-vllm-1", project="vllm-spare")
ROUTES = {"engine": Backend("ready", True), "spare": Backend("maint", False)}
WHOLE = Seen(current="old", proofs={"old": "t1"}, engines=(OLD,), backends=ROUTES, keys="k", run="r2")
TRIAL = Trial("new", "r1", "ops@laptop", "2026-01-01T00:00:00Z", "start")


def broken(state: StateFile, seen: Seen) -> set[str]:
    return {fact.name for fact in invariant(state, seen) if not fact.holds}


def test_a_proven_release_that_serves_needs_nothing() -> None:
    assert broken(STATE, WHOLE) == set()
    assert repairs(STATE, WHOLE) == []


@pytest.mark.parametrize(
    ("state", "seen", "facts", "actions"),
    [
        # The new release was started and the run was cut off.
        (
            replace(STATE, trial=TRIAL),
            replace(WHOLE, engines=(NEW,)),
            {"same", "restart", "trial"},
            ["start_current", "set_policy", "forget_trial"],
        ),
        # The same, between its full proof and its promotion.
        (
            replace(STATE, trial=TRIAL),
            replace(WHOLE, engines=(NEW,), proofs={"old": "t1", "new": "t2"}),
            {"same", "restart", "trial"},
            ["finish_trial", "set_policy", "forget_trial"],
        ),
        # Its container was started again since the proof.
        (
            replace(STATE, trial=TRIAL),
            replace(WHOLE, engines=(NEW,), proofs={"old": "t1", "new": "t1"}),
            {"same", "restart", "trial"},
            ["start_current", "set_policy", "forget_trial"],
        ),
        # The same, and nothing was ever proven.
        (
            replace(STATE, trial=TRIAL),
            replace(WHOLE, current="", proofs={}, engines=(NEW,)),
            {"current", "proven", "same", "restart", "trial"},
            ["stop_engine", "forget_trial"],
        ),
        # A proven release whose folder was removed by hand still serves: it is left alone.
        (STATE, replace(WHOLE, problems=("the folder is missing",)), {"current"}, []),
        # The container stopped, or was removed.
        (STATE, replace(WHOLE, engines=(replace(OLD, running=False),)), {"engine", "same", "restart"}, None),
        (STATE, replace(WHOLE, engines=()), {"engine", "same", "restart"}, ["start_current", "set_policy"]),
        # It was restored, and the run was cut off before its restart policy was set.
        (STATE, replace(WHOLE, engines=(replace(OLD, policy="no"),)), {"restart"}, ["set_policy"]),
        # A spare engine serves instead of the engine.
        (
            replace(STATE, target="spare", trial=TRIAL),
            replace(
                WHOLE,
                engines=(NEW,),
                spares=(SPARE,),
                backends={"engine": Backend("maint", True), "spare": Backend("ready", True)},
            ),
            {"same", "restart", "trial", "gateway", "spare"},
            ["start_current", "set_policy", "route_engine", "remove_spare", "forget_target", "forget_trial"],
        ),
        # The keys on disk were changed, and the engine was not started with them yet.
        (STATE, replace(WHOLE, keys="other"), {"keys"}, []),
        # Two containers run: nobody can say which one serves.
        (STATE, replace(WHOLE, engines=(OLD, NEW)), {"engine", "same", "restart"}, ["start_current", "set_policy"]),
        # The gateway took the engine out for a trial that is over.
        (
            STATE,
            replace(WHOLE, backends={**ROUTES, "engine": Backend("maint", True)}),
            {"gateway"},
            ["route_engine"],
        ),
        (STATE, replace(WHOLE, backends=None), set(), []),
        (replace(STATE, target="spare"), replace(WHOLE, backends=None), {"gateway"}, ["route_engine", "forget_target"]),
        (STATE, replace(WHOLE, docker="Docker is not installed", engines=()), {"docker"}, []),
    ],
)
def test_what_does_not_hold_and_what_is_done(
    state: StateFile, seen: Seen, facts: set[str], actions: list[Action] | None
) -> None:
    assert broken(state, seen) == facts
    assert repairs(state, seen) == (["start_current", "set_policy"] if actions is None else actions)


def test_the_trial_of_the_run_itself_is_left_alone() -> None:
    seen = replace(WHOLE, engines=(NEW,), run="r1")
    assert repairs(replace(STATE, trial=TRIAL), seen) == []
    assert repairs(replace(STATE, trial=replace(TRIAL, run="")), replace(seen, run="")) != []


def test_a_trial_that_is_verified_next_is_kept_while_it_gives_tokens() -> None:
    state, seen = replace(STATE, trial=TRIAL), replace(WHOLE, engines=(NEW,))
    withdrawn = replace(seen, backends={**ROUTES, "engine": Backend("maint", True)})
    assert repairs(state, seen, keep="new") == repairs(state, withdrawn, keep="new") == []
    sick = replace(seen, engines=(replace(NEW, health="unhealthy"),))
    assert repairs(state, sick, keep="new")[0] == "start_current"


@pytest.mark.parametrize(
    ("seen", "reason", "text"),
    [
        (WHOLE, "", "Release old serves again."),
        (
            replace(WHOLE, engines=()),
            "docker compose: no such image",
            "Nothing serves now. [restore_failed] Release old did not start again: docker compose: no such image\nFix:",
        ),
        # The release that failed its proof still runs, because nothing could take its place.
        (
            replace(WHOLE, engines=(NEW,)),
            "no such image",
            "Release new serves now. [restore_failed] Release old did not start again: no such image\nFix:",
        ),
        (
            replace(WHOLE, problems=("compose.yaml was edited",), engines=()),
            "",
            "Nothing serves now. [restore_failed] Release old did not start again: compose.yaml was edited\nFix:",
        ),
        (
            replace(WHOLE, current="", engines=()),
            "",
            "Nothing serves now. No release was proven before this one.",
        ),
        (
            replace(WHOLE, current="new", engines=(NEW,), spares=(SPARE,)),
            "",
            "Release new, new as a spare engine serves now. The release that failed is the current one",
        ),
        (
            replace(WHOLE, docker="Docker does not answer", engines=()),
            "Docker does not answer",
            "What serves is not known: Docker does not answer. [restore_failed] Release old did not start again",
        ),
    ],
)
def test_a_failure_names_what_serves(seen: Seen, reason: str, text: str) -> None:
    assert after_failure("new", seen, reason).startswith(text)


def test_containers_of_another_home_or_project_stop_every_change() -> None:
    assert stranger_refusal("/srv", "vllm", WHOLE) is None
    other_home = replace(WHOLE, strangers=(replace(OLD, folder="/opt/releases/old"),))
    text = str(stranger_refusal("/srv", "vllm", other_home))
    assert "vllm_home is /srv" in text
    assert "/opt/releases/old" in text
    other_project = replace(WHOLE, strangers=(replace(OLD, project="qwen"),))
    assert "vllm_project is vllm" in str(stranger_refusal("/srv", "vllm", other_project))


CONTAINERS = st.builds(
    Container,
    st.sampled_from("123"),
    st.just("vllm-vllm-1"),
    st.sampled_from(["old", "new", ""]),
    st.booleans(),
    st.sampled_from(["starting", "healthy", "unhealthy", ""]),
    st.sampled_from(["t1", "t2"]),
    st.sampled_from(["no", "unless-stopped"]),
)
BACKENDS = st.builds(Backend, st.sampled_from(["ready", "drain", "maint"]), st.booleans())
SEEN = st.builds(
    Seen,
    docker=st.just(""),
    current=st.sampled_from(["old", ""]),
    problems=st.sampled_from([(), ("edited",)]),
    proofs=st.sampled_from([{}, {"old": "t1"}, {"old": "t1", "new": "t2"}]),
    engines=st.lists(CONTAINERS, max_size=2).map(tuple),
    spares=st.lists(CONTAINERS, max_size=1).map(tuple),
    backends=st.none() | st.fixed_dictionaries({"engine": BACKENDS, "spare": BACKENDS}),
    keys=st.sampled_from(["k", "other"]),
    run=st.sampled_from(["", "r1", "r2"]),
)
STATES = st.builds(
    StateFile,
    st.just("vllm"),
    st.none() | st.just(TRIAL) | st.just(replace(TRIAL, release="old")),
    st.sampled_from(["engine", "spare"]),
    st.sampled_from(["", "k"]),
)


@given(STATES, SEEN)
def test_no_repair_touches_a_host_that_holds(state: StateFile, seen: Seen) -> None:
    if not broken(state, seen) - {"keys"}:
        assert repairs(state, seen) == []


@given(STATES, SEEN)
def test_after_the_repairs_everything_holds_that_can(state: StateFile, seen: Seen) -> None:
    """A model of what each repair does; Docker and the gateway obey."""
    own = state.trial is not None and state.trial.run == seen.run != ""
    for action in repairs(state, seen):
        state, seen = carried_out(action, state, seen)
    if own:
        return
    assert repairs(state, seen) == []
    assert state.trial is None
    if seen.current and not seen.problems:
        assert broken(state, seen) <= {"keys", "proven", "engine"}
        assert [container.release for container in seen.running] == [seen.current]
    assert serving(seen)


def carried_out(action: Action, state: StateFile, seen: Seen) -> tuple[StateFile, Seen]:
    routed = None if seen.backends is None else ROUTES
    of_state: dict[str, StateFile] = {
        "forget_trial": replace(state, trial=None),
        "forget_target": replace(state, target="engine"),
    }
    of_seen: dict[str, Seen] = {
        "finish_trial": replace(seen, current=state.trial.release if state.trial else "", problems=()),
        "start_current": replace(seen, engines=(replace(OLD, policy="no"),)),
        "stop_engine": replace(seen, engines=tuple(replace(c, running=False) for c in seen.engines)),
        "set_policy": replace(seen, engines=tuple(replace(c, policy="unless-stopped") for c in seen.engines)),
        "route_engine": replace(seen, backends=routed),
        "remove_spare": replace(seen, spares=()),
    }
    return of_state.get(action, state), of_seen.get(action, seen)
