"""What the smoke test asks a Qwen3-VL, and what counts as a right answer.

The questions are plain enough for the 32B model and few enough to be taught to the tiny model of the embedded
inventory; both are asked exactly these. Every question about a picture exists at least twice, with other pictures
and another right answer, so that a model that does not see cannot pass by guessing.

This module needs nothing but the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Answer, ToolCall

Level = Literal["protocol", "semantic"]
Kind = Literal["chat", "stream", "tool", "json"]


@dataclass(frozen=True)
class Case:
    """One question and its right answer.

    Attributes:
        code: Stable, unique identifier in snake_case: the ``code`` of the check in ``smoke.json``.
        group: What is being proven (``colour``, ``ocr``, ...). The cases of a group differ in their pictures and
            answers; a runbook is written for a group.
        level: ``protocol`` if any working server passes, ``semantic`` if the model must have understood the picture.
        kind: How to ask and what to read back: ``chat`` (text), ``stream`` (text, server-sent events with usage),
            ``tool`` (``tools`` with ``tool_choice: auto``), ``json`` (``schema`` as a strict json_schema).
        prompt: The user's text, placed after the pictures.
        expect: The right answer: for ``chat`` and ``stream`` a regular expression that must match the whole answer
            (case, quotes around it and a full stop after it do not matter); for ``tool`` the call; for ``json`` the
            object.
        example: One literal answer that is right, for ``chat`` and ``stream``.
        images: Names of pictures in ``smoke_images.IMAGES``, in the order shown.
        system: System prompt, or None.
        max_tokens: Most tokens to generate.
        tools: OpenAI tool definitions.
        schema: JSON schema of the answer, or None.
        turns: The conversation before the question: pairs of role and text.
    """

    code: str
    group: str
    level: Level
    kind: Kind
    prompt: str
    expect: str | ToolCall | Mapping[str, Any]
    example: str = ""
    images: tuple[str, ...] = ()
    system: str | None = None
    max_tokens: int = 32
    tools: tuple[Mapping[str, Any], ...] = ()
    schema: Mapping[str, Any] | None = None
    turns: tuple[tuple[str, str], ...] = ()


WEATHER_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city, e.g. Berlin"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}

SHAPE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "green", "blue", "yellow"]},
        "shape": {"type": "string", "enum": ["circle", "square", "triangle"]},
    },
    "required": ["colour", "shape"],
    "additionalProperties": False,
}


def _colour(colour: str) -> Case:
    return Case(
        code=f"colour_{colour}",
        group="colour",
        level="semantic",
        kind="chat",
        prompt="What colour is the shape in this image? Answer with one word.",
        images=(f"{colour}_circle",),
        expect=colour,
        example=colour.capitalize(),
    )


def _shape(shape: str) -> Case:
    return Case(
        code=f"shape_{shape}",
        group="shape",
        level="semantic",
        kind="chat",
        prompt="Is the shape in this image a circle, a square or a triangle? Answer with one word.",
        images=(f"red_{shape}",),
        expect=shape,
        example=shape.capitalize(),
    )


def _ocr(text: str) -> Case:
    return Case(
        code=f"ocr_{text.lower()}",
        group="ocr",
        level="semantic",
        kind="chat",
        prompt="What is written in this image? Answer with the text only.",
        images=(f"text_{text.lower()}",),
        expect=text,
        example=text,
    )


def _larger(order: str, images: tuple[str, str]) -> Case:
    return Case(
        code=f"larger_{order}",
        group="compare",
        level="semantic",
        kind="chat",
        prompt="Each of the two images shows a circle. In which image is it larger? Answer with one word, "
        "first or second.",
        images=images,
        expect=rf"(the )?{order}( image)?",
        example=order.capitalize(),
    )


def _order(first: str, second: str) -> Case:
    return Case(
        code=f"order_{first}_{second}",
        group="order",
        level="semantic",
        kind="chat",
        prompt="What colour is the shape in the first image and what colour in the second? Answer with two words, "
        "in this order, separated by a comma.",
        images=(f"{first}_square", f"{second}_square"),
        expect=rf"{first}\s*(,|and)\s*{second}",
        example=f"{first.capitalize()}, {second}",
    )


def _weather(city: str) -> Case:
    return Case(
        code=f"tool_{city.lower()}",
        group="tool",
        level="semantic",
        kind="tool",
        system="Use the tools to answer questions about the weather.",
        prompt="What is the weather in the city whose name is written on this sign?",
        images=(f"sign_{city.lower()}",),
        expect=ToolCall("get_weather", {"city": city}),
        max_tokens=128,
        tools=(WEATHER_TOOL,),
    )


def _json(colour: str, shape: str) -> Case:
    return Case(
        code=f"json_{colour}_{shape}",
        group="json",
        level="semantic",
        kind="json",
        prompt="Describe the shape in this image as a JSON object with the keys colour and shape.",
        images=(f"{colour}_{shape}",),
        expect={"colour": colour, "shape": shape},
        max_tokens=64,
        schema=SHAPE_SCHEMA,
    )


CASES: tuple[Case, ...] = (
    Case(
        code="greeting",
        group="greeting",
        level="protocol",
        kind="chat",
        prompt="Say hello. Answer with one word.",
        expect="hello",
        example="Hello!",
    ),
    Case(
        code="stream",
        group="stream",
        level="protocol",
        kind="stream",
        prompt="Count from 1 to 5. Answer with the numbers only, separated by spaces.",
        expect=r"1[\s,]+2[\s,]+3[\s,]+4[\s,]+5",
        example="1 2 3 4 5",
    ),
    *map(_colour, ("red", "green", "blue", "yellow")),
    *map(_shape, ("circle", "square", "triangle")),
    *map(_ocr, ("LEMON", "TIGER", "4827")),
    _larger("first", ("large_circle", "small_circle")),
    _larger("second", ("small_circle", "large_circle")),
    _order("red", "blue"),
    _order("blue", "red"),
    *map(_weather, ("Paris", "Tokyo")),
    _json("red", "circle"),
    _json("blue", "square"),
    _json("green", "triangle"),
)
"""Asked in this order. The smoke test is passed when every one of them is answered rightly."""


def messages(case: Case, image_url: Callable[[str], str]) -> list[dict[str, Any]]:
    """The chat messages that ask the case: pictures first, then the text.

    Args:
        case: The case.
        image_url: Turns a picture's name into its URL, as ``smoke_images.data_url`` does.
    """
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image_url(name)}} for name in case.images]
    parts.append({"type": "text", "text": case.prompt})
    system = [{"role": "system", "content": case.system}] if case.system else []
    before = [{"role": role, "content": text} for role, text in case.turns]
    return [*system, *before, {"role": "user", "content": parts}]


def request(case: Case, model: str, image_url: Callable[[str], str]) -> dict[str, Any]:
    """Keyword arguments for ``client.chat.completions.create`` of the openai client, at temperature 0."""
    arguments: dict[str, Any] = {
        "model": model,
        "messages": messages(case, image_url),
        "temperature": 0,
        "max_tokens": case.max_tokens,
    }
    if case.tools:
        arguments |= {"tools": list(case.tools), "tool_choice": "auto"}
    if case.schema is not None:
        json_schema = {"name": case.code, "schema": case.schema, "strict": True}
        arguments["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if case.kind == "stream":
        arguments |= {"stream": True, "stream_options": {"include_usage": True}}
    return arguments


def _quote(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _seen(answer: Answer) -> str:
    """What came back, in words, with the hint that explains an empty or a cut answer."""
    if answer.tool_calls:
        return "calls " + ", ".join(f"{call.name}({_quote(dict(call.arguments))})" for call in answer.tool_calls)
    if not answer.text.strip():
        if answer.reasoning:
            return "no text, it came back as reasoning (an Instruct model must be served without --reasoning-parser)"
        return f"no text (finish_reason {answer.finish_reason or 'unknown'})"
    cut = ", cut off at max_tokens" if answer.finish_reason == "length" else ""
    return _quote(answer.text.strip()) + cut


def _folded(value: object) -> object:
    """Text without regard to case and space around it; anything else as it is."""
    return value.strip().casefold() if isinstance(value, str) else value


def _same(expected: Mapping[str, Any], got: object) -> bool:
    """Whether two objects have the same keys and the same values, case of text aside."""
    return isinstance(got, Mapping) and {k: _folded(v) for k, v in expected.items()} == {
        k: _folded(v) for k, v in got.items()
    }


def _judge_text(pattern: str, example: str, answer: Answer) -> tuple[bool, str]:
    wrapped = rf"[\s\"'*`]*(?:{pattern})[\s\"'*`]*[.!]?[\s\"'*`]*"
    ok = re.fullmatch(wrapped, answer.text, re.IGNORECASE) is not None
    literal = example.casefold() in ("", pattern.casefold())
    wanted = _quote(pattern) if literal else f"something like {_quote(example)}"
    return ok, f"expected {wanted}, got {_seen(answer)}"


def _judge_json(expected: Mapping[str, Any], answer: Answer) -> tuple[bool, str]:
    try:
        got = json.loads(answer.text)
    except ValueError:
        return False, f"expected the JSON object {_quote(expected)}, got {_seen(answer)}, which is not JSON"
    return _same(expected, got), f"expected the JSON object {_quote(expected)}, got {_seen(answer)}"


def _judge_tool(expected: ToolCall, answer: Answer) -> tuple[bool, str]:
    calls: Sequence[ToolCall] = answer.tool_calls
    ok = len(calls) == 1 and calls[0].name == expected.name and _same(expected.arguments, calls[0].arguments)
    hint = ""
    if "<tool_call>" in answer.text:
        hint = " (the server did not parse it: --enable-auto-tool-choice and --tool-call-parser hermes are needed)"
    return ok, f"expected the call {expected.name}({_quote(dict(expected.arguments))}), got {_seen(answer)}{hint}"


def _judge_stream(answer: Answer) -> tuple[bool, str]:
    least_chunks = 2  # one chunk is an answer that was not streamed
    if answer.chunks < least_chunks:
        return False, f"expected at least {least_chunks} streamed pieces of text, got {answer.chunks}"
    if not answer.usage_tokens:
        return False, f"expected usage with completion_tokens at the end of the stream, got {answer.usage_tokens}"
    return True, f"{answer.chunks} pieces of text, {answer.usage_tokens} completion tokens"


def judge(case: Case, answer: Answer) -> tuple[bool, str]:
    """Whether the answer is right, and a sentence that names what was expected and what was got."""
    if isinstance(case.expect, ToolCall):
        return _judge_tool(case.expect, answer)
    if not isinstance(case.expect, str):
        return _judge_json(case.expect, answer)
    ok, message = _judge_text(case.expect, case.example, answer)
    if ok and case.kind == "stream":
        return _judge_stream(answer)
    return ok, message
