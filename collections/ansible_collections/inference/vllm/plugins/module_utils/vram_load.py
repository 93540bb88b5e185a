"""The heaviest load that a server permits: the largest images, as many at once as it computes, with long prompts.

How large that is in tokens is asked from the server itself: three small requests tell what a word and an image cost.
No image comes twice, because vLLM keeps what it has encoded and would not encode it again.
"""

from __future__ import annotations

import base64
import io
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.smoke_run import (
    Failure,
    Session,
    classify,
    count_of,
    within,
)

# Sides of Qwen3-VL's images are multiples of this many pixels.
_GRID = 32
_PROBE_SIDE = 512
_PROBE_WORDS = 64
_ANSWER_TOKENS = 4
# Share of the room that is used: what a word costs is not the same everywhere in a prompt.
_FILL = 0.97
# A server that counts fewer tokens than this share has not read what it was sent.
_COUNTED = 0.9
# A server that counts fewer tokens than this share for a large image has scaled it down.
_SCALED = 0.95


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        concurrency: Requests at once.
        rounds: How often that many are sent.
        images: Images that one request may hold.
        max_pixels: Pixels of the largest image.
        timeout: Longest time for one request, seconds.
        settle: Seconds of rest before, between and after the rounds.
    """

    concurrency: int
    rounds: int
    images: int
    max_pixels: int
    timeout: float
    settle: float

    @property
    def seconds(self) -> float:
        """The longest that all of it may take."""
        return (self.rounds + 3) * self.timeout + (self.rounds + 1) * (self.settle + 20)


@dataclass(frozen=True)
class Cost:
    """Tokens that things take in a request.

    Attributes:
        base: Of a request without words.
        word: Of one word.
        pixel: Of one pixel of an image.
        image: Of the largest image, which a server may scale down.
    """

    base: float
    word: float
    pixel: float
    image: float = math.inf


@dataclass(frozen=True)
class Shape:
    """One request: so many square images of that side in pixels, so many words, so many tokens in all."""

    images: int
    side: int
    words: int
    tokens: int


def shape_of(cost: Cost, max_model_len: int, images: int, max_pixels: int) -> Shape:
    """The heaviest request: the largest image first, then as many of them as there is room for, then words.

    An image that is longer than a request is refused before it reaches the encoder, so it is made to fit.

    Raises:
        Failure: `bad_response` if the server's own figures leave no room for anything.
    """
    room = (max_model_len - _ANSWER_TOKENS - cost.base) * _FILL
    if room < cost.word:
        raise Failure("bad_response", f"an empty request takes {cost.base:.0f} of {max_model_len} tokens, it says")
    side = _largest_side(cost, room, max_pixels) if images and cost.pixel else 0
    each = min(side**2 * cost.pixel, cost.image)
    count = min(images, math.floor(room / each)) if side else 0
    words = math.floor((room - count * each) / cost.word)
    return Shape(count, side if count else 0, words, round(cost.base + count * each + words * cost.word))


def _largest_side(cost: Cost, room: float, max_pixels: int) -> int:
    """Side of the largest image that is to be sent: one that fits, or that the server makes fit."""
    return _side_of(max_pixels if cost.image <= room else min(max_pixels, room / cost.pixel))


def _side_of(pixels: float) -> int:
    """Side of the largest square of so many pixels; 0 where not even the smallest fits."""
    return math.floor(math.sqrt(pixels)) // _GRID * _GRID


def picture(side: int) -> str:
    """A grey square that nobody has seen before, as a `data:` URL; small, because memory depends on its size only."""
    from PIL import Image  # a library of the host's venv, not of the controller

    image = Image.new("L", (side, side), secrets.randbelow(256))
    mark = Image.frombytes("L", (_GRID // 2, _GRID // 2), secrets.token_bytes(_GRID**2 // 4))
    image.paste(mark)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def request_of(model: str, images: int, side: int, words: int, answer: int = _ANSWER_TOKENS) -> dict[str, Any]:
    """A request whose answer has so many tokens; it begins with a word of its own, so that no cache knows the rest."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture(side)}} for _ in range(images)]
    content.insert(0, {"type": "text", "text": f"{secrets.randbelow(10**8):08}"})
    content.append({"type": "text", "text": " word" * words})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": answer,
        "temperature": 0,
        # What weights say to this means nothing; tokens must come all the same.
        "extra_body": {"ignore_eos": True},
    }


