"""The long list of the smoke test: an honest server passes all of it, and each step can fail."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from urllib.request import urlopen

import pytest
from PIL import Image, ImageChops, ImageStat

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Answer, Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import extended
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import run as smoke_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, judge
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Settings
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from support.lying_server import IMAGE_CAP, KEY, MAX_MODEL_LEN, MODEL, MORE_LIES, lying_server


def asked(lie: str = "", level: str = "semantic", images: int = 4) -> Verdict:
    with lying_server(lie) as base_url:
        settings = Settings(level, images)
        return smoke_run.run(Target(base_url, KEY, MODEL, 5.0), "r1", settings, [], extended.steps_for(settings))


def failed(verdict: Verdict) -> dict[str, str | None]:
    return {item.code: item.runbook for item in verdict.checks if not item.ok}


def check(verdict: Verdict, code: str) -> Check:
    return next(item for item in verdict.checks if item.code == code)


def test_an_honest_server_passes_all_of_it() -> None:
    verdict = asked()
    assert failed(verdict) == {}
    codes = [item.code for item in verdict.checks]
    assert len(set(codes)) == len(codes)
    assert {case.code for case in extended.EXTENDED_CASES} < set(codes)
    assert not {case.code for case in CASES} & set(codes)


def test_weights_that_mean_nothing_are_asked_for_the_form_only() -> None:
    codes = {item.code for item in asked(level="protocol").checks}
    assert not {case.code for case in extended.EXTENDED_CASES} & codes
    assert {"form_jpeg", "tool_required", "logprobs", "stop_word", "seed", "long_prompt"} <= codes


def test_forced_calls_of_weights_that_mean_nothing_are_not_judged_at_level_protocol() -> None:
    verdict = asked("babbles", level="protocol")
    assert failed(verdict) == {}
    assert "was cut off" in check(verdict, "tool_required").message
    assert "tool_required" in failed(asked("ignores_tool_choice", level="protocol"))
    wrong = {"choices": [{"message": {"content": '<tool_call>{"name": "get_weather", "arguments": true}'}}]}
    assert "arguments" in extended._incomplete_call(wrong)


def test_a_model_without_eyes_is_shown_nothing() -> None:
    codes = {item.code for item in asked(images=0).checks}
    assert not any(code.startswith(("form_", "count_", "chart_")) for code in codes)
    assert "conversation_ada" in codes


def largest(lie: str = "", images: int = 4, pixels: int = 640 * 640, cap: int = 0) -> Check | None:
    with lying_server(lie) as base_url:
        settings = Settings("protocol", images, largest_pixels=pixels, cap_pixels=cap)
        more = extended.largest_steps(settings)
        verdict = smoke_run.run(Target(base_url, KEY, MODEL, 5.0), "r1", settings, [], more)
    return next((item for item in verdict.checks if item.code == "largest_image"), None)


def test_the_largest_image_is_scaled_down_to_the_cap_of_the_plan() -> None:
    # The server takes 300 tokens of 1024 pixels each for an image, at most.
    capped = largest("scales", cap=IMAGE_CAP * 1024)
    assert capped
    assert capped.ok
    assert capped.value == IMAGE_CAP
    # Without a cap it is as large as it is.
    whole = largest()
    assert whole
    assert (whole.ok, whole.value) == (True, 402)


def test_a_cap_that_the_server_does_not_keep_is_caught() -> None:
    for lie, cap in (("", IMAGE_CAP * 1024), ("scales", 640 * 640), ("scales", 512 * 512)):
        found = largest(lie, cap=cap)
        assert found
        assert (found.ok, found.runbook) == (False, "bad_response")
        assert f"cap of {cap} pixels" in found.message
    died = largest("dies_of_large_image", cap=IMAGE_CAP * 1024)
    assert died
    assert died.runbook == "connection_lost"


def test_an_image_that_is_longer_than_the_context_is_made_to_fit() -> None:
    found = largest(pixels=4096 * 4096)
    assert found
    assert found.ok
    assert 0.8 * MAX_MODEL_LEN < int(found.value or 0) < MAX_MODEL_LEN


def test_without_a_plan_no_stranger_is_sent_the_largest_image() -> None:
    found = largest("dies_of_large_image", pixels=0)
    assert found
    assert found.ok
    assert found.message.startswith("not sent: no plan")
    assert largest(images=0) is None


CAUGHT = {
    "ignores_tool_choice": {"tool_required", "tool_named"},
    "one_call": {"tool_parallel"},
    "no_logprobs": {"logprobs"},
    "ignores_stop": {"stop_word"},
    "dice": {"seed"},
    "png_only": {"form_jpeg", "form_webp", "form_rotated"},
    "dies_of_one_pixel": {"form_one_pixel", "alive_after_bad_requests"},
    "swaps": {case.code for case in extended.EXTENDED_CASES},
    "truncates": {"long_prompt", "reject_overlong_prompt"},
    "counts_nothing": {"long_prompt"},
    "babbles": {"tool_required"},
}


@pytest.mark.parametrize("lie", CAUGHT)
def test_every_lie_is_caught(lie: str) -> None:
    found = failed(asked(lie))
    assert CAUGHT[lie] <= set(found)
    assert lie == "dies_of_one_pixel" or set(found) == CAUGHT[lie]


def test_every_lie_is_tried() -> None:
    assert set(MORE_LIES) <= set(CAUGHT)


def test_a_wrong_answer_to_what_no_model_was_tried_on_is_a_warning() -> None:
    verdict = asked("swaps")
    assert {check(verdict, code).severity for code in CAUGHT["swaps"]} == {"warning"}
    assert verdict.ok


def test_each_question_has_two_right_answers_so_that_none_can_be_guessed() -> None:
    groups = Counter(case.group for case in extended.EXTENDED_CASES)
    assert min(groups.values()) >= 2
    for case in extended.EXTENDED_CASES:
        assert judge(case, Answer(text=case.example, finish_reason="stop"))[0], case.code
        for other in extended.EXTENDED_CASES:
            if other.group == case.group and other != case:
                assert not judge(case, Answer(text=other.example, finish_reason="stop"))[0], (case.code, other.code)


def picture(url: str) -> Image.Image:
    with urlopen(url) as data:
        return Image.open(io.BytesIO(data.read())).convert("RGB")


def test_pictures_of_one_question_differ_and_none_is_blank() -> None:
    for case in extended.EXTENDED_CASES:
        for name in case.images:
            assert max(ImageStat.Stat(picture(extended.data_url(name))).stddev) > 2, name
    pairs = [
        (first, second)
        for first, second in itertools.combinations(extended.EXTENDED_CASES, 2)
        if first.group == second.group and len(first.images) == len(second.images) == 1
    ]
    assert pairs
    for pair in pairs:
        pictures = [picture(extended.data_url(case.images[0])) for case in pair]
        assert ImageChops.difference(*pictures).getbbox(), [case.code for case in pair]


def test_the_formats_are_what_they_are_called() -> None:
    forms = extended._forms()
    found = {name: url.partition(";")[0].removeprefix("data:image/") for name, url in forms.items()}
    assert (found["jpeg"], found["webp"], found["gray"]) == ("jpeg", "webp", "png")
    with urlopen(forms["rotated"]) as data:
        assert Image.open(io.BytesIO(data.read())).getexif()[0x0112] == 6
    with urlopen(forms["alpha"]) as data:
        assert Image.open(io.BytesIO(data.read())).mode == "RGBA"
