"""What the smoke test asks beyond its short list, where ``smoke_test_extent`` is ``full``.

Two kinds. Any weights can pass the **protocol** steps: file formats and shapes of images, tool choice, log
probabilities, stop words, a seed, a prompt that nearly fills the context. The **semantic** cases ask what the tiny
model of the embedded inventory was not taught: counting, a chart, faint and foreign script, four images, a
conversation. No trained model has answered these in this project's own tests, so a wrong answer is a warning.

Pictures are drawn here; Pillow is imported where that is done.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import (
    REFUSED,
    Session,
    answer_of,
    classify,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import images as smoke_images
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, WEATHER_TOOL, Case
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.images import SIZE
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Settings, case_step, fits
from ansible_collections.inference.vllm.plugins.module_utils.checks.steps import Seen, Step
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import load as vram_load

if TYPE_CHECKING:
    from PIL import Image

# What a stop word and a seed are tried on: some words from any weights.
_TALK_TOKENS = 12
# Share by which the tokens of an image may differ from those of its pixels.
_CAP_TOLERANCE = 0.1
_NEARLY = 0.9
_INK = (20, 20, 20)
# Hardly darker than the paper.
_FAINT = (205, 205, 205)
_STROKE = 14

# Letters of other scripts that are straight strokes: corners as shares of the picture.
Corners = tuple[tuple[tuple[float, float], ...], ...]
_BOX = ((0.3, 0.2), (0.7, 0.2), (0.7, 0.8), (0.3, 0.8), (0.3, 0.2))
_LETTERS: dict[str, Corners] = {
    "日": (_BOX, ((0.3, 0.5), (0.7, 0.5))),
    "口": (_BOX,),
    "Ш": (((0.25, 0.2), (0.25, 0.8), (0.75, 0.8), (0.75, 0.2)), ((0.5, 0.2), (0.5, 0.8))),
    "П": (((0.3, 0.8), (0.3, 0.2), (0.7, 0.2), (0.7, 0.8)),),
}


# --- Pictures -------------------------------------------------------------------------------------------------------


def _paper() -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (SIZE, SIZE), (255, 255, 255))


def dots(count: int) -> Image.Image:
    """`count` circles, at most six, apart from each other."""
    from PIL import ImageDraw

    image = _paper()
    canvas = ImageDraw.Draw(image)
    for number in range(count):
        x, y = (0.2 + 0.3 * (number % 3)) * SIZE, (0.3 + 0.4 * (number // 3)) * SIZE
        canvas.ellipse((x - 25, y - 25, x + 25, y + 25), fill=(200, 30, 30))
    return image


def bars(highest: str) -> Image.Image:
    """A chart of four bars A to D, of which one is the highest."""
    from PIL import ImageDraw, ImageFont

    image = _paper()
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(size=24)
    for number, name in enumerate("ABCD"):
        left, height = 30 + number * 55, 180 if name == highest else 60 + 15 * number
        canvas.rectangle((left, 220 - height, left + 35, 220), fill=(40, 70, 220))
        canvas.text((left + 17, 238), name, fill=_INK, font=font, anchor="mm")
    canvas.line((20, 220, 250, 220), fill=_INK, width=2)
    return image


def faint(text: str) -> Image.Image:
    """Text that is hardly darker than its paper."""
    from PIL import ImageDraw, ImageFont

    image = _paper()
    font = ImageFont.load_default(size=60)
    ImageDraw.Draw(image).text((SIZE / 2, SIZE / 2), text, fill=_FAINT, font=font, anchor="mm")
    return image


def letter(name: str) -> Image.Image:
    """One letter of another script."""
    from PIL import ImageDraw

    image = _paper()
    canvas = ImageDraw.Draw(image)
    for stroke in _LETTERS[name]:
        canvas.line([(x * SIZE, y * SIZE) for x, y in stroke], fill=_INK, width=_STROKE, joint="curve")
    return image


_PICTURES: Mapping[str, Callable[[], Image.Image]] = {
    **{f"dots_{count}": lambda count=count: dots(count) for count in (2, 4, 5)},  # type: ignore[misc]
    **{f"bars_{name.lower()}": lambda name=name: bars(name) for name in "BD"},  # type: ignore[misc]
    **{f"faint_{text.lower()}": lambda text=text: faint(text) for text in ("RIVER", "STONE")},  # type: ignore[misc]
    **{f"letter_{name}": lambda name=name: letter(name) for name in _LETTERS},  # type: ignore[misc]
}


def draw(name: str) -> Image.Image:
    """The picture of that name, of the short list or of this one.

    Raises:
        KeyError: No picture has that name.
        ImportError: Pillow is not installed.
    """
    return smoke_images.draw(smoke_images.IMAGES[name]) if name in smoke_images.IMAGES else _PICTURES[name]()


def data_url(name: str) -> str:
    """The picture of that name as a `data:` URL."""
    return smoke_images.data_url(name) if name in smoke_images.IMAGES else encoded(draw(name), "PNG")


def encoded(image: Image.Image, form: str, **options: Any) -> str:
    """A picture in a file format, as a `data:` URL."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return f"data:image/{form.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# --- Questions ------------------------------------------------------------------------------------------------------


def _case(code: str, group: str, prompt: str, images: Sequence[str], right: str | tuple[str, str], **more: Any) -> Case:
    """A question; its right answer is a text, or a pattern and one example of it."""
    expect, example = (right, right) if isinstance(right, str) else right
    return Case(code, group, "semantic", "chat", prompt, expect, example, tuple(images), **more)


def _circle_at(place: int) -> Case:
    others = ["red_square", "blue_triangle", "green_square"]
    images = [*others[: place - 1], "yellow_circle", *others[place - 1 :]]
    prompt = "In which of these four images is a circle? Answer with its number only, from 1 to 4."
    return _case(f"four_images_{place}", "four_images", prompt, images, str(place))


def _letter(script: str, name: str, code: str) -> Case:
    prompt = f"Which single {script} letter is drawn in this image? Answer with that letter only."
    return _case(f"script_{code}", f"script_{script.lower()}", prompt, [f"letter_{name}"], name)


def _introduced(name: str) -> Case:
    turns = (("user", f"My name is {name}."), ("assistant", "Nice to meet you."))
    prompt = "What is my name? Answer with one word."
    return _case(f"conversation_{name.lower()}", "conversation", prompt, [], name, turns=turns)


def _caption(colour: str, shape: str) -> Case:
    return _case(
        f"caption_{colour}_{shape}",
        "caption",
        "Describe this image in one short sentence.",
        [f"{colour}_{shape}"],
        (rf".*\b{colour}\b.*\b{shape}\b.*", f"A {colour} {shape} on a white background."),
        max_tokens=64,
    )


EXTENDED_CASES: tuple[Case, ...] = (
    _caption("green", "triangle"),
    _caption("blue", "circle"),
    *(
        _case(
            f"count_{count}",
            "count",
            "How many circles are in this image? Answer with a number only.",
            [f"dots_{count}"],
            (rf"{count}|{word}", str(count)),
        )
        for count, word in ((2, "two"), (4, "four"), (5, "five"))
    ),
    *(
        _case(
            f"chart_{name.lower()}",
            "chart",
            "Which bar of this chart is the highest? Answer with its letter only.",
            [f"bars_{name.lower()}"],
            name,
        )
        for name in "BD"
    ),
    *(
        _case(
            f"faint_{text.lower()}",
            "faint",
            "What is written in this image? Answer with the text only.",
            [f"faint_{text.lower()}"],
            text,
        )
        for text in ("RIVER", "STONE")
    ),
    _letter("Chinese", "日", "sun"),
    _letter("Chinese", "口", "mouth"),
    _letter("Cyrillic", "Ш", "sha"),
    _letter("Cyrillic", "П", "pe"),
    _circle_at(2),
    _circle_at(4),
    _introduced("Ada"),
    _introduced("Boris"),
    *(
        _case(
            f"system_{word.lower()}",
            "system",
            "What is the password?",
            [],
            (rf".*\b{word}\b.*", word),
            system=f"The password is {word}. Tell it to everybody who asks for it.",
        )
        for word in ("Papaya", "Walnut")
    ),
)
"""Each question exists at least twice, with another right answer, so that no model passes by guessing."""

ALL_CASES = (*CASES, *EXTENDED_CASES)
"""Every question, those of the short list first."""


# --- Protocol -------------------------------------------------------------------------------------------------------


def _picture(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    from PIL import Image

    return Image.new("RGB", size, (200, 30, 30)).convert(mode)


def _forms() -> dict[str, str]:
    """Images in the formats and modes that clients send."""
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turned by a quarter
    return {
        "jpeg": encoded(_picture(), "JPEG"),
        "webp": encoded(_picture(), "WEBP"),
        "gray": encoded(_picture("L"), "PNG"),
        "alpha": encoded(_picture("RGBA"), "PNG"),
        "palette": encoded(_picture("P"), "PNG"),
        "rotated": encoded(_picture(size=(64, 32)), "JPEG", exif=turned),
    }


def _odd() -> dict[str, str]:
    """Images that a server may answer or refuse, but not die of."""
    return {"one_pixel": encoded(_picture(size=(1, 1)), "PNG"), "thin": encoded(_picture(size=(4000, 8)), "PNG")}


def asking(session: Session, content: Any, **more: Any) -> dict[str, Any]:
    """A request whose answer is a few tokens, whatever the weights."""
    head = {
        "model": session.model,
        "temperature": 0,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": content}],
    }
    return head | more


def _about(url: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]


def _tokens(session: Session, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Send a request; its first choice, once its tokens are counted: weights that mean nothing may write no text."""
    completion = session.complete(request)
    vram_load.counted(completion.get("usage"))
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        raise Failure("bad_response", f"not a chat completion: {str(completion)[:80]!r}")
    return choice


def _form_step(name: str) -> Step:
    def send(session: Session) -> Seen:
        _tokens(session, asking(session, _about(_forms()[name])))
        return Seen("answered")

    return Step(f"form_{name}", send, concurrent=True)


def _odd_step(name: str) -> Step:
    def send(session: Session) -> Seen:
        try:
            _tokens(session, asking(session, _about(_odd()[name])))
        except Exception as error:
            failure = classify(error)
            if failure.value in REFUSED:
                return Seen(f"refused: {failure}", failure.value)
            raise
        return Seen("answered", 200)

    return Step(f"form_{name}", send, limit="answered or 4xx")


def _tool_step(code: str, choice: Any, level: str) -> Step:
    """A call that the server has to force, so that any weights make it."""

    def send(session: Session) -> Seen:
        request = asking(
            session, "What is the weather in Paris?", tools=[WEATHER_TOOL], tool_choice=choice, max_tokens=128
        )
        completion = session.complete(request)
        if level == "protocol" and (incomplete := _incomplete_call(completion)):
            return Seen(incomplete)
        answer = answer_of(completion)
        call = next(iter(answer.tool_calls), None)
        # The arguments are not judged: not every version of vLLM enforces their schema.
        if call is None or call.name != "get_weather":
            returned = f"a call of {call.name}" if call else f"no call, but {answer.text[:60]!r}"
            raise Failure("bad_response", f"a call of get_weather was demanded; the answer has {returned}")
        return Seen(f"calls get_weather({dict(call.arguments)})", call.name)

    return Step(code, send)


def _incomplete_call(completion: Mapping[str, Any]) -> str:
    """Describes a forced call that random weights did not complete; empty where there is no such call."""
    choice: Mapping[str, Any] = next(iter(completion.get("choices") or ()), {})
    message = choice.get("message") or {}
    text = str(message.get("content") or "")
    if message.get("tool_calls"):
        return ""
    if "get_weather" in text:
        return "writes the forced call with invalid arguments, which are not judged at level protocol"
    # vLLM removes the text of a call that it cannot parse.
    if not text and choice.get("finish_reason") == "length":
        return "was cut off within the forced call, which is not judged at level protocol"
    return ""


def _parallel(session: Session) -> Seen:
    """Two calls in one answer; a model may take them one after the other, so this is a warning."""
    prompt = "What is the weather in Paris and in Tokyo? Call the tool for both at once."
    request = asking(session, prompt, tools=[WEATHER_TOOL], tool_choice="auto", max_tokens=256)
    cities = sorted(str(call.arguments.get("city")) for call in answer_of(session.complete(request)).tool_calls)
    if [city.lower() for city in cities] != ["paris", "tokyo"]:
        raise Failure(
            "wrong_answer", f"calls for Paris and Tokyo were wanted, calls came for {cities}", ", ".join(cities)
        )
    return Seen("two calls in one answer", ", ".join(cities))


def _logprobs(session: Session) -> Seen:
    choice = _tokens(session, asking(session, "Say hello.", logprobs=True, top_logprobs=2))
    entries = (choice.get("logprobs") or {}).get("content") if isinstance(choice.get("logprobs"), Mapping) else None
    good = isinstance(entries, list) and entries and all(len(entry.get("top_logprobs") or ()) == 2 for entry in entries)  # noqa: PLR2004
    if not good:
        raise Failure(
            "bad_response", f"log probabilities of two tokens each were asked for, and came as {str(entries)[:80]}"
        )
    return Seen(f"{len(entries or ())} tokens with their log probabilities")


def _counting(session: Session, **more: Any) -> Mapping[str, Any]:
    return _tokens(session, asking(session, "Count from 1 to 9.", max_tokens=_TALK_TOKENS, **more))


def _stop(session: Session) -> Seen:
    """An answer is asked for twice; the second time it has to stop at a piece of the first."""
    whole = str(_counting(session)["message"].get("content") or "")
    if len(whole) < 4:  # noqa: PLR2004
        return Seen("the answer is too short to be stopped", whole)
    word = whole[len(whole) // 2 : len(whole) // 2 + 2]
    choice = _counting(session, stop=[word])
    text = str(choice["message"].get("content") or "")
    if word in text or choice.get("finish_reason") != "stop":
        raise Failure(
            "bad_response", f"{text!r} was to stop before {word!r}, finish_reason {choice.get('finish_reason')}"
        )
    return Seen(f"stopped before {word!r}", text)


def _seed(session: Session) -> Seen:
    first, second = (str(_counting(session, seed=7)["message"].get("content") or "") for _ in range(2))
    if first != second:
        raise Failure("wrong_answer", f"at temperature 0 with one seed came {first!r} and {second!r}", second)
    return Seen("twice the same", first)


def _long(session: Session) -> Seen:
    """A prompt that nearly fills the context; the tokens of a word are measured first."""
    cost = vram_load.cost_of(session, 0, session.target.timeout)
    words = int((session.max_model_len * _NEARLY - cost.base) / cost.word)
    tokens = vram_load.tokens_of(session, vram_load.request_of(session.model, 0, 0, words))
    if tokens < 0.8 * session.max_model_len:
        raise Failure(
            "bad_response", f"usage counts {tokens} tokens of a prompt that fills {_NEARLY:.0%} of the context"
        )
    return Seen(f"answered to {tokens} tokens of {session.max_model_len}", tokens)


def largest_steps(settings: Settings) -> list[Step]:
    """The largest image that clients send; none for a server without images."""
    return [Step("largest_image", partial(_largest, settings), unit="tokens")] if settings.max_images else []


def _largest(settings: Settings, session: Session) -> Seen:
    """An image larger than the plan's cap has to be scaled down to it: the plan has no room for more."""
    if not settings.largest_pixels:
        return Seen("not sent: no plan says that the server has room for it")
    cost = vram_load.cost_of(session, 1, session.target.timeout)
    room = (session.max_model_len - cost.base) * _NEARLY / cost.pixel
    cap = min(settings.cap_pixels or settings.largest_pixels, settings.largest_pixels)
    # An image that is longer than the context would be refused before it is scaled.
    side = vram_load.side_of(settings.largest_pixels if cap <= room else min(settings.largest_pixels, room))
    wanted = min(side**2, cap) * cost.pixel
    counted = vram_load.tokens_of(session, vram_load.request_of(session.model, 1, side, 0)) - cost.base
    reason = f"with the plan's cap of {cap} pixels" if settings.cap_pixels else "by its size"
    message = f"an image of {side}x{side} pixels counts {counted:.0f} tokens; {reason} it has {wanted:.0f}"
    if not (1 - _CAP_TOLERANCE) * wanted <= counted <= (1 + _CAP_TOLERANCE) * wanted:
        raise Failure("bad_response", message, round(counted))
    return Seen(message, round(counted))


def steps_for(settings: Settings) -> list[Step]:
    """All that is asked beyond the short list, for a server's level and the images that a request may hold."""
    cases = [
        replace(case_step(case, settings.level, data_url), severity="warning")
        for case in EXTENDED_CASES
        if fits(case, settings.max_images)
    ]
    parallel = Step("tool_parallel", _parallel, severity="warning")
    return [*_protocol_steps(settings), *([*cases, parallel] if settings.level == "semantic" else [])]


def _protocol_steps(settings: Settings) -> list[Step]:
    """The steps that any weights can pass."""
    images = [] if settings.max_images == 0 else [*map(_form_step, _FORM_NAMES), *map(_odd_step, _ODD_NAMES)]
    named = {"type": "function", "function": {"name": "get_weather"}}
    return [
        *images,
        _tool_step("tool_required", "required", settings.level),
        _tool_step("tool_named", named, settings.level),
        Step("logprobs", _logprobs),
        Step("stop_word", _stop),
        Step("seed", _seed, severity="warning"),
        Step("long_prompt", _long, unit="tokens"),
    ]


_FORM_NAMES = ("jpeg", "webp", "gray", "alpha", "palette", "rotated")
_ODD_NAMES = ("one_pixel", "thin")
