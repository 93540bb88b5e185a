"""The smoke test: real requests with the official OpenAI client, each turned into a :class:`~.verdict.Check`.

Three layers. Pure functions read an answer out of a response (`answer_of`, `answer_of_stream`). `Session` is the only
part that talks to the network. `run_steps` gives each step its time limit and turns whatever happens into a named
failure: no error of a server, however odd, leaves it as an exception, and no check that did not run counts as good.

What is asked, and what answer is right, comes from ``smoke_cases``; the requests that a server must refuse are here.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ansible_collections.inference.vllm.plugins.module_utils.checks import verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import images as smoke_images
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Answer, Case, ToolCall
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import Check, Scalar, Verdict

LEVELS = ("protocol", "semantic")
HTTP_STATUS = "http status"
Got = TypeVar("Got")

# Why a check can fail, and what to do. The name stands in `runbook` of a check and starts its message.
FAILURES: Mapping[str, str] = {
    "endpoint_unreachable": "Nothing takes connections there. Look whether the container runs (`docker ps -a`) and at"
    " its log; compare base_url with the published address.",
    "connection_lost": "The server closed the connection instead of answering; the engine may have died. Read the"
    " container's log and its restart count.",
    "timeout": "The server took the request and did not finish in time; /health stays green on a hung engine. Read the"
    " container's log, look at the GPU, restart the service.",
    "tls_error": "The certificate of the endpoint is not trusted or does not match its name.",
    "wrong_key": "The server does not take the key of api_key_file. Redeploy, so that both read the same file.",
    "unknown_model": "The server serves another model than the one that was asked for. Compare `model` with the served"
    " name of the release.",
    "request_refused": "The server refused a request that it must answer; its message says why. Compare its flags with"
    " the release (limit-mm-per-prompt, max-model-len, tool-call-parser).",
    "overloaded": "The server takes no more requests now. Run the check again when the load is gone.",
    "server_error": "The engine failed inside. Its log holds the traceback; out of memory is the usual reason.",
    "bad_response": "The response is not what an OpenAI-compatible server sends. Something else may listen there.",
    "no_tokens": "The engine answered without producing text. Check the weights and the chat template.",
    "text_in_reasoning": "The text is in `reasoning` and `content` is null: a reasoning parser is set for a model that"
    " does not reason. Remove the flag reasoning-parser.",
    "wrong_answer": "The engine runs, the model answers wrongly: check weights (sha256), quantisation, dtype and chat"
    " template before anything else.",
    "bad_request_accepted": "The server answered a request that it must refuse. Compare its flags with the release.",
    "client_error": "The check itself failed on the response; the message holds the reason.",
}

# The bits of a good answer that a refusal of a bad request must not be mistaken for.
_REFUSED = (400, 413, 415, 422)
GONE = ("endpoint_unreachable", "connection_lost")
# A slow first request is possible; two in a row that do not finish are a hung engine.
_HUNG_AFTER = 2
_PROBE_SECONDS = 5.0
_TEXT_SHOWN = 300


class Failure(Exception):
    """Why a check is not ok.

    Attributes:
        name: A key of :data:`FAILURES`.
        value: What was seen, for `value` of the check.
    """

    def __init__(self, name: str, message: str, value: Scalar = None) -> None:
        """Name the failure, say what was seen."""
        super().__init__(message)
        self.name = name
        self.value = value


@dataclass(frozen=True)
class Target:
    """The server under test.

    Attributes:
        base_url: Address up to and including ``/v1``.
        api_key: The key; empty for a server without one.
        model: Served name that must be there; empty takes the only one.
        level: One of :data:`LEVELS`.
        timeout: Longest time for one request from start to last byte, seconds.
        max_images: Images that one request may hold, as the server was started; one more must be refused. -1 where that
            is not known.
        strict: Whether a server fails that answers what a release of this project refuses as a policy; else it is a
            warning.
        at_once: Questions that are asked at the same time, where one has nothing to do with another.
        largest_pixels: Pixels of the largest image that clients send; 0 where nobody knows that the server has room
            for it, and it is not sent.
        cap_pixels: Pixels that the server scales larger images down to.
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str = ""
    level: str = "semantic"
    timeout: float = 60.0
    max_images: int = 4
    strict: bool = True
    at_once: int = 1
    largest_pixels: int = 0
    cap_pixels: int = 0


