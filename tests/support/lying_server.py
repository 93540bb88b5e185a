"""An HTTP server that speaks the OpenAI protocol like vLLM, and lies on request.

It tests the checker, not the engine: each lie is a way in which a broken deployment looks healthy. Without a lie it
gives the right answer to every smoke case, found by the question and the pictures, and refuses what vLLM refuses.
"""

from __future__ import annotations

import base64
import json
import math
import re
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import ToolCall
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import extended
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case

KEY = "sk-the-secret-of-the-test"
MODEL = "tiny-qwen3-vl"
MAX_IMAGES = 4
MAX_MODEL_LEN = 512
KV_CACHE_TOKENS = 16_000
# Tokens of the largest image, where a server scales images down.
IMAGE_CAP = 300
# Pixels of the largest image that a server without a cap lives through.
LARGE = 512 * 512
# Seconds for which the server of a dead engine goes on to answer.
_LEAVES_AFTER = 0.3

# Lies, and what each pretends.
LIES = {
    "": "none: the honest server",
    "hang": "health and models are green, completions never come",
    "drip": "sends one byte of the answer after another, for ever",
    "hang_once": "the first completion never comes, the others do",
    "wrong": "right JSON, wrong answers",
    "blind": "answers by the question alone, whatever the picture",
    "error_500": "every completion is HTTP 500",
    "html": "completions are an HTML page with status 200",
    "html_everywhere": "every path is an HTML page with status 200",
    "cut_json": "the body is half a JSON document",
    "no_choices": "a completion without choices",
    "odd_types": "a completion whose fields have wrong types",
    "reasoning": "content is null, the text is in reasoning",
    "empty": "an empty answer",
    "no_usage": "no token counts",
    "no_end": "no finish_reason",
    "one_chunk": "a stream that comes in one piece",
    "cut_stream": "a stream that breaks off",
    "no_stream": "a plain completion where a stream was asked for",
    "tool_as_text": "tool calls as text",
    "open": "takes every key",
    "any_model": "answers to every model name",
    "anything_goes": "answers what must be refused",
    "reads_files": "answers about a file of the server's own disk",
    "other_model": "serves another model",
    "two_models": "serves two models",
    "odd_name": "serves a model whose name holds the key and control characters",
    "dies_midway": "stops listening after a few answers",
    "dies_of_corrupt_image": "stops listening when a picture is corrupt",
    "resets": "closes the connection instead of answering",
    "echoes_key": "puts the key that it was sent into its error messages",
    "surrogate": "answers with text that is not valid Unicode",
    "no_version": "does not tell its version",
    "refuses_all": "answers every completion with 400",
    "busy": "answers every completion with 429",
    "wrong_key": "takes another key than the one of the test",
    "endless": "answers, and never stops sending",
    "scales": "honest, but takes no more tokens for an image than a cap on its pixels leaves",
    "drops_kept": "honest, but closes a connection that a client keeps for later without a word",
}

# Lies that only the memory check can notice.
MEMORY_LIES = {
    "no_metrics": "has no page of metrics",
    "odd_metrics": "has metrics, but not those of vLLM",
    "small_cache": "has half the KV cache that was planned",
    "counts_nothing": "says the same number of tokens for every prompt",
    "skips_images": "counts no tokens for images",
    "truncates": "cuts long prompts without a word",
    "fails_and_leaves": "every completion is HTTP 500, and a moment later nothing is answered: its engine has died",
    "dies_of_large_image": "stops listening when a picture has more than 512 x 512 pixels, as an engine without a cap",
}

# Lies that only the stability check can notice.
STABILITY_LIES = {
    "preempts": "begins requests again",
    "forgets": "counts from the beginning again after some requests, as an engine that was restarted",
    "fails_at_times": "every seventh completion is HTTP 500",
}

# Lies that only the long list of the smoke test can notice.
MORE_LIES = {
    "ignores_tool_choice": "answers in words where a call was demanded",
    "one_call": "makes one call where two were wanted",
    "no_logprobs": "leaves log probabilities out",
    "ignores_stop": "goes on after a stop word",
    "dice": "answers differently each time",
    "png_only": "refuses every image that is no PNG",
    "dies_of_one_pixel": "stops listening when a picture has one pixel",
    "swaps": "answers about the images of another question",
    "babbles": "has weights that mean nothing: JSON and calls that it is forced to write are cut off",
}
TALK = "1 2 3 4 5 6 7 8 9"


