"""The client of an OpenAI-compatible server that all checks use.

Pure functions read an answer out of a response (`answer_of`, `answer_of_stream`). `Session` is the only part that talks
to the network. `classify` turns whatever a client raises into a named failure.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure

HTTP_STATUS = "http status"
# Failures after which the server may be gone.
GONE = ("endpoint_unreachable", "connection_lost")
# Status codes of a server that rejects a request and keeps working.
REFUSED = (400, 413, 415, 422)

Result = TypeVar("Result")

_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Target:
    """The server under test.

    Attributes:
        base_url: Address up to and including ``/v1``.
        api_key: The key; empty for a server without one.
        model: Served name that must be there; empty takes the only one.
        timeout: Longest time for one request from start to last byte, seconds.
        concurrency: Independent requests that are sent at the same time.
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str = ""
    timeout: float = 60.0
    concurrency: int = 1


@dataclass(frozen=True)
class ToolCall:
    """A call of one function, expected or returned.

    Attributes:
        name: The function's name.
        arguments: Its arguments, decoded from JSON.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A chat completion, reduced to what a check needs.

    Attributes:
        text: ``message.content``, or the joined deltas of a stream; empty if there was none.
        tool_calls: The calls, arguments decoded; a call whose arguments are no JSON object has the raw text under
            the key ``""``.
        finish_reason: ``stop``, ``length``, ``tool_calls``, ...
        reasoning: Text that came back as reasoning instead of content.
        chunks: Number of streamed deltas that carried text; 0 if not streamed.
        usage_tokens: ``usage.completion_tokens``; None if no usage came back.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    reasoning: str = ""
    chunks: int = 0
    usage_tokens: int | None = None


# --- Reading answers ------------------------------------------------------------------------------------------------


def text_of(value: object) -> str:
    """A text that a server sent; empty for anything else."""
    return value if isinstance(value, str) else ""


def count_of(value: object) -> int:
    """A number that a server counted; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def mapping_of(value: object) -> Mapping[str, Any]:
    """A JSON object that a server sent; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def _call(call: object) -> ToolCall:
    """One tool call; arguments that are no JSON object stay as raw text under the key ``""``."""
    function = mapping_of(mapping_of(call).get("function"))
    raw = function.get("arguments")
    try:
        arguments = json.loads(text_of(raw))
    except ValueError:
        arguments = None
    return ToolCall(text_of(function.get("name")), arguments if isinstance(arguments, Mapping) else {"": str(raw)})


def shown(answer: Answer) -> str:
    """The answer as text, for `value` of a check."""
    calls = [f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in answer.tool_calls]
    return "; ".join(calls) or answer.text


def _complete(answer: Answer, usage: Mapping[str, Any]) -> Answer:
    """The answer, if it carries text or a call, has an end, and the engine counted its tokens."""
    if not answer.text.strip() and not answer.tool_calls:
        if answer.reasoning.strip():
            start = answer.reasoning[:80]
            raise Failure("text_in_reasoning", f"content is empty, reasoning holds {start!r}", answer.reasoning)
        raise Failure("no_tokens", f"the answer is empty (finish_reason {answer.finish_reason or 'missing'})", "")
    if not answer.finish_reason:
        raise Failure("bad_response", "finish_reason is missing: the answer was cut off", shown(answer))
    if count_of(usage.get("prompt_tokens")) < 1 or count_of(usage.get("completion_tokens")) < 1:
        raise Failure("bad_response", f"an answer with text, but usage counts no tokens: {dict(usage)}", shown(answer))
    return answer


def answer_of(completion: object) -> Answer:
    """Read a chat completion, given as plain data.

    Raises:
        Failure: `bad_response`, `no_tokens` or `text_in_reasoning`.
    """
    choices = mapping_of(completion).get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise Failure("bad_response", f"not a chat completion: {str(completion)[:80]!r}")
    choice = mapping_of(choices[0])
    message, usage = mapping_of(choice.get("message")), mapping_of(mapping_of(completion).get("usage"))
    calls = message.get("tool_calls")
    answer = Answer(
        text=text_of(message.get("content")),
        tool_calls=tuple(map(_call, calls)) if isinstance(calls, Sequence) else (),
        finish_reason=text_of(choice.get("finish_reason")),
        reasoning=text_of(message.get("reasoning")) or text_of(message.get("reasoning_content")),
        usage_tokens=count_of(usage.get("completion_tokens")),
    )
    return _complete(answer, usage)


def answer_of_stream(chunks: Sequence[object]) -> Answer:
    """Put the chunks of a stream together.

    Raises:
        Failure: `bad_response` if the stream has no end or no usage; `no_tokens`; `text_in_reasoning`.
    """
    deltas: list[Mapping[str, Any]] = []
    finish, usage = "", mapping_of(None)
    for chunk in map(mapping_of, chunks):
        usage = mapping_of(chunk.get("usage")) or usage
        for choice in map(mapping_of, chunk.get("choices") or ()):
            deltas.append(mapping_of(choice.get("delta")))
            finish = text_of(choice.get("finish_reason")) or finish
    texts = [text_of(delta.get("content")) for delta in deltas]
    reasoning = [text_of(delta.get("reasoning")) or text_of(delta.get("reasoning_content")) for delta in deltas]
    answer = Answer(
        text="".join(texts),
        finish_reason=finish,
        reasoning="".join(reasoning),
        chunks=sum(bool(text) for text in texts),
        usage_tokens=count_of(usage.get("completion_tokens")),
    )
    return _complete(answer, usage)


# --- The network ----------------------------------------------------------------------------------------------------


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return False


class Session:
    """A client of one server. Every method may raise what the client raises; `classify` names it."""

    def __init__(self, target: Target) -> None:
        """Prepare the client; nothing is sent.

        Raises:
            ImportError: `openai` is not installed.
        """
        import openai  # a library of the host's venv, not of the controller

        self.target = target
        self.model = target.model
        self.engine: dict[str, Any] = {"base_url": target.base_url}
        self.max_model_len = 0
        # A server on this machine must not be reached through a proxy of the environment.
        trust_env = not _is_loopback(urlsplit(target.base_url).hostname or "")
        self._http = openai.DefaultHttpxClient(trust_env=trust_env)
        self._client = openai.OpenAI(
            base_url=target.base_url,
            # The client requires a key; a server without one ignores it.
            api_key=target.api_key or "none",
            timeout=openai.Timeout(target.timeout, connect=min(target.timeout, _PROBE_SECONDS)),
            max_retries=0,
            # vLLM closes the connection after an internal error; a request that reused it would fail.
            default_headers={"Connection": "close"},
            http_client=self._http,
        )

    def complete(self, request: Mapping[str, Any], key: str | None = None) -> Mapping[str, Any]:
        """Send a request, wait for the whole response, which is returned as plain data."""
        client = self._client if key is None else self._client.with_options(api_key=key)
        response = client.chat.completions.create(**request)
        if isinstance(response, str) or not hasattr(response, "to_dict"):
            raise Failure("bad_response", f"not JSON of an OpenAI-compatible server: {str(response)[:80]!r}")
        return mapping_of(response.to_dict(warnings=False))

    def chat(self, request: Mapping[str, Any], key: str | None = None) -> Answer:
        """Send a request, wait for the whole answer."""
        return answer_of(self.complete(request, key))

    def stream(self, request: Mapping[str, Any]) -> Answer:
        """Send a request, read the answer event by event."""
        return answer_of_stream(self.events(request))

    def events(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Send a request, read its stream to the end; every event as plain data."""
        return [mapping_of(chunk.to_dict(warnings=False)) for chunk in self._client.chat.completions.create(**request)]

    def models(self, timeout: float) -> list[Mapping[str, Any]]:
        """The models that the server serves."""
        # Raw, because the client's own parser fails on a page that is not JSON.
        page = self._client.models.with_raw_response.list(timeout=timeout).http_response.json()
        entries = mapping_of(page).get("data")
        if not isinstance(entries, list):
            raise Failure("bad_response", "the list of models is not one of an OpenAI-compatible server")
        return [mapping_of(entry) for entry in entries]

    @property
    def root(self) -> str:
        """Address of the server without ``/v1``."""
        return self.target.base_url.rstrip("/").removesuffix("/v1")

    def get(self, url: str) -> Any:
        """Send a GET request without the client of the OpenAI API; returns the response of the HTTP library."""
        headers = {"Authorization": f"Bearer {self.target.api_key}"} if self.target.api_key else {}
        return self._http.get(url, headers=headers, timeout=min(self.target.timeout, _PROBE_SECONDS))

    def version(self) -> str:
        """Version that the engine reports; empty if it reports none."""
        response = self.get(f"{self.root}/version")
        return text_of(mapping_of(response.json()).get("version")) if response.status_code == HTTPStatus.OK else ""

    def metrics(self, url: str) -> str:
        """The engine's metrics page; empty if there is none at the address."""
        response = self.get(url)
        return text_of(response.text) if response.status_code == HTTPStatus.OK else ""

    def answers(self) -> bool:
        """Whether anything still answers at the address."""
        try:
            self.models(min(self.target.timeout, _PROBE_SECONDS))
        except Exception as error:
            return classify(error).name not in (*GONE, "timeout")
        return True


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call a function and wait for its result for a limited time.

    A client's own time limit counts from byte to byte, so a server that drips one byte a second would hold it forever.
    The thread that is left behind is a daemon and ends with the process.

    Raises:
        TimeoutError: There is no result yet.
    """
    box: list[Result | BaseException] = []

    def work() -> None:
        try:
            box.append(function())
        except BaseException as error:  # raised again in the caller's thread
            box.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise TimeoutError(f"no complete answer within {seconds:g} s")
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


# --- Classification of errors ---------------------------------------------------------------------------------------


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, down to the first one."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def classify(error: BaseException) -> Failure:
    """The named failure for an exception of a client."""
    import openai

    if isinstance(error, Failure):
        return error
    never_connected = any(type(cause).__name__ == "ConnectTimeout" for cause in _causes(error))
    # Requests that bypass the client, such as the metrics, fail with exceptions of the HTTP library.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    timed_out = isinstance(error, (openai.APITimeoutError, TimeoutError)) or "TimeoutException" in kinds
    if timed_out and not never_connected:
        return Failure("timeout", str(error))
    if isinstance(error, openai.APIConnectionError) or "TransportError" in kinds:
        return _connection_failure(error)
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error.status_code, _server_message(error))
    if isinstance(error, (openai.APIError, json.JSONDecodeError, UnicodeDecodeError)):
        return Failure("bad_response", f"the response cannot be read: {error}")
    return Failure("client_error", f"{type(error).__name__}: {error}")


def _connection_failure(error: BaseException) -> Failure:
    chain = list(_causes(error))
    reason = str(chain[-1]) or type(chain[-1]).__name__
    if any(isinstance(cause, ssl.SSLError) for cause in chain):
        return Failure("tls_error", reason)
    refused = any(type(cause).__name__ in ("ConnectError", "ConnectTimeout") for cause in chain)
    return Failure("endpoint_unreachable" if refused else "connection_lost", reason)


def _status_failure(status: int, message: str) -> Failure:
    names = {401: "wrong_key", 403: "wrong_key", 404: "unknown_model", 429: "overloaded", 503: "overloaded"}
    default = "server_error" if status >= 500 else "request_refused"  # noqa: PLR2004
    return Failure(names.get(status, default), f"HTTP {status}: {message}", status)


def _server_message(error: Any) -> str:
    """The server's message, without what the client adds to it."""
    return text_of(mapping_of(error.body).get("message")) or text_of(error.body) or str(error)