@dataclass(frozen=True)
class Seen:
    """What a good check saw."""

    message: str
    value: Scalar = None


@dataclass(frozen=True)
class Step:
    """One check to be run.

    Attributes:
        gate: If it fails, nothing behind it can succeed, so nothing behind it is sent.
        timeout: Longest time for the step, seconds; None takes that of one request.
        beside: Whether it may be run beside its neighbours.
    """

    code: str
    run: Callable[[Session], Seen]
    severity: str = "error"
    limit: Scalar = None
    unit: str | None = None
    gate: bool = False
    timeout: float | None = None
    beside: bool = False


# --- Answers --------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def count_of(value: object) -> int:
    """A number that a server counted; 0 for anything that is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _call(call: object) -> ToolCall:
    """One tool call; arguments that are no JSON object stay as raw text under the key ``""``."""
    function = _mapping(_mapping(call).get("function"))
    raw = function.get("arguments")
    try:
        arguments = json.loads(_text(raw))
    except ValueError:
        arguments = None
    return ToolCall(_text(function.get("name")), arguments if isinstance(arguments, Mapping) else {"": str(raw)})


def shown(answer: Answer) -> str:
    """The answer as text, for `value` of a check."""
    calls = [f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in answer.tool_calls]
    return "; ".join(calls) or answer.text


def expected(case: Case) -> str:
    """The right answer as text, for `limit` of a check."""
    if isinstance(case.expect, ToolCall):
        return shown(Answer(tool_calls=(case.expect,)))
    return case.example or json.dumps(case.expect, ensure_ascii=False)


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
    choices = _mapping(completion).get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise Failure("bad_response", f"not a chat completion: {str(completion)[:80]!r}")
    choice = _mapping(choices[0])
    message, usage = _mapping(choice.get("message")), _mapping(_mapping(completion).get("usage"))
    calls = message.get("tool_calls")
    answer = Answer(
        text=_text(message.get("content")),
        tool_calls=tuple(map(_call, calls)) if isinstance(calls, Sequence) else (),
        finish_reason=_text(choice.get("finish_reason")),
        reasoning=_text(message.get("reasoning")) or _text(message.get("reasoning_content")),
        usage_tokens=count_of(usage.get("completion_tokens")),
    )
    return _complete(answer, usage)


def answer_of_stream(chunks: Sequence[object]) -> Answer:
    """Put the chunks of a stream together.

    Raises:
        Failure: `bad_response` if the stream has no end or no usage; `no_tokens`; `text_in_reasoning`.
    """
    deltas: list[Mapping[str, Any]] = []
    finish, usage = "", _mapping(None)
    for chunk in map(_mapping, chunks):
        usage = _mapping(chunk.get("usage")) or usage
        for choice in map(_mapping, chunk.get("choices") or ()):
            deltas.append(_mapping(choice.get("delta")))
            finish = _text(choice.get("finish_reason")) or finish
    texts = [_text(delta.get("content")) for delta in deltas]
    answer = Answer(
        text="".join(texts),
        finish_reason=finish,
        reasoning="".join(_text(delta.get("reasoning")) or _text(delta.get("reasoning_content")) for delta in deltas),
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
        """Prepare the client; nothing is sent."""
        import openai  # a library of the host's venv, not of the controller

        self.target = target
        self.model = target.model
        self.engine: dict[str, Any] = {"base_url": target.base_url}
        self.max_model_len = 0
        # A proxy of the environment must not come between the check and a server on this machine.
        trust_env = not _is_loopback(urlsplit(target.base_url).hostname or "")
        self._http = openai.DefaultHttpxClient(trust_env=trust_env)
        self._client = openai.OpenAI(
            base_url=target.base_url,
            # The client insists on a key; a server without one does not look at it.
            api_key=target.api_key or "none",
            timeout=openai.Timeout(target.timeout, connect=min(target.timeout, _PROBE_SECONDS)),
            max_retries=0,
            # vLLM closes the connection after an error inside; a request that reuses it would fail through no fault.
            default_headers={"Connection": "close"},
            http_client=self._http,
        )

    def complete(self, request: Mapping[str, Any], key: str | None = None) -> Mapping[str, Any]:
        """Send a request, wait for the whole response, which is given as plain data."""
        client = self._client if key is None else self._client.with_options(api_key=key)
        response = client.chat.completions.create(**request)
        if isinstance(response, str) or not hasattr(response, "to_dict"):
            raise Failure("bad_response", f"not JSON of an OpenAI-compatible server: {str(response)[:80]!r}")
        return _mapping(response.to_dict(warnings=False))

    def chat(self, request: Mapping[str, Any], key: str | None = None) -> Answer:
        """Send a request, wait for the whole answer."""
        return answer_of(self.complete(request, key))

    def stream(self, request: Mapping[str, Any]) -> Answer:
        """Send a request, read the answer event by event."""
        return answer_of_stream(self.events(request))

    def events(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Send a request, read its stream to the end; every event as plain data."""
        return [_mapping(chunk.to_dict(warnings=False)) for chunk in self._client.chat.completions.create(**request)]

    def models(self, timeout: float) -> list[Mapping[str, Any]]:
        """What the server serves."""
        # Raw, because the client's own parser stumbles over a page that is not JSON.
        page = self._client.models.with_raw_response.list(timeout=timeout).http_response.json()
        entries = _mapping(page).get("data")
        if not isinstance(entries, list):
            raise Failure("bad_response", "the list of models is not one of an OpenAI-compatible server")
        return [_mapping(entry) for entry in entries]

    def version(self) -> str:
        """Version of the engine, as it says itself; empty if it does not say."""
        root = self.target.base_url.rstrip("/").removesuffix("/v1")
        response = self._http.get(f"{root}/version", timeout=min(self.target.timeout, _PROBE_SECONDS))
        return _text(_mapping(response.json()).get("version")) if response.status_code == HTTPStatus.OK else ""

    def metrics(self, url: str) -> str:
        """The page of the engine's metrics; empty if there is none at the address."""
        headers = {"Authorization": f"Bearer {self.target.api_key}"} if self.target.api_key else {}
        response = self._http.get(url, headers=headers, timeout=min(self.target.timeout, _PROBE_SECONDS))
        return response.text if response.status_code == HTTPStatus.OK else ""

    def answers(self) -> bool:
        """Whether something still answers at the address, whatever it says."""
        try:
            self.models(min(self.target.timeout, _PROBE_SECONDS))
        except Exception as error:
            return classify(error).name not in (*GONE, "timeout")
        return True


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from, down to the first reason."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def classify(error: BaseException) -> Failure:
    """Name whatever a client raised."""
    import openai

    if isinstance(error, Failure):
        return error
    never_connected = any(type(cause).__name__ == "ConnectTimeout" for cause in _causes(error))
    # What is asked past the client, such as the metrics, fails with the names of the HTTP library beneath it.
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
    """The server's own words, without what the client puts around them."""
    return _text(_mapping(error.body).get("message")) or _text(error.body) or str(error)


