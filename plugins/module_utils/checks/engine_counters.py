"""What an engine counts of itself on its page of metrics, and what that tells of a restart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Failure, Session
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import Check
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import judge as vram_judge


def counter_of(metrics: str, name: str) -> float | None:
    """The sum of a counter over its labels, from a page of Prometheus metrics; None if it is not there."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})? ([0-9.eE+-]+)$", metrics, re.MULTILINE)
    return sum(map(float, found)) if found else None


@dataclass(frozen=True)
class Counters:
    """What the engine counts of itself; None for what it does not tell.

    Attributes:
        preemptions: Requests that it took out of its computation.
        tokens: Tokens that it has generated.
        began: When its process began, seconds since 1970.
    """

    preemptions: float | None = None
    tokens: float | None = None
    began: float | None = None

    @classmethod
    def read(cls, session: Session, url: str) -> Counters:
        """Ask the metrics; an address that does not answer tells nothing."""
        try:
            page = session.metrics(url) if url else ""
        except Exception:  # whatever the metrics come up with, the requests are what counts
            page = ""
        return cls(
            counter_of(page, "vllm:num_preemptions_total"),
            counter_of(page, "vllm:generation_tokens_total"),
            counter_of(page, "process_start_time_seconds"),
        )


def restarts_told(before: Counters, after: Counters, code: str) -> Check:
    """Restarts of an engine whose container nobody can see: by its own start, and by counters that begin again."""
    if before.tokens is None and before.began is None:
        told = "no container is named and the metrics tell nothing, so nobody can say whether the engine was restarted"
        return Check(
            code, False, "warning", f"container_unreadable: {told}", unit="restarts", runbook="container_unreadable"
        )
    if after.tokens is None and after.began is None:
        failure = Failure("metrics_missing", "the metrics were there before the requests and are not there after them")
        return vram_judge.failed(code, failure, 0, "restarts")
    fell = (after.tokens or 0) < (before.tokens or 0)
    if fell or after.began != before.began:
        failure = Failure("engine_restarted", "the engine counts from the beginning again", 1)
        return vram_judge.failed(code, failure, 0, "restarts")
    return Check(code, True, message="the engine counts on, as its metrics say", value=0, limit=0, unit="restarts")
