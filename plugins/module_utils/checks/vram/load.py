"""The heaviest load that a server permits: the largest images and long prompts that its cache holds.

The memory of a step of vLLM depends on what is computed in that step, not on the requests that wait:

* The KV cache is allocated whole at the start. A request is admitted when its prompt fits into what is free of it
  (``scheduler_reserve_full_isl``), and taken out again when answers outgrow it; neither allocates anything.
* The language model computes at most ``max_num_batched_tokens`` tokens in a step, whatever the length of a prompt.
* The encoder computes at most as many tokens of images in a step as a step has, or one image where that is larger, and
  as many are kept (``compute_mm_encoder_budget`` of ``vllm/v1/core/encoder_cache_manager.py``). An image is encoded
  whole, in the step that reaches its first token (``Scheduler._try_schedule_encoder_inputs``).
* ``GPUModelRunner.profile_run`` adds up the same: a batch of the largest images, their embeddings, a full step.

So the peak is a full step together with the largest images while the embeddings of others are kept. One round of it is
enough: each client has a largest image, and together they have as many as the encoder takes and keeps, as far as the
cache holds them together; words fill the cache, and a little more, so that one request meets its limit. Answers last as
long as the prompts are computed, or the first would leave before the last come. What is sent beyond that waits, and
takes no memory.

Small requests to the server measure how many tokens a word and an image cost.
No image is sent twice, because vLLM caches encoded images.
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
from functools import partial
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session, classify, count_of, within
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure

# Sides of Qwen3-VL's images are multiples of this many pixels.
_GRID = 32
_PROBE_SIDE = 512
_PROBE_WORDS = 64
_ANSWER_TOKENS = 4
# Share of the room that is used: what a word costs is not the same everywhere in a prompt.
_FILL = 0.97
# Tokens of the prompts, as a share of the KV cache.
_FULL = 1.05
# The least and the most that vLLM computes in a step without a configured value, in `get_batch_defaults` of its
# engine/arg_utils.py for a server on GPUs.
_LEAST_BATCH, _MOST_BATCH = 2048, 16384
# A server that counts fewer tokens than this share has not read what it was sent.
_COUNTED = 0.9
# A server that counts fewer tokens than this share for a large image has scaled it down.
_SCALED = 0.95


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        concurrency: Concurrent requests.
        rounds: How often that many are sent; words fill the cache in the first only.
        images: Images that one request may hold.
        max_pixels: Pixels of the largest image.
        timeout: Longest time for one request, seconds.
        settle: Seconds of rest before, between and after the rounds.
        batch: Tokens that the engine computes in one step; 0 where that is not known.
        capped: Whether the server is known to accept an image of this size without scaling it down.
    """

    concurrency: int
    rounds: int
    images: int
    max_pixels: int
    timeout: float
    settle: float
    batch: int = 0
    capped: bool = False

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
    """One request: number of square images, their side in pixels, number of words, tokens in total."""

    images: int
    side: int
    words: int
    tokens: int


@dataclass(frozen=True)
class Round:
    """A round of concurrent requests: a shape for each request, and the tokens of each answer."""

    shapes: tuple[Shape, ...]
    answer: int

    @property
    def images(self) -> int:
        """Images of all requests."""
        return sum(shape.images for shape in self.shapes)

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(shape.tokens for shape in self.shapes)