# --- The steps ------------------------------------------------------------------------------------------------------


def identity(session: Session) -> Seen:
    """The server answers, knows the key, and serves the model."""
    served = {_text(entry.get("id")): entry for entry in session.models(session.target.timeout)}
    names = ", ".join(sorted(served)) or "nothing"
    if not session.model and len(served) == 1:
        session.model = next(iter(served))
    if session.model not in served:
        raise Failure("unknown_model", f"{session.model or 'one model'!r} is wanted, the server serves {names}", names)
    session.max_model_len = count_of(served[session.model].get("max_model_len"))
    session.engine.update(
        model=session.model,
        root=_text(served[session.model].get("root")),
        max_model_len=session.max_model_len,
    )
    return Seen(f"serves {session.model}", session.model)


def _version(session: Session) -> Seen:
    version = session.version()
    if not version:
        raise Failure("bad_response", "the server does not tell its version at /version")
    session.engine["version"] = version
    return Seen(f"vLLM {version}", version)


def runs_at(case: Case, level: str) -> bool:
    """Whether a case is asked at a level: weights that mean nothing cannot be expected to decide to call a tool."""
    return level == "semantic" or case.kind != "tool"


def fits(case: Case, max_images: int) -> bool:
    """Whether a server takes as many images as a case has; one of which that is not known is asked all the same."""
    return max_images < 0 or len(case.images) <= max_images


