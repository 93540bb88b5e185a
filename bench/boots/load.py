"""Requests that an engine is loaded with: texts, images of one colour, and prompts of an exact length.

Standard library only. A stage is a mapping such as ``{"images": {"side": 4096, "requests": 8}}``; what it names is sent
at once.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Body = Mapping[str, Any]

MODEL = "boot"
OK = 200
_REFUSED = range(400, 500)
_TIMEOUT_S = 150


@dataclass(frozen=True)
class Answer:
    """What came back: HTTP status (0 where nothing did), tokens of the prompt, seconds, and the error if any."""

    status: int
    prompt_tokens: int
    seconds: float
    error: str = ""

    @property
    def survived(self) -> bool:
        """Whether the engine lived: it answered, or refused a request that it may refuse."""
        return self.status == OK or self.status in _REFUSED


def run_stage(port: int, stage: Mapping[str, Any], max_model_len: int) -> list[dict[str, Any]]:
    """Send all requests of one stage at once; one mapping per answer."""
    calls: list[Callable[[], Answer]] = []
    if images := stage.get("images"):
        for number in range(images.get("requests", 1)):
            body = image_chat(images["side"], number, images.get("per_request", 1), images.get("max_tokens", 32))
            calls.append(functools.partial(post, port, "/v1/chat/completions", body))
    if prompts := stage.get("prompts"):
        for number in range(prompts.get("requests", 1)):
            asked = prompts["tokens"]
            length = max_model_len - 64 if asked == "max" else min(int(asked), max_model_len - 64)
            calls.append(functools.partial(post, port, "/v1/completions", prompt(length, number)))
    for number in range(stage.get("texts", 0)):
        calls.append(functools.partial(post, port, "/v1/completions", prompt(64, 1000 + number, max_tokens=64)))
    return [asdict(answer) | {"survived": answer.survived} for answer in at_once(calls)]


def at_once(calls: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Run all calls in threads of their own; answers in the order of the calls."""
    answers: dict[int, Answer] = {}

    def one(number: int) -> None:
        answers[number] = calls[number]()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(calls))]


def post(port: int, path: str, body: Body) -> Answer:
    """Send one request; errors become an answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - loopback only
            usage = json.load(reply)["usage"]
            return Answer(reply.status, usage["prompt_tokens"], _since(start))
    except urllib.error.HTTPError as error:
        return Answer(error.code, 0, _since(start), error.read().decode(errors="replace")[:200])
    except (OSError, ValueError, KeyError) as error:
        return Answer(0, 0, _since(start), repr(error)[:200])


def prompt(tokens: int, number: int, max_tokens: int = 16) -> Body:
    """A completion of exactly so many tokens, unlike those of other numbers from the first token on.

    Only tokens of single bytes: every vocabulary has them.
    """
    ids = [40 + (number + place * 31) % 199 for place in range(tokens)]
    return {"model": MODEL, "prompt": ids, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}


def image_chat(side: int, number: int, images: int, max_tokens: int) -> Body:
    """A chat about so many images, no two of which are alike."""
    content: list[dict[str, Any]] = []
    for place in range(images):
        mixed = (number * 37 + place * 11 + side) % 256
        url = "data:image/png;base64," + base64.b64encode(png(side, (mixed, 255 - mixed, number % 256))).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": f"Describe what you see ({number})."})
    message = {"role": "user", "content": content}
    return {"model": MODEL, "messages": [message], "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}


@functools.lru_cache(maxsize=256)
def png(side: int, rgb: tuple[int, int, int]) -> bytes:
    """A square PNG of one colour."""
    packer = zlib.compressobj(1)
    line = b"\0" + bytes(rgb) * side
    data = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _since(start: float) -> float:
    return round(time.monotonic() - start, 2)
