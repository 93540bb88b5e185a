"""The counters on an engine's metrics page, and the restarts that follow from them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check


def counter_of(metrics: str, name: str) -> float | None:
    """The sum of a counter over its labels, from a page of Prometheus metrics; None if it is not there."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})? ([0-9.eE+-]+)$", metrics, re.MULTILINE)
    return sum(map(float, found)) if found else None


@dataclass(frozen=True)
class Counters:
    """The engine's counters; None for those that it does not report.

    Attributes:
        preemptions: Requests that it preempted.
        tokens: Tokens that it has generated.
        began: Start of its process, seconds since 1970.
    """

    preemptions: float | None = None
    tokens: float | None = None
    began: float | None = None

    @classmethod
    def read(cls, session: Session, url: str) -> Counters:
        """Read the metrics; without an answer every counter is None."""
        try:
            page = session.metrics(url) if url else ""
        except Exception:  # the requests are judged, not the metrics page
            page = ""
        return cls(
            counter_of(page, "vllm:num_preemptions_total"),
            counter_of(page, "vllm:generation_tokens_total"),
            counter_of(page, "process_start_time_seconds"),
        )


def restarts_by_metrics(before: Counters, after: Counters, code: str) -> Check:
    """Restarts of an engine whose container cannot be inspected: from its start time and decreased counters."""
    unit = "restarts"
    if before.tokens is None and before.began is None:
        unknown = Failure("container_unreadable", "no container is named and there are no metrics to count restarts by")
        return failed(code, unknown, unit=unit, severity="warning")
    if after.tokens is None and after.began is None:
        return failed(code, Failure("metrics_missing", "the metrics disappeared during the check"), 0, unit)
    fell = (after.tokens or 0) < (before.tokens or 0)
    if fell or after.began != before.began:
        return failed(code, Failure("engine_restarted", "the engine's counters started again from zero", 1), 0, unit)
    return Check(code, True, message="not restarted, by its metrics", value=0, limit=0, unit=unit)