def _protocol(case: Case, answer: Answer) -> str:
    """What can be asked of any weights: a stream that streams, and JSON that the schema's grammar forced.

    Between the words of JSON any space is allowed: weights that mean nothing may write of it until the answer is cut.
    """
    if case.kind == "stream" and answer.chunks < 2:  # noqa: PLR2004
        raise Failure("bad_response", f"the stream came in {answer.chunks} piece", answer.text)
    if case.kind == "json":
        if answer.finish_reason == "length" and answer.text.lstrip().startswith("{"):
            return "begins as JSON and is cut off; what it says is not judged at level protocol"
        try:
            keys = set(json.loads(answer.text))
        except (TypeError, ValueError) as error:
            raise Failure("bad_response", "the answer is not the JSON that the schema asks for", answer.text) from error
        missing = set((case.schema or {}).get("required", ())) - keys
        if missing:
            raise Failure("bad_response", f"the JSON lacks {', '.join(sorted(missing))}", answer.text)
    return "answered; what it says is not judged at level protocol"


def case_step(case: Case, level: str, image_url: Callable[[str], str] = smoke_images.data_url) -> Step:
    """The step that asks a case. At level `protocol` the answer needs a shape, at level `semantic` it must be right."""

    def ask(session: Session) -> Seen:
        request = smoke_cases.request(case, session.model, image_url)
        answer = session.stream(request) if case.kind == "stream" else session.chat(request)
        if level == "protocol":
            return Seen(_protocol(case, answer), shown(answer))
        ok, message = smoke_cases.judge(case, answer)
        if not ok:
            raise Failure("wrong_answer", message, shown(answer))
        return Seen(message, shown(answer))

    return Step(case.code, ask, limit=expected(case) if level == "semantic" else None, beside=True)


def _refusal(
    code: str,
    what: str,
    request: Callable[[Session], Mapping[str, Any]],
    statuses: Sequence[int] = _REFUSED,
    key: str | None = None,
) -> Step:
    """A step that sends what must be refused, and fails if it is answered or breaks the server."""

    def send(session: Session) -> Seen:
        try:
            answer = session.chat(request(session), key)
        except Exception as error:
            failure = classify(error)
            if failure.name in ("no_tokens", "text_in_reasoning"):
                raise Failure(
                    "bad_request_accepted", f"{what} was answered, with no text", HTTPStatus.OK.value
                ) from error
            if failure.value in statuses:
                return Seen(f"refused: {failure}", failure.value)
            raise Failure(failure.name, f"{what} must be refused, but: {failure}", failure.value) from error
        raise Failure("bad_request_accepted", f"{what} was answered with {shown(answer)[:60]!r}", HTTPStatus.OK.value)

    limit = statuses[0] if len(statuses) == 1 else "4xx"
    return Step(code, send, limit=limit, unit=HTTP_STATUS)