def round_of(cost: Cost, max_model_len: int, cache_tokens: int, load: Load, full: bool = True) -> Round:
    """The heaviest concurrent requests that a cache holds, the longest first.

    An image that is longer than a request is refused before it reaches the encoder, so it is made to fit.

    Args:
        cost: Tokens that things take.
        max_model_len: Tokens of the longest request.
        cache_tokens: Tokens of the KV cache; 0 where that is not known, for which it holds one longest request.
        load: What the server permits.
        full: Whether words fill the cache; else there are a few in addition to the images.

    Raises:
        Failure: `bad_response` if the server's own figures leave no room for anything.
    """
    many = load.concurrency
    filled = (cache_tokens or max_model_len) * _FULL
    steps = math.ceil(min(filled, many * max_model_len) / (load.batch or _LEAST_BATCH))
    answer = _ANSWER_TOKENS + min(steps, max_model_len // 8)
    room = (max_model_len - answer - cost.base) * _FILL
    if room < cost.word:
        raise Failure(
            "bad_response", f"an empty request takes {cost.base:.0f} of {max_model_len} tokens according to its usage"
        )
    side = _largest_side(cost, room, load.max_pixels) if load.images and cost.pixel else 0
    each = min(side**2 * cost.pixel, cost.image)
    images = _images_of(each, room, filled / _FULL, load) if side else 0
    few = _PROBE_WORDS * cost.word
    left = max(filled - images * each - many * (cost.base + few), 0.0) if full else 0.0
    shapes = []
    for place in range(many):
        count = images // many + (place < images % many)
        free = room - count * each
        words = math.floor(min(free, few + left) / cost.word)
        left -= max(words * cost.word - few, 0.0)
        tokens = round(cost.base + count * each + words * cost.word)
        shapes.append(Shape(count, side if count else 0, words, tokens))
    return Round(tuple(shapes), answer)


def _images_of(each: float, room: float, cache: float, load: Load) -> int:
    """Number of largest images in a round: one for each client, and as many as the encoder takes and keeps.

    Limited by what a request may hold and by the cache.
    """
    permitted = load.concurrency * min(load.images, math.floor(room / each))
    wanted = max(load.concurrency, math.ceil(2 * max(load.batch or _MOST_BATCH, each) / each))
    return min(permitted, wanted, max(math.floor(cache / each), 1))


def _largest_side(cost: Cost, room: float, max_pixels: int) -> int:
    """Side of the largest image that is to be sent: one that fits, or that the server makes fit."""
    return side_of(max_pixels if cost.image <= room else min(max_pixels, room / cost.pixel))


def side_of(pixels: float) -> int:
    """Side of the largest square that has at most `pixels` pixels; 0 if not even the smallest fits."""
    return math.floor(math.sqrt(pixels)) // _GRID * _GRID


def picture(side: int) -> str:
    """A grey square that is in no cache, as a `data:` URL; small, because memory depends on its size only."""
    from PIL import Image  # a library of the host's venv, not of the controller

    image = Image.new("L", (side, side), secrets.randbelow(256))
    mark = Image.frombytes("L", (_GRID // 2, _GRID // 2), secrets.token_bytes(_GRID**2 // 4))
    image.paste(mark)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def request_of(model: str, images: int, side: int, words: int, answer: int = _ANSWER_TOKENS) -> dict[str, Any]:
    """A request whose answer has `answer` tokens. It begins with a unique word, so that no prefix cache matches."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture(side)}} for _ in range(images)]
    content.insert(0, {"type": "text", "text": f"{secrets.randbelow(10**8):08}"})
    content.append({"type": "text", "text": " word" * words})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": answer,
        "temperature": 0,
        # The answer has no meaning, but it must have tokens.
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
    """Measure the tokens of a word, a pixel and a large image, which the server may scale down.

    With 0 pixels that is not asked.

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
    side = side_of(min(max_pixels, room / cost.pixel))
    if side <= _PROBE_SIDE:
        return cost
    largest = ask(1, side, _PROBE_WORDS) - few
    # Nearly as many as by the pixel: the server took the image as it is, and a larger one may take more.
    return replace(cost, image=largest) if largest < _SCALED * side**2 * cost.pixel else cost


def send(session: Session, sent: Round, timeout: float) -> list[Failure]:
    """Send one round of concurrent requests; returns the failures."""

    def ask(shape: Shape) -> None:
        request = request_of(session.model, shape.images, shape.side, shape.words, sent.answer)
        seen = tokens_of(session, request)
        if seen < _COUNTED * shape.tokens:
            raise Failure("bad_response", f"usage counts {seen} tokens of a prompt that has {shape.tokens}")

    outcomes = together([partial(ask, shape) for shape in sent.shapes], timeout)
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
