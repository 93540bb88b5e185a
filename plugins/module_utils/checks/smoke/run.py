"""The smoke test: what is asked, what must be refused, and the order of both.

Questions and right answers are those of ``cases``; the requests that a server must refuse are here. ``client`` sends
them and ``steps`` turns each into a check.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import steps, verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import (
    HTTP_STATUS,
    REFUSED,
    Answer,
    Session,
    Target,
    ToolCall,
    classify,
    shown,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import CheckResult
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import images as smoke_images
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case
from ansible_collections.inference.vllm.plugins.module_utils.checks.steps import Seen, Step

LEVELS = ("protocol", "semantic")


@dataclass(frozen=True)
class Settings:
    """What is known of the server, and how strictly it is judged.

    Attributes:
        level: One of :data:`LEVELS`.
        max_images: Images that one request may hold, as the server was started; one more must be refused. -1 where that
            is not known.
        strict: Whether a server fails that answers what a release of this project refuses as a policy; else it is a
            warning.
        largest_pixels: Pixels of the largest image that clients send; 0 where it is not known that the server has room
            for it, and it is not sent.
        cap_pixels: Pixels that the server scales larger images down to.
    """

    level: str = "semantic"
    max_images: int = 4
    strict: bool = True
    largest_pixels: int = 0
    cap_pixels: int = 0


# --- The steps ------------------------------------------------------------------------------------------------------


def _version(session: Session) -> Seen:
    version = session.version()
    if not version:
        raise Failure("bad_response", "the server does not report its version at /version")
    session.engine["version"] = version
    return Seen(f"vLLM {version}", version)


def expected(case: Case) -> str:
    """The right answer as text, for `limit` of a check."""
    if isinstance(case.expect, ToolCall):
        return shown(Answer(tool_calls=(case.expect,)))
    return case.example or json.dumps(case.expect, ensure_ascii=False)


def runs_at(case: Case, level: str) -> bool:
    """Whether a case is asked at a level: weights that mean nothing cannot be expected to decide to call a tool."""
    return level == "semantic" or case.kind != "tool"


def fits(case: Case, max_images: int) -> bool:
    """Whether a request may hold as many images as a case has; an unknown limit is not enforced."""
    return max_images < 0 or len(case.images) <= max_images


def _protocol(case: Case, answer: Answer) -> str:
    """What any weights can do: a stream that streams, and JSON that the schema's grammar forced.

    The grammar allows any space between the tokens of JSON: random weights may write it until the answer is cut off.
    """
    if case.kind == "stream" and answer.chunks < 2:  # noqa: PLR2004
        raise Failure("bad_response", f"the stream came in {answer.chunks} piece", answer.text)
    if case.kind == "json":
        if answer.finish_reason == "length" and answer.text.lstrip().startswith("{"):
            return "begins as JSON and is cut off; the content is not judged at level protocol"
        try:
            keys = set(json.loads(answer.text))
        except (TypeError, ValueError) as error:
            raise Failure("bad_response", "the answer is not the JSON that the schema asks for", answer.text) from error
        missing = set((case.schema or {}).get("required", ())) - keys
        if missing:
            raise Failure("bad_response", f"the JSON lacks {', '.join(sorted(missing))}", answer.text)
    return "answered; the content is not judged at level protocol"


def case_step(case: Case, level: str, image_url: Callable[[str], str] = smoke_images.data_url) -> Step:
    """The step that asks a case. At level `protocol` only the form of the answer is judged."""

    def ask(session: Session) -> Seen:
        request = smoke_cases.request(case, session.model, image_url)
        answer = session.stream(request) if case.kind == "stream" else session.chat(request)
        if level == "protocol":
            return Seen(_protocol(case, answer), shown(answer))
        ok, message = smoke_cases.judge(case, answer)
        if not ok:
            raise Failure("wrong_answer", message, shown(answer))
        return Seen(message, shown(answer))

    return Step(case.code, ask, limit=expected(case) if level == "semantic" else None, concurrent=True)


def _refusal(
    code: str,
    what: str,
    request: Callable[[Session], Mapping[str, Any]],
    statuses: Sequence[int] = REFUSED,
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
        raise Failure("bad_response", "the server does not report max_model_len in /v1/models")
    return _asking(session, "word " * (session.max_model_len + 1))


def _image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def refusal_steps(target: Target, settings: Settings) -> list[Step]:
    """The requests that a well configured server refuses, and that must not harm it.

    What another server may permit, such as a video or more images, is a warning where `strict` is false.
    """
    policies = {"reject_video", "reject_too_many_images", *(() if target.api_key else ("reject_wrong_key",))}
    return [
        replace(step, severity="warning") if step.code in policies and not settings.strict else step
        for step in _refusals(settings.max_images)
        if settings.max_images >= 0 or step.code != "reject_too_many_images"
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
            (*REFUSED, 500),
        ),
    ]


def _still_answers(session: Session) -> Seen:
    answer = session.chat(_asking(session, "Hello."))
    return Seen("answers after the bad requests", shown(answer))


def steps_for(
    target: Target, settings: Settings, cases: Sequence[Case] = CASES, more: Sequence[Step] = ()
) -> list[Step]:
    """All steps: who answers, what it answers, what it refuses, and whether it survives that.

    Args:
        target: The server.
        settings: What is known of it.
        cases: Questions with their answers.
        more: Steps that come after these, such as those of ``extended``.
    """
    return [
        steps.endpoint_step("endpoint_identity", target.model),
        Step("engine_version", _version, severity="warning"),
        *(
            case_step(case, settings.level)
            for case in cases
            if runs_at(case, settings.level) and fits(case, settings.max_images)
        ),
        *more,
        *refusal_steps(target, settings),
        Step("alive_after_bad_requests", _still_answers),
    ]


# --- The run --------------------------------------------------------------------------------------------------------


def run(
    target: Target,
    release: str,
    settings: Settings,
    cases: Sequence[Case] = CASES,
    more: Sequence[Step] = (),
) -> CheckResult:
    """Run the smoke test against a server; errors of the server become failed checks.

    Raises:
        ImportError: `openai` or `PIL` is not installed.
    """
    started = verdict.now()
    session = Session(target)
    checks = steps.run_steps(session, steps_for(target, settings, cases, more))
    return CheckResult(release, tuple(checks), steps.engine_of(session), (), started, verdict.now())