def _asking(session: Session, content: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": session.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 4,
        "temperature": 0,
        **more,
    }


def _overlong(session: Session) -> dict[str, Any]:
    """A prompt of more words than the context has tokens; a word is at least one token."""
    if not session.max_model_len:
        raise Failure("bad_response", "the server does not tell max_model_len in /v1/models")
    return _asking(session, "word " * (session.max_model_len + 1))


def _image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def refusal_steps(target: Target) -> list[Step]:
    """The requests that a well configured server refuses, each in a way that must not hurt it.

    What another server may permit, a video or more images, is a warning there.
    """
    policies = {"reject_video", "reject_too_many_images", *(() if target.api_key else ("reject_wrong_key",))}
    return [
        replace(step, severity="warning") if step.code in policies and not target.strict else step
        for step in _refusals(target.max_images)
        if target.max_images >= 0 or step.code != "reject_too_many_images"
    ]


def _refusals(max_images: int) -> list[Step]:
    picture = _image_part(smoke_images.data_url("red_circle"))
    corrupt = _image_part(f"data:image/png;base64,{base64.b64encode(b'not a PNG').decode()}")
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    local = _image_part("file:///etc/hostname")
    question = {"type": "text", "text": "What is this?"}
    many = [picture] * (max_images + 1)
    return [
        _refusal("reject_wrong_key", "a wrong key", lambda s: _asking(s, "Hello."), (401,), secrets.token_hex(16)),
        _refusal(
            "reject_unknown_model",
            "a model that is not served",
            lambda s: _asking(s, "Hello.", model="no-such-model"),
            (404,),
        ),
        _refusal("reject_video", "a video", lambda s: _asking(s, [video, question])),
        _refusal("reject_overlong_prompt", "a prompt longer than the context", _overlong),
        _refusal(
            "reject_too_many_images",
            f"a request with {max_images + 1} images",
            lambda s: _asking(s, [*many, question]),
        ),
        _refusal("reject_corrupt_image", "a corrupt image", lambda s: _asking(s, [corrupt, question])),
        _refusal(
            "reject_local_file",
            "an image from the server's own disk",
            lambda s: _asking(s, [local, question]),
            # vLLM 0.32 answers 500 here; what counts is that it reads no file.
            (*_REFUSED, 500),
        ),
    ]


def _still_answers(session: Session) -> Seen:
    answer = session.chat(_asking(session, "Hello."))
    return Seen("answers after the bad requests", shown(answer))


def steps_for(target: Target, cases: Sequence[Case] = CASES, more: Sequence[Step] = ()) -> list[Step]:
    """The whole list: who is there, what it answers, what it refuses, and whether it lived through that.

    Args:
        target: The server.
        cases: Questions with their answers.
        more: Steps that come after these, as those of ``smoke_more``.
    """
    return [
        Step("endpoint_identity", identity, limit=target.model or None, gate=True),
        Step("engine_version", _version, severity="warning"),
        *(
            case_step(case, target.level)
            for case in cases
            if runs_at(case, target.level) and fits(case, target.max_images)
        ),
        *more,
        *refusal_steps(target),
        Step("alive_after_bad_requests", _still_answers),
    ]


# --- The run --------------------------------------------------------------------------------------------------------


