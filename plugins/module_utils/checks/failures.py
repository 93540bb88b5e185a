"""The named failures of all checks.

A failure has one name. It starts the message of the check, and ``docs/runbooks/<name>.md`` explains it: what it means,
how to diagnose it and how to fix it. The report embeds that text; there is no second one.
"""

from __future__ import annotations

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import HOST_CHECKS
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Scalar, Severity

NAMES = frozenset(
    {
        # Values of the host.
        *(row.failure for row in HOST_CHECKS),
        # The server and its answers: client.py, smoke/.
        "bad_request_accepted",
        "bad_response",
        "client_error",
        "connection_lost",
        "endpoint_unreachable",
        "no_tokens",
        "overloaded",
        "request_refused",
        "server_error",
        "text_in_reasoning",
        "timeout",
        "tls_error",
        "unknown_model",
        "wrong_answer",
        "wrong_key",
        # The engine, its container and its GPUs: vram/, stability.py, engine_counters.py.
        "container_unreadable",
        "engine_restarted",
        "gpu_unreadable",
        "latency_drift",
        "memory_leak",
        "memory_over_limit",
        "metrics_missing",
        "plan_missed",
        "preempted",
        # Speed: benchmark/.
        "bench_failed",
        "bench_tool_missing",
        "slower",
        # Result files: verdict.py.
        "result_empty",
        "result_missing",
        "result_of_other_release",
        "result_unreadable",
    }
)


class Failure(Exception):
    """Why a check is not ok.

    Attributes:
        name: One of :data:`NAMES`.
        value: What was measured or returned, for `value` of the check.
    """

    def __init__(self, name: str, message: str, value: Scalar = None) -> None:
        """Name the failure and describe it.

        Raises:
            ValueError: No failure has that name, so that no runbook would explain it.
        """
        if name not in NAMES:
            raise ValueError(f"unknown failure {name!r}")
        super().__init__(message)
        self.name = name
        self.value = value


def failed(
    code: str,
    failure: Failure,
    limit: Scalar = None,
    unit: str | None = None,
    *,
    severity: Severity = "error",
    seconds: float = 0.0,
) -> Check:
    """The check with that code, not ok for a named reason."""
    return Check(
        code,
        ok=False,
        severity=severity,
        message=f"{failure.name}: {failure}",
        value=failure.value,
        limit=limit,
        unit=unit,
        seconds=seconds,
        runbook=failure.name,
    )
