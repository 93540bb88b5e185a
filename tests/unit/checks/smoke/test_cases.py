"""The smoke test's pictures, questions and judge."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import defaultdict
from typing import Any

import pytest
from PIL import Image

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Answer, ToolCall
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import images as smoke_images
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case, judge
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.images import IMAGES, Picture, Shape, Text

BY_CODE = {case.code: case for case in CASES}


def right(case: Case) -> Answer:
    """The answer of a model that sees."""
    if isinstance(case.expect, ToolCall):
        return Answer(tool_calls=(case.expect,), finish_reason="tool_calls")
    text = case.example if isinstance(case.expect, str) else json.dumps(case.expect)
    return Answer(text=text, finish_reason="stop", chunks=5, usage_tokens=9)


def open_picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_is_a_png_of_64_tokens_and_always_the_same(name: str) -> None:
    first, again = smoke_images.render(name), smoke_images.render(name)
    assert first == again
    picture = open_picture(first)
    assert picture.size == (256, 256)
    assert len(picture.getcolors(65536) or []) >= 2, "nothing is drawn on the background"


def test_no_two_pictures_are_alike() -> None:
    pixels = [open_picture(smoke_images.render(name)).tobytes() for name in IMAGES]
    assert len(set(pixels)) == len(pixels)


@pytest.mark.parametrize("colour", smoke_images.COLOURS)
@pytest.mark.parametrize("kind", smoke_images.SHAPES)
def test_a_shape_has_its_colour_in_the_middle_and_its_outline_at_the_corners(colour: str, kind: str) -> None:
    picture = open_picture(smoke_images.render(f"{colour}_{kind}"))
    assert picture.getpixel((128, 128)) == smoke_images.COLOURS[colour]
    assert picture.getpixel((4, 4)) == smoke_images.WHITE
    top_left, bottom_left = ((56, 56), (56, 200))  # just inside the box around the shape
    filled = [picture.getpixel(corner) == smoke_images.COLOURS[colour] for corner in (top_left, bottom_left)]
    assert filled == {"circle": [False, False], "square": [True, True], "triangle": [False, True]}[kind]


@pytest.mark.parametrize("name", [name for name, picture in IMAGES.items() if isinstance(picture.item, Text)])
def test_text_fits_into_its_picture(name: str) -> None:
    picture = open_picture(smoke_images.render(name))
    background = IMAGES[name].background
    edge = [picture.getpixel((x, y)) for x in range(256) for y in range(256) if x in (0, 255) or y in (0, 255)]
    assert set(edge) == {background}


def test_a_data_url_carries_the_png() -> None:
    head, _, body = smoke_images.data_url("text_4827").partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body, validate=True) == smoke_images.render("text_4827")


def test_an_unknown_picture_or_shape_is_named() -> None:
    with pytest.raises(KeyError, match=r"'red_hexagon' is unknown; known are .*red_circle"):
        smoke_images.render("red_hexagon")
    with pytest.raises(ValueError, match=r"'hexagon' is unknown; known are circle"):
        smoke_images.draw(Picture(Shape("hexagon", smoke_images.BLACK)))


# ---------------------------------------------------------------- cases


def test_codes_are_unique_identifiers() -> None:
    assert len(BY_CODE) == len(CASES)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", case.code) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_case_is_complete(case: Case) -> None:
    assert set(case.images) <= set(IMAGES)
    assert (case.kind == "tool") == bool(case.tools) == isinstance(case.expect, ToolCall)
    assert (case.kind == "json") == (case.schema is not None)
    assert bool(case.example) == (case.kind in ("chat", "stream"))
    assert (case.level == "semantic") == bool(case.images), "what needs a picture needs eyes, and nothing else does"
    assert judge(case, right(case))[0] is True
    assert judge(case, Answer(text="nonsense", finish_reason="stop", chunks=5, usage_tokens=9))[0] is False


def test_the_list_covers_what_a_vision_model_is_deployed_for() -> None:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in CASES:
        groups[case.group].append(case)
    least = {
        "greeting": 1,
        "stream": 1,
        "colour": 3,
        "shape": 3,
        "ocr": 2,
        "compare": 2,
        "order": 2,
        "tool": 2,
        "json": 2,
    }
    assert {group: len(cases) for group, cases in groups.items()}.keys() == least.keys()
    assert all(len(groups[group]) >= number for group, number in least.items())


@pytest.mark.parametrize("group", sorted({case.group for case in CASES if case.images}))
def test_a_blind_model_gives_at_most_one_right_answer_in_a_group(group: str) -> None:
    """A model that sees nothing answers one question always alike, and the questions of a group are one question."""
    cases = [case for case in CASES if case.group == group]
    assert len({(case.prompt, case.system, str(case.tools), str(case.schema)) for case in cases}) == 1
    assert len({case.images for case in cases}) == len(cases)
    for blind in map(right, cases):
        assert [judge(case, blind)[0] for case in cases].count(True) == 1


@pytest.mark.parametrize("group", ["compare", "order"])
def test_the_answer_turns_with_the_order_of_the_pictures(group: str) -> None:
    one, other = (case for case in CASES if case.group == group)
    assert one.images == other.images[::-1]
    assert not judge(one, right(other))[0]


def test_requests_are_what_the_openai_client_takes() -> None:
    asked = {case.code: smoke_cases.request(case, "m", lambda name: f"url:{name}") for case in CASES}
    assert all(request["temperature"] == 0 and request["model"] == "m" for request in asked.values())
    assert asked["larger_first"]["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "url:large_circle"}},
                {"type": "image_url", "image_url": {"url": "url:small_circle"}},
                {"type": "text", "text": BY_CODE["larger_first"].prompt},
            ],
        }
    ]
    tool = asked["tool_paris"]
    assert tool["tool_choice"] == "auto"
    assert tool["tools"][0]["function"]["name"] == "get_weather"
    assert [message["role"] for message in tool["messages"]] == ["system", "user"]
    assert asked["json_red_circle"]["response_format"]["json_schema"]["schema"] == smoke_cases.SHAPE_SCHEMA
    assert asked["stream"]["stream"] is True
    assert asked["stream"]["stream_options"] == {"include_usage": True}
    assert not {"tools", "response_format", "stream"} & asked["colour_red"].keys()
    json.dumps(asked)


# ---------------------------------------------------------------- judge


@pytest.mark.parametrize("text", ["red", "Red", " RED. ", "Red.\n", '"red"', "**Red**", "`red`.", "Red!"])
def test_form_does_not_matter(text: str) -> None:
    assert judge(BY_CODE["colour_red"], Answer(text=text))[0]


@pytest.mark.parametrize("text", ["", "blue", "not red", "red blue", "The colour is red.", "reddish", "r e d", "red?"])
def test_content_does(text: str) -> None:
    ok, message = judge(BY_CODE["colour_red"], Answer(text=text))
    assert not ok
    assert '"red"' in message
    assert (json.dumps(text) if text else "no text") in message


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ocr_4827", "4827."),
        ("ocr_lemon", "Lemon"),
        ("larger_second", "The second image."),
        ("order_red_blue", "red,blue"),
        ("order_red_blue", "Red and blue."),
        ("greeting", "Hello."),
    ],
)
def test_what_a_large_model_says_is_accepted(code: str, text: str) -> None:
    assert judge(BY_CODE[code], Answer(text=text))[0] is True


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ocr_4827", "4837"),
        ("ocr_4827", "14827"),
        ("larger_second", "first"),
        ("larger_second", "first second"),
        ("order_red_blue", "blue, red"),
        ("order_red_blue", "red"),
        ("greeting", "Goodbye"),
    ],
)
def test_what_is_wrong_is_refused(code: str, text: str) -> None:
    assert not judge(BY_CODE[code], Answer(text=text))[0]


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("get_weather", {"city": "Tokyo"}),
        ToolCall("get_weather", {"city": "Paris", "unit": "K"}),
        ToolCall("get_weather", {}),
        ToolCall("get_weather", {"": "{broken"}),
        ToolCall("get_time", {"city": "Paris"}),
    ],
)
def test_another_call_is_wrong_and_shown(call: ToolCall) -> None:
    ok, message = judge(BY_CODE["tool_paris"], Answer(tool_calls=(call,)))
    assert not ok
    assert 'get_weather({"city": "Paris"})' in message
    assert call.name in message.partition("got")[2]


def test_the_case_of_an_argument_does_not_matter_but_a_second_call_does() -> None:
    call = ToolCall("get_weather", {"city": " PARIS"})
    assert judge(BY_CODE["tool_paris"], Answer(tool_calls=(call,)))[0]
    assert not judge(BY_CODE["tool_paris"], Answer(tool_calls=(call, call)))[0]
    assert not judge(BY_CODE["tool_paris"], Answer(text="Sunny"))[0]


def test_an_unparsed_call_names_the_missing_flags() -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    ok, message = judge(BY_CODE["tool_paris"], Answer(text=text))
    assert not ok
    assert "--enable-auto-tool-choice" in message


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ('{"colour":"red","shape":"circle"}', True),
        ('{ "shape": "Circle", "colour": "Red" }\n', True),
        ('{"colour":"red","shape":"square"}', False),
        ('{"colour":"red"}', False),
        ('{"colour":"red","shape":"circle","size":1}', False),
        ('{"colour":1,"shape":"circle"}', False),
        ('["red","circle"]', False),
        ('{"colour":"red","sha', False),
        ("red circle", False),
        ("", False),
    ],
)
def test_json_is_compared_by_value(text: str, ok: bool) -> None:
    assert judge(BY_CODE["json_red_circle"], Answer(text=text))[0] is ok


@pytest.mark.parametrize(
    ("change", "named"),
    [({"chunks": 1}, "streamed pieces"), ({"usage_tokens": None}, "usage"), ({"text": "1 2 3"}, "1 2 3")],
)
def test_a_stream_must_come_in_pieces_with_usage(change: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {"text": "1 2 3 4 5", "chunks": 9, "usage_tokens": 10}
    assert judge(BY_CODE["stream"], Answer(**good))[0]
    ok, message = judge(BY_CODE["stream"], Answer(**(good | change)))
    assert not ok
    assert named in message


def test_the_usual_reasons_for_no_answer_are_said() -> None:
    assert "--reasoning-parser" in judge(BY_CODE["colour_red"], Answer(reasoning="Red"))[1]
    assert "max_tokens" in judge(BY_CODE["colour_red"], Answer(text="The shape is", finish_reason="length"))[1]
    assert "finish_reason stop" in judge(BY_CODE["colour_red"], Answer(finish_reason="stop"))[1]
