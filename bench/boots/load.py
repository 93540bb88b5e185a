"""Load for an engine: text requests, images of one colour, and prompts of an exact length.

Standard library only. A stage is a mapping such as ``{"images": {"side": 4096, "requests": 8}}``; all its requests are
sent concurrently.
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
    """Answer: HTTP status (0 without an answer), tokens of the prompt, seconds, and the error if any."""

    status: int
    prompt_tokens: int
    seconds: float
    error: str = ""

    @property
    def survived(self) -> bool:
        """Whether the engine survived: it answered, or refused the request."""
        return self.status == OK or self.status in _REFUSED


def run_stage(port: int, stage: Mapping[str, Any], max_model_len: int) -> list[dict[str, Any]]:
    """Send all requests of a stage concurrently. Returns one mapping per answer."""
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
    return [asdict(answer) | {"survived": answer.survived} for answer in concurrently(calls)]


def concurrently(calls: Sequence[Callable[[], Answer]]) -> list[Answer]:
    """Run all calls concurrently, one thread per call. Returns the answers in the order of the calls."""
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
    """Send one request. Errors are returned as an answer."""
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
    """Completion request with exactly ``tokens`` prompt tokens, which depend on ``number`` from the first token on.

    Uses only single-byte tokens, which every vocabulary has.
    """
    ids = [40 + (number + place * 31) % 199 for place in range(tokens)]
    return {"model": MODEL, "prompt": ids, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}


def image_chat(side: int, number: int, images: int, max_tokens: int) -> Body:
    """Chat request with ``images`` different images."""
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
    """Square PNG of one colour."""
    packer = zlib.compressobj(1)
    line = b"\0" + bytes(rgb) * side
    data = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _since(start: float) -> float:
    return round(time.monotonic() - start, 2)
