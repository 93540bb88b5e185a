"""The smoke test against wrong servers: each failure has a name, and none is an exception."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import NAMES
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import run as smoke_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Settings
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from support.lying_server import KEY, LIES, MAX_IMAGES, MODEL, lying_server

# Enough for a lie that does not look at the question; the rest of the list would only take time.
FEW = [case for case in CASES if case.code in ("greeting", "stream", "colour_red", "tool_paris", "json_red_circle")]


def codes_of(cases: Sequence[Case]) -> list[str]:
    return [
        *("endpoint_identity", "engine_version", *(case.code for case in cases)),
        *("reject_wrong_key", "reject_unknown_model", "reject_video", "reject_overlong_prompt"),
        *("reject_too_many_images", "reject_corrupt_image", "reject_local_file", "alive_after_bad_requests"),
    ]


def judged(
    base_url: str,
    level: str = "semantic",
    *,
    model: str = MODEL,
    timeout: float = 5.0,
    cases: Sequence[Case] = FEW,
) -> Verdict:
    return smoke_run.run(Target(base_url, KEY, model, timeout), "r1", Settings(level, MAX_IMAGES), cases)


def judged_lie(
    name: str,
    level: str = "semantic",
    *,
    model: str = MODEL,
    timeout: float = 5.0,
    cases: Sequence[Case] = FEW,
) -> Verdict:
    with lying_server(name) as base_url:
        return judged(base_url, level, model=model, timeout=timeout, cases=cases)


def check(verdict: Verdict, code: str) -> Check:
    return next(item for item in verdict.checks if item.code == code)


def failed(verdict: Verdict) -> dict[str, str | None]:
    return {item.code: item.runbook for item in verdict.checks if not item.ok}


def test_an_honest_server_is_green_and_described() -> None:
    verdict = judged_lie("", cases=CASES)
    assert failed(verdict) == {}
    assert verdict.ok
    assert [item.code for item in verdict.checks] == codes_of(CASES)
    assert verdict.engine == {
        **{"base_url": verdict.engine["base_url"], "model": MODEL, "version": "0.32.0"},
        **{"max_model_len": 512, "root": "/model"},
    }
    assert check(verdict, "colour_green").value == "Green"
    assert check(verdict, "tool_paris").value == 'get_weather({"city": "Paris"})'
    assert check(verdict, "reject_video").value == 400
    assert check(verdict, "reject_wrong_key").limit == 401


CAUGHT: dict[str, dict[str, str]] = {
    "hang": {"greeting": "timeout", "alive_after_bad_requests": "timeout"},
    "drip": {"greeting": "timeout"},
    "endless": {"greeting": "timeout"},
    "hang_once": {"greeting": "timeout"},
    "wrong": dict.fromkeys(("greeting", "stream", "colour_red", "tool_paris", "json_red_circle"), "wrong_answer"),
    "error_500": {"greeting": "server_error"},
    "html": {"greeting": "bad_response"},
    "html_everywhere": {"endpoint_identity": "bad_response"},
    "cut_json": {"greeting": "bad_response"},
    "no_choices": {"greeting": "bad_response"},
    "odd_types": {"greeting": "no_tokens"},
    "reasoning": {"greeting": "text_in_reasoning", "json_red_circle": "text_in_reasoning"},
    "empty": {"greeting": "no_tokens", "stream": "no_tokens"},
    "no_usage": {"greeting": "bad_response", "stream": "bad_response"},
    "no_end": {"greeting": "bad_response", "stream": "bad_response"},
    "one_chunk": {"stream": "wrong_answer"},
    "cut_stream": {"stream": "bad_response"},
    "no_stream": {"stream": "no_tokens"},
    "tool_as_text": {"tool_paris": "wrong_answer"},
    "open": {"reject_wrong_key": "bad_request_accepted"},
    "any_model": {"reject_unknown_model": "bad_request_accepted"},
    "anything_goes": {
        "reject_video": "bad_request_accepted",
        "reject_overlong_prompt": "bad_request_accepted",
        "reject_too_many_images": "bad_request_accepted",
        "reject_corrupt_image": "bad_request_accepted",
    },
    "reads_files": {"reject_local_file": "bad_request_accepted"},
    "other_model": {"endpoint_identity": "unknown_model"},
    "dies_midway": {"tool_paris": "connection_lost", "alive_after_bad_requests": "connection_lost"},
    "dies_of_corrupt_image": {
        "reject_corrupt_image": "connection_lost",
        "alive_after_bad_requests": "connection_lost",
    },
    "resets": {"greeting": "connection_lost"},
    "echoes_key": {"greeting": "server_error"},
    "surrogate": {"greeting": "wrong_answer"},
    "refuses_all": {"greeting": "request_refused", "alive_after_bad_requests": "request_refused"},
    "busy": {"greeting": "overloaded"},
    "wrong_key": {"endpoint_identity": "wrong_key"},
}


@pytest.mark.parametrize("lie", CAUGHT)
def test_a_lie_is_caught_and_named(lie: str) -> None:
    verdict = judged_lie(lie, timeout=0.3 if lie in ("hang", "drip", "endless", "hang_once") else 5.0)
    assert not verdict.ok
    assert failed(verdict) == failed(verdict) | CAUGHT[lie]
    assert all(item.message.startswith(f"{item.runbook}: ") for item in verdict.checks if not item.ok)
    assert {item.runbook for item in verdict.checks} - {None} <= NAMES - {"client_error"}
    assert [item.code for item in verdict.checks] == codes_of(FEW), "also a check that did not run is told"
    assert KEY not in verdict.to_json()
    assert "\x1b" not in verdict.to_json()


def test_a_server_that_does_not_look_at_pictures_is_caught_by_every_group() -> None:
    groups = {case.group for case in CASES if case.images}
    blind = failed(judged_lie("blind", cases=CASES))
    assert {case.group for case in CASES if blind.get(case.code) == "wrong_answer"} == groups


def test_every_lie_is_tried() -> None:
    assert LIES.keys() - CAUGHT.keys() == {"", "blind", "two_models", "odd_name", "no_version", "scales", "drops_kept"}


def test_a_server_that_does_not_tell_its_version_is_warned_about_only() -> None:
    verdict = judged_lie("no_version")
    assert verdict.ok
    assert failed(verdict) == {"engine_version": "bad_response"}


def test_a_lie_that_any_weights_could_tell_passes_at_level_protocol() -> None:
    verdict = judged_lie("surrogate", "protocol")
    assert set(failed(verdict)) == {"json_red_circle"}
    assert judged_lie("blind", "protocol").ok
    codes = [item.code for item in judged_lie("", "protocol").checks]
    assert "tool_paris" not in codes
    assert "reject_video" in codes


def test_json_of_weights_that_mean_nothing_is_not_judged_at_level_protocol_once_it_is_cut() -> None:
    assert failed(judged_lie("babbles", "protocol")) == {}
    assert failed(judged_lie("babbles"))["json_red_circle"] == "wrong_answer"


@pytest.mark.parametrize("lie", ["error_500", "reasoning", "empty", "one_chunk", "no_end", "anything_goes", "open"])
def test_level_protocol_still_catches_a_broken_server(lie: str) -> None:
    assert not judged_lie(lie, "protocol").ok


def test_the_only_model_is_found_without_a_name_and_two_are_not_guessed() -> None:
    assert judged_lie("", model="").engine["model"] == MODEL
    verdict = judged_lie("two_models", model="")
    assert failed(verdict)["endpoint_identity"] == "unknown_model"
    assert "llama, tiny-qwen3-vl" in check(verdict, "endpoint_identity").message
    assert judged_lie("two_models").ok


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:{port}/v1", "http://no-such-host.invalid:1/v1", "https://127.0.0.1:{port}/v1"],
)
def test_a_dead_address_costs_no_time_and_names_every_check(base_url: str) -> None:
    started = time.monotonic()
    verdict = judged(base_url.format(port=free_port()), timeout=60.0)
    assert time.monotonic() - started < 30
    assert not verdict.ok
    assert [item.code for item in verdict.checks] == codes_of(FEW)
    assert {item.runbook for item in verdict.checks} == {"endpoint_unreachable"}
    assert "not run, because endpoint_identity" in verdict.checks[-1].message


def test_a_plain_server_behind_https_is_a_tls_error() -> None:
    with lying_server() as base_url:
        verdict = judged(base_url.replace("http:", "https:"))
    assert check(verdict, "endpoint_identity").runbook == "tls_error"


def test_a_hung_engine_does_not_cost_the_limit_for_every_check() -> None:
    verdict = judged_lie("hang", timeout=0.3)
    sent = [item for item in verdict.checks if item.runbook == "timeout" and item.seconds > 0]
    assert len(sent) == 2
    assert "not run, because stream failed" in verdict.checks[-1].message


@pytest.mark.parametrize("lie", ["", "wrong", "blind", "error_500", "hang", "dies_midway", "resets", "tool_as_text"])
def test_many_at_once_find_what_one_after_the_other_finds(lie: str) -> None:
    timeout = 0.3 if lie == "hang" else 5.0
    with lying_server(lie) as base_url:
        target = Target(base_url, KEY, MODEL, timeout, concurrency=4)
        many = smoke_run.run(target, "r1", Settings(max_images=MAX_IMAGES), FEW)
    one = judged_lie(lie, timeout=timeout)
    assert [item.code for item in many.checks] == [item.code for item in one.checks]
    # Of one that dies, it depends on who comes when what was still answered.
    assert many.ok == one.ok
    assert set(failed(many).values()) == set(failed(one).values()) or lie == "dies_midway"
    assert failed(many).keys() == failed(one).keys() or lie in ("dies_midway", "hang")


def test_a_server_that_drops_kept_connections_is_not_called_dead() -> None:
    assert judged_lie("drops_kept").ok


def test_a_single_slow_answer_does_not_stop_the_rest() -> None:
    assert failed(judged_lie("hang_once", timeout=0.5)) == {"greeting": "timeout"}


def test_a_proxy_of_the_environment_does_not_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert judged_lie("").ok


def test_a_key_never_reaches_the_result_even_in_a_server_s_own_words() -> None:
    text = judged_lie("echoes_key").to_json()
    assert KEY not in text
    assert "request was Bearer ***" in text
    assert KEY not in repr(Target("http://x/v1", KEY))


def test_what_a_server_says_about_itself_is_cleaned() -> None:
    verdict = judged_lie("odd_name", model="")
    assert verdict.engine["model"] == "\N{REPLACEMENT CHARACTER}[31m***"
    assert KEY not in verdict.to_json()


def test_swapped_pictures_turn_every_question_about_a_picture_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check about a picture can fail: the same honest server, asked about other pictures."""
    cases = [case for case in CASES if case.images]
    others = {case.group: {other.images for other in cases if other.group == case.group} for case in cases}
    swapped = [replace(case, images=next(iter(sorted(others[case.group] - {case.images})))) for case in cases]
    with lying_server() as base_url:
        verdict = judged(base_url, cases=swapped)
    assert {code for code, name in failed(verdict).items() if name == "wrong_answer"} == {case.code for case in cases}


def elsewhere(lie: str = "", *, key: str = KEY, max_images: int = -1) -> Verdict:
    """A server that this project did not deploy: what it permits is not known."""
    with lying_server(lie) as base_url:
        return smoke_run.run(Target(base_url, key), "r1", Settings(max_images=max_images, strict=False), FEW)


def test_a_server_of_others_may_permit_more_but_not_everything() -> None:
    assert failed(elsewhere()) == {}
    assert "reject_too_many_images" not in [item.code for item in elsewhere().checks]
    open_handed = elsewhere("anything_goes")
    assert check(open_handed, "reject_video").severity == "warning"
    assert {"reject_overlong_prompt", "reject_local_file"} <= {item.code for item in open_handed.failures}
    assert check(elsewhere("open"), "reject_wrong_key").severity == "error"
    assert check(elsewhere("open", key=""), "reject_wrong_key").severity == "warning"
    assert elsewhere("wrong").ok is False


def test_a_model_without_eyes_is_shown_no_image() -> None:
    asked = [item.code for item in elsewhere(max_images=0).checks]
    assert {"greeting", "stream", "reject_too_many_images"} <= set(asked)
    assert "colour_red" not in asked