def tokens_of(session: Session, request: Mapping[str, Any]) -> int:
    """Send a request; the tokens of its prompt, as the server counts them.

    Raises:
        Failure: `bad_response` if the server counts no prompt, `no_tokens` if no answer.
    """
    return counted(session.complete(request).get("usage"))


def counted(usage: object) -> int:
    """Tokens of a prompt, from the `usage` of its answer.

    Raises:
        Failure: as `tokens_of`.
    """
    counts = usage if isinstance(usage, Mapping) else {}
    prompt, answer = (count_of(counts.get(f"{part}_tokens")) for part in ("prompt", "completion"))
    if not prompt:
        raise Failure("bad_response", f"usage counts no tokens of the prompt: {usage}")
    if not answer:
        raise Failure("no_tokens", "the answer has no token")
    return prompt


def cost_of(session: Session, images: int, timeout: float, max_pixels: int = 0) -> Cost:
    """Ask the server what a word and a pixel cost, and an image of so many pixels: it may scale large images down.

    Raises:
        Failure: `bad_response` if its counts do not grow with what it is sent; whatever the requests end with.
    """

    def ask(images: int, side: int, words: int) -> int:
        return within(timeout, lambda: tokens_of(session, request_of(session.model, images, side, words)))

    few = ask(0, 0, _PROBE_WORDS)
    many = ask(0, 0, 2 * _PROBE_WORDS)
    word = (many - few) / _PROBE_WORDS
    if word <= 0:
        raise Failure("bad_response", f"usage counts {few} and {many} tokens for prompts of which one is twice as long")
    if not images:
        return Cost(few - _PROBE_WORDS * word, word, 0.0)
    seen = ask(1, _PROBE_SIDE, _PROBE_WORDS)
    if seen <= few:
        raise Failure("bad_response", f"usage counts {seen} tokens with an image and {few} without")
    cost = Cost(few - _PROBE_WORDS * word, word, (seen - few) / _PROBE_SIDE**2)
    room = (session.max_model_len - _ANSWER_TOKENS - few) * _FILL
    side = _side_of(min(max_pixels, room / cost.pixel))
    if side <= _PROBE_SIDE:
        return cost
    largest = ask(1, side, _PROBE_WORDS) - few
    # Nearly as many as by the pixel: the server took the image as it is, and a larger one may take more.
    return replace(cost, image=largest) if largest < _SCALED * side**2 * cost.pixel else cost


def send(session: Session, shape: Shape, load: Load) -> list[Failure]:
    """Send one round, all requests at once; the failures."""

    def ask() -> None:
        seen = tokens_of(session, request_of(session.model, shape.images, shape.side, shape.words))
        if seen < _COUNTED * shape.tokens:
            raise Failure("bad_response", f"usage counts {seen} tokens of a prompt that has {shape.tokens}")

    outcomes = together([ask] * load.concurrency, load.timeout)
    return [classify(outcome) for outcome in outcomes if outcome is not None]


def together(calls: Sequence[Callable[[], None]], seconds: float) -> list[BaseException | None]:
    """Make calls at the same time; what each raised, None where it came back, TimeoutError where it did not in time.

    A client's own limit counts from byte to byte; the threads that are left behind end with the process.
    """
    outcomes: list[BaseException | None] = [TimeoutError(f"no complete answer within {seconds:g} s") for _ in calls]

    def work(place: int) -> None:
        try:
            calls[place]()
        except BaseException as error:  # handed over to the caller's thread
            outcomes[place] = error
        else:
            outcomes[place] = None

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(calls))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
    return list(outcomes)
