"""A list of steps, run one after the other against a server, and the check that each becomes.

`run_steps` gives each step its time limit and turns whatever happens into a named failure: no error of a server leaves
it as an exception, and no step that did not run counts as good.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import client, verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Scalar, Severity

# A slow first request is possible; two in a row that do not finish are a hung engine.
HUNG_AFTER = 2
_MAX_TEXT = 300


@dataclass(frozen=True)
class Seen:
    """What a step that is ok measured or received."""

    message: str
    value: Scalar = None


@dataclass(frozen=True)
class Step:
    """One check to be run.

    Attributes:
        code: Code of the check.
        run: Asks the server. Raises what the client raises, or Failure.
        severity: Severity of the check.
        limit: What the value is compared with.
        unit: Unit of value and limit.
        gate: If it fails, no later step can succeed, so no later step is run.
        timeout: Longest time for the step, seconds; None takes that of one request.
        concurrent: Whether it may run at the same time as its neighbours.
    """

    code: str
    run: Callable[[Session], Seen]
    severity: Severity = "error"
    limit: Scalar = None
    unit: str | None = None
    gate: bool = False
    timeout: float | None = None
    concurrent: bool = False


def endpoint_step(code: str, model: str) -> Step:
    """The first step of every check: the server answers, accepts the key, and serves the model."""
    return Step(code, _identify, limit=model or None, gate=True)


def _identify(session: Session) -> Seen:
    served = {client.text_of(entry.get("id")): entry for entry in session.models(session.target.timeout)}
    names = ", ".join(sorted(served)) or "nothing"
    if not session.model and len(served) == 1:
        session.model = next(iter(served))
    if session.model not in served:
        raise Failure(
            "unknown_model", f"{session.model or 'one model'!r} is required, the server serves {names}", names
        )
    session.max_model_len = client.count_of(served[session.model].get("max_model_len"))
    session.engine.update(
        model=session.model,
        root=client.text_of(served[session.model].get("root")),
        max_model_len=session.max_model_len,
    )
    return Seen(f"serves {session.model}", session.model)


def engine_of(session: Session) -> dict[str, Any]:
    """What the server reported about itself, cleaned for `engine` of a verdict."""
    secret = session.target.api_key
    return {name: _clean(value, secret) if isinstance(value, str) else value for name, value in session.engine.items()}


def _clean(text: str, secret: str) -> str:
    return _one_line(text.replace(secret, "***") if secret else text)


def _one_line(text: str) -> str:
    """Text for a report and a terminal: one line, limited length, no control characters or surrogates."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
    return clean if len(clean) <= _MAX_TEXT else f"{clean[:_MAX_TEXT]} …"


def _check(step: Step, outcome: Seen | Failure, seconds: float, secret: str) -> Check:
    seconds = round(seconds, 3)
    if isinstance(outcome, Failure):
        check = failed(step.code, outcome, step.limit, step.unit, severity=step.severity, seconds=seconds)
    else:
        check = Check(step.code, True, step.severity, outcome.message, outcome.value, step.limit, step.unit, seconds)
    value = _one_line(check.value) if isinstance(check.value, str) else check.value
    return verdict.redact(replace(check, message=_one_line(check.message), value=value), secret)


def _try(session: Session, step: Step, timeout: float) -> Seen | Failure:
    try:
        # The client stops first, with the better message; the outer limit is for servers that send byte by byte.
        return client.within(timeout * 1.1, lambda: step.run(session))
    except Exception as error:
        failure = client.classify(error)
        if failure.name == "timeout":
            return Failure("timeout", f"no complete answer within {timeout:g} s")
        return failure


def _timed(session: Session, step: Step) -> tuple[Seen | Failure, float]:
    """The outcome of a step, and the seconds that it took."""
    started = time.monotonic()
    outcome = _try(session, step, step.timeout or session.target.timeout)
    return outcome, time.monotonic() - started


def batches(steps: Sequence[Step], size: int) -> Iterator[Sequence[Step]]:
    """The steps in order; concurrent neighbours together, at most `size` in a batch."""
    for concurrent, group in itertools.groupby(steps, key=lambda step: step.concurrent):
        neighbours, most = list(group), size if concurrent else 1
        yield from (neighbours[start : start + most] for start in range(0, len(neighbours), most))


def run_steps(session: Session, steps: Sequence[Step]) -> list[Check]:
    """Run all steps in order; errors of the server become failed checks.

    When the server is gone, hung, or not the wanted one, the remaining steps are not run: each becomes a check that is
    not ok, with the reason. So a dead server costs seconds, not the number of steps times the limit.
    """
    target = session.target
    size = max(target.concurrency, 1)
    checks: list[Check] = []
    stop: Failure | None = None
    hung = 0
    with ThreadPoolExecutor(size) as pool:
        for batch in batches(steps, size):
            if stop:
                checks += [_check(step, stop, 0.0, target.api_key) for step in batch]
                continue
            for step, (outcome, seconds) in zip(batch, pool.map(partial(_timed, session), batch), strict=True):
                checks.append(_check(step, outcome, seconds, target.api_key))
                hung = hung + 1 if isinstance(outcome, Failure) and outcome.name == "timeout" else 0
                if isinstance(outcome, Failure) and (
                    step.gate or hung >= HUNG_AFTER or (outcome.name in client.GONE and not session.answers())
                ):
                    stop = stop or Failure(outcome.name, f"not run, because {step.code} failed: {outcome}")
    return checks