def question_of(messages: Any) -> tuple[str, tuple[str, ...], bool]:
    """Text, image URLs, and whether there is a video, of a request's last message."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content, (), False
    texts = [part["text"] for part in content if part["type"] == "text"]
    images = tuple(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    return "".join(texts), images, any(part["type"] == "video_url" for part in content)


def tokens_of(messages: Any, most: int = 10**9) -> int:
    """Tokens of a request: one for a word, and for an image those of Qwen3-VL, one for 32 x 32 pixels and two more, at
    most ``most``."""
    text, images, _ = question_of(messages)
    heads = [base64.b64decode(url.partition(",")[2][:32]) for url in images if url.startswith("data:image/png")]
    sizes = [struct.unpack(">II", head[16:24]) for head in heads if head.startswith(b"\x89PNG")]
    pictures = sum(min(int(width * height) // 32**2 + 2, most) for width, height in sizes)
    return 5 + len(text.split()) + pictures


@cache
def _answers(blind: bool) -> dict[Any, Case]:
    """The case for each question; for a blind server, the first case with that text."""
    table: dict[Any, Case] = {}
    for case in (*CASES, *extended.EXTENDED_CASES):
        urls = () if blind else tuple(map(extended.data_url, case.images))
        before = tuple(text for _, text in case.turns) + ((case.system,) if case.system else ())
        table.setdefault((case.prompt, urls, frozenset(before)), case)
    return table


@dataclass
class Lie:
    """What the server does, and what it has done."""

    name: str = ""
    completions: int = 0
    failed_at: float = 0.0
    release: threading.Event = field(default_factory=threading.Event)
    stop_listening: Any = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    lie: Lie
    cases: Mapping[Any, Case]

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def _send(self, status: int, body: str | bytes, content_type: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"error": {"message": message, "type": "BadRequestError", "code": status}}))

    def _authorised(self) -> bool:
        wanted = "another-key" if self.lie.name == "wrong_key" else KEY
        return self.lie.name == "open" or self.headers.get("Authorization") == f"Bearer {wanted}"

    def do_GET(self) -> None:
        lie = self.lie.name
        if lie == "fails_and_leaves" and self.lie.failed_at and time.monotonic() > self.lie.failed_at + _LEAVES_AFTER:
            self.close_connection = True
        elif lie == "html_everywhere":
            self._send(200, "<html>It works!</html>", "text/html")
        elif self.path == "/health":
            self._send(200, "")
        elif self.path == "/version" and lie != "no_version":
            self._send(200, json.dumps({"version": "0.32.0"}))
        elif self.path == "/metrics" and lie != "no_metrics":
            blocks = KV_CACHE_TOKENS // 16 // (2 if lie == "small_cache" else 1)
            name = "node_cpu_info" if lie == "odd_metrics" else "vllm:cache_config_info"
            labels = f'block_size="16",cache_dtype="auto",kv_cache_size_tokens="None",num_gpu_blocks="{blocks}"'
            self._send(200, f"# TYPE {name} gauge\n{name}{{{labels}}} 1.0\n{self._counters(name)}", "text/plain")
        elif self.path != "/v1/models":
            self._error(404, "Not Found")
        elif not self._authorised():
            self._error(
                401, f"Unauthorized: {self.headers.get('Authorization')}" if lie == "echoes_key" else "Unauthorized"
            )
        else:
            names = {"other_model": ["llama"], "odd_name": [f"\x1b[31m{KEY}"], "two_models": [MODEL, "llama"]}.get(
                lie, [MODEL]
            )
            models = [
                {"id": name, "object": "model", "max_model_len": MAX_MODEL_LEN, "root": "/model"} for name in names
            ]
            self._send(200, json.dumps({"object": "list", "data": models}))

    def _counters(self, name: str) -> str:
        """Counters of the engine, on its page of metrics."""
        lie, count = self.lie.name, self.lie.completions
        if name == "node_cpu_info":
            return ""
        preempted = count if lie == "preempts" else 0
        tokens = 3 * count if lie != "forgets" else 1000 - 3 * count
        return "".join(
            f'vllm:{name}_total{{engine="0",model_name="{MODEL}"}} {value:.1f}\n'
            for name, value in (("num_preemptions", preempted), ("generation_tokens", tokens))
        )

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with suppress(BrokenPipeError, ConnectionResetError):
            self._complete(request)
        if self.lie.name == "drops_kept" and not self.close_connection:
            time.sleep(0.05)
            self.close_connection = True

    def _complete(self, request: Mapping[str, Any]) -> None:
        if self.lie.name == "html_everywhere":
            self._send(200, "<html>It works!</html>", "text/html")
            return
        refusal = self._refusal(request)
        if refusal:
            self._error(*refusal)
            return
        self.lie.completions += 1
        if not self._misbehaved():
            *before, _ = request["messages"]
            text, images, _ = question_of(request["messages"])
            earlier = frozenset(message["content"] for message in before)
            key = (text, () if self.lie.name == "blind" else images, earlier)
            if self.lie.name == "swaps":
                case = self.cases.get(key)
                others = [other for other in self.cases.values() if case and other.group == case.group]
                self._answer(request, next((other for other in others if other != case), case))
            else:
                self._answer(request, self.cases.get(key))

    def _refusal(self, request: Mapping[str, Any]) -> tuple[int, str] | None:
        """Status and message for what vLLM refuses."""
        lie = self.lie.name
        _, images, video = question_of(request["messages"])
        if not self._authorised():
            return 401, "Unauthorized"
        if request["model"] != MODEL and lie != "any_model":
            return 404, f"The model `{request['model']}` does not exist."
        corrupt = any("bm90IGEgUE5H" in url for url in images)
        if corrupt and lie == "dies_of_corrupt_image":
            self.lie.stop_listening()
            self.close_connection = True
            raise ConnectionResetError
        sizes = [base64.b64decode(url.partition(",")[2][:32])[16:24] for url in images]
        large = any(math.prod(struct.unpack(">II", size)) > LARGE for size in sizes if len(size) == 8)
        if (lie == "dies_of_one_pixel" and struct.pack(">II", 1, 1) in sizes) or (
            lie == "dies_of_large_image" and large
        ):
            self.lie.stop_listening()
            self.close_connection = True
            raise ConnectionResetError
        if lie == "png_only" and any(not url.startswith("data:image/png") for url in images):
            return 400, "cannot identify image file"
        found = {
            "At most 0 video(s) may be provided in one prompt.": video,
            f"At most {MAX_IMAGES} image(s) may be provided in one prompt.": len(images) > MAX_IMAGES,
            "cannot identify image file": corrupt,
            "Cannot load local files without --allowed-local-media-path.": lie != "reads_files"
            and any(url.startswith("file:") for url in images),
            f"This model's maximum context length is {MAX_MODEL_LEN} tokens.": lie != "truncates"
            and tokens_of(request["messages"], IMAGE_CAP if lie == "scales" else 10**9) + request.get("max_tokens", 0)
            > MAX_MODEL_LEN,
        }
        if lie == "anything_goes" or not any(found.values()):
            return None
        return 400, next(message for message, true in found.items() if true)

    def _misbehaved(self) -> bool:
        """Do what a lie does in place of an answer; whether it did."""
        lie, count = self.lie.name, self.lie.completions
        statuses = {"error_500": 500, "fails_and_leaves": 500, "refuses_all": 400, "busy": 429}
        if lie in statuses:
            self.lie.failed_at = self.lie.failed_at or time.monotonic()
            self._error(statuses[lie], "EngineCore encountered an issue.")
        elif lie == "fails_at_times" and count % 7 == 0:
            self._error(500, "EngineCore encountered an issue.")
        elif lie == "echoes_key":
            self._error(500, f"request was {self.headers.get('Authorization')}")
        elif lie == "html":
            self._send(200, "<html>login</html>", "text/html")
        elif lie == "cut_json":
            self._send(200, '{"id": "1", "object": "chat.completion", "choi')
        elif lie == "no_choices":
            self._send(200, '{"id": "1", "object": "chat.completion", "choices": []}')
        elif lie == "odd_types":
            self._send(200, '{"id": 7, "choices": [{"message": ["Hello!"], "finish_reason": 3}], "usage": "many"}')
        elif lie == "hang" or (lie == "hang_once" and count == 1):
            self.lie.release.wait(30)
            self.close_connection = True
        elif lie in ("drip", "endless"):
            self._drip(0.05 if lie == "drip" else 0.0)
        elif lie == "resets":
            self.close_connection = True
        elif lie == "dies_midway" and count == 4:
            self.lie.stop_listening()
            self.close_connection = True
        else:
            return False
        return True

    def _drip(self, pause: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(10**9))
        self.end_headers()
        self.close_connection = True
        while not self.lie.release.wait(pause or 0.001):
            self.wfile.write(b" ")
            self.wfile.flush()

    def _answer(self, request: Mapping[str, Any], case: Case | None) -> None:
        lie = self.lie.name
        text, call = "Hello!", None
        if case and isinstance(case.expect, ToolCall):
            call = case.expect
        elif case:
            text = case.example or json.dumps(case.expect)
        question = question_of(request["messages"])[0]
        if question == "Count from 1 to 9.":
            text = TALK if lie != "dice" else f"{self.lie.completions} {TALK}"
        if request.get("tool_choice") not in (None, "auto", "none") and lie != "ignores_tool_choice":
            call = ToolCall("get_weather", {"city": "Paris"})
        stop = (request.get("stop") or [None])[0]
        if stop and lie != "ignores_stop":
            text = text.partition(stop)[0]
        if lie == "wrong":
            text, call = "maybe", None
        elif lie == "surrogate":
            text = "\ud800 \x1b[31m\x00"
        if lie == "empty":
            text, call = "", None
        if lie == "tool_as_text" and call:
            text = f'<tool_call>\n{{"name": "{call.name}", "arguments": {json.dumps(call.arguments)}}}\n</tool_call>'
            call = None
        if request.get("stream") and lie != "no_stream":
            self._stream(text)
        else:
            body = self._completion(text, call, self._counted(request["messages"]))
            self._embellish(body, request, question)
            self._send(200, json.dumps(body))

    def _embellish(self, body: dict[str, Any], request: Mapping[str, Any], question: str) -> None:
        """What only some requests ask for: log probabilities, and a second call."""
        choice = body["choices"][0]
        if self.lie.name == "babbles" and "response_format" in request:
            choice |= {"message": {"role": "assistant", "content": '{"colour":   '}, "finish_reason": "length"}
        if self.lie.name == "babbles" and request.get("tool_choice") == "required":
            choice |= {"message": {"role": "assistant", "content": None}, "finish_reason": "length"}
        if request.get("logprobs") and self.lie.name != "no_logprobs":
            top = [{"token": word, "logprob": -0.1} for word in ("Hello", "Hi")]
            choice["logprobs"] = {"content": [{"token": "Hello", "logprob": -0.1, "top_logprobs": top}]}
        if "both at once" in question:
            cities = ("Paris",) if self.lie.name == "one_call" else ("Tokyo", "Paris")
            choice["message"] = {"role": "assistant", "content": None} | {
                "tool_calls": [
                    {
                        "id": city,
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
                    }
                    for city in cities
                ]
            }

    def _counted(self, messages: Any) -> int:
        """Tokens of the prompt, as the server says."""
        lie, count = self.lie.name, tokens_of(messages)
        if lie == "counts_nothing":
            return 9
        if lie == "scales":
            return tokens_of(messages, most=IMAGE_CAP)
        if lie == "skips_images":
            return 5 + len(question_of(messages)[0].split())
        return min(count, 400) if lie == "truncates" else count

    def _completion(self, text: str, call: ToolCall | None, prompt: int) -> dict[str, Any]:
        lie = self.lie.name
        message: dict[str, Any] = {"role": "assistant", "content": None if call else text}
        if lie == "reasoning" and not call:
            message |= {"content": None, "reasoning": text}
        if call:
            function = {"name": call.name, "arguments": json.dumps(call.arguments)}
            message["tool_calls"] = [{"id": "call-1", "type": "function", "function": function}]
        finish = None if lie == "no_end" else "tool_calls" if call else "stop"
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3},
        }
        if lie == "no_usage":
            del body["usage"]
        return body

    def _stream(self, text: str) -> None:
        lie = self.lie.name
        pieces = [text] if lie == "one_chunk" else re.findall(r"\S+\s*|\s+", text)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for piece in pieces[:2] if lie == "cut_stream" else pieces:
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if lie == "cut_stream":
            return
        if lie != "no_end":
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if lie != "no_usage":
            self._event(
                {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9}}
            )
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: Mapping[str, Any]) -> None:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        self.wfile.write(f"data: {json.dumps({**head, **data})}\n\n".encode())
        self.wfile.flush()


@contextmanager
def lying_server(name: str = "", certificate: Path | None = None) -> Iterator[str]:
    """Serve on a free port of the loopback; yields the base URL, which ends in ``/v1``.

    A certificate is a file that also holds its private key; with it the server speaks TLS.
    """
    lie = Lie(name)
    assert name in LIES | MEMORY_LIES | STABILITY_LIES | MORE_LIES, name
    handler = type("Handler", (_Handler,), {"lie": lie, "cases": _answers(name == "blind")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # The answering thread does the handshake, so that a client that aborts it does not block others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def stop_listening() -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()
        server.socket.close()

    lie.stop_listening = stop_listening
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/v1"
    finally:
        lie.release.set()
        server.shutdown()
        server.server_close()