def within(seconds: float, function: Callable[[], Got]) -> Got:
    """Call a function, wait no longer than given.

    A client's own time limit counts from byte to byte, so a server that drips one byte a second would hold it forever.
    The thread that is left behind is a daemon and ends with the process.

    Raises:
        TimeoutError: There is no result yet.
    """
    box: list[Got | BaseException] = []

    def work() -> None:
        try:
            box.append(function())
        except BaseException as error:  # handed over to the caller's thread
            box.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise TimeoutError(f"no complete answer within {seconds:g} s")
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def _one_line(text: str) -> str:
    """Text as a report and a terminal can carry it: one line, no control characters or surrogates, not endless."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
    return clean if len(clean) <= _TEXT_SHOWN else f"{clean[:_TEXT_SHOWN]} …"


def own_words(value: Any, secret: str) -> Any:
    """What a server says about itself, fit for a report."""
    if not isinstance(value, str):
        return value
    return _one_line(value.replace(secret, "***") if secret else value)


def _check(step: Step, outcome: Seen | Failure, seconds: float, secret: str) -> Check:
    failed = isinstance(outcome, Failure)
    message = f"{outcome.name}: {outcome}" if isinstance(outcome, Failure) else outcome.message
    value = _one_line(outcome.value) if isinstance(outcome.value, str) else outcome.value
    check = Check(
        code=step.code,
        ok=not failed,
        severity=step.severity,
        message=_one_line(message),
        value=value,
        limit=step.limit,
        unit=step.unit,
        seconds=round(seconds, 3),
        runbook=outcome.name if isinstance(outcome, Failure) else None,
    )
    return verdict.redact(check, secret)


def _try(session: Session, step: Step, timeout: float) -> Seen | Failure:
    try:
        # The client gives up first, with the better message; the outer limit is for servers that drip.
        return within(timeout * 1.1, lambda: step.run(session))
    except Exception as error:
        failure = classify(error)
        if failure.name == "timeout":
            return Failure("timeout", f"no complete answer within {timeout:g} s")
        return failure


def _timed(session: Session, step: Step) -> tuple[Seen | Failure, float]:
    """What came of a step, and how many seconds it took."""
    started = time.monotonic()
    outcome = _try(session, step, step.timeout or session.target.timeout)
    return outcome, time.monotonic() - started


def batches(steps: Sequence[Step], most: int) -> Iterator[Sequence[Step]]:
    """The steps in order; neighbours that may be run beside each other together, at most so many."""
    for beside, group in itertools.groupby(steps, key=lambda step: step.beside):
        together, size = list(group), most if beside else 1
        yield from (together[place : place + size] for place in range(0, len(together), size))


def run_steps(session: Session, steps: Sequence[Step]) -> list[Check]:
    """Run all steps in order; never raises for what a server does.

    When the server is gone, hung, or not the one that was wanted, the rest is not sent: each remaining step becomes a
    check that is not ok and says why. So a dead server costs seconds, not the number of checks times the limit.
    """
    target = session.target
    checks: list[Check] = []
    stop: Failure | None = None
    hung = 0
    with ThreadPoolExecutor(max(target.at_once, 1)) as pool:
        for batch in batches(steps, max(target.at_once, 1)):
            if stop:
                checks += [_check(step, stop, 0.0, target.api_key) for step in batch]
                continue
            for step, (outcome, seconds) in zip(batch, pool.map(partial(_timed, session), batch), strict=True):
                checks.append(_check(step, outcome, seconds, target.api_key))
                hung = hung + 1 if isinstance(outcome, Failure) and outcome.name == "timeout" else 0
                if isinstance(outcome, Failure) and (
                    step.gate or hung >= _HUNG_AFTER or (outcome.name in GONE and not session.answers())
                ):
                    name = outcome.name
                    stop = stop or Failure(name, f"not run, because {step.code} saw: {outcome}")
    return checks


def run(target: Target, release: str, cases: Sequence[Case] = CASES, more: Sequence[Step] = ()) -> Verdict:
    """Run the smoke test against a server.

    Raises:
        ImportError: `openai` or `PIL` is not installed.
    """
    started = verdict.now()
    session = Session(target)
    checks = run_steps(session, steps_for(target, cases, more))
    engine = {name: own_words(value, target.api_key) for name, value in session.engine.items()}
    return Verdict(release, tuple(checks), engine, (), started, verdict.now())
