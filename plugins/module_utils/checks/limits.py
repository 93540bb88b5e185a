"""The host checks: each value of the host, compared with its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import HOST_CHECKS, HostCheck
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Severity
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

Limits = Mapping[str, Mapping[str, float]]
_LIMITS = ("warn", "fail")


def rows_of(limits: Limits, rows: Sequence[HostCheck] = HOST_CHECKS) -> list[HostCheck]:
    """The host checks with the limits of the inventory.

    Args:
        limits: ``warn`` and ``fail`` by the code of the check, such as ``{"disk_left": {"warn": 50}}``.
        rows: The checks.

    Raises:
        RefusalError: ``bad_host_limits``: a check does not exist, or a limit is not a number of at least 0.
    """
    known = {row.code: row for row in rows}
    for code, values in limits.items():
        if code not in known:
            raise _refused(f"{code} is not a host check", f"Use one of {', '.join(known) or 'none'}.")
        if not isinstance(values, Mapping) or not values or set(values) - set(_LIMITS):
            raise _refused(f"{code} is {values!r}", "Set warn, fail or both.")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise _refused(f"{code}.{name} is {value!r}", "Set a number of at least 0.")
    return [_with(row, limits.get(row.code, {})) for row in rows]


def _with(row: HostCheck, values: Mapping[str, float]) -> HostCheck:
    return replace(row, warn=float(values.get("warn", row.warn)), fail=float(values.get("fail", row.fail)))


def _refused(problem: str, fix: str) -> RefusalError:
    return RefusalError(Refusal("bad_host_limits", f"host_limits: {problem}.", fix))


def checks_of(rows: Sequence[HostCheck], home: Path) -> list[Check]:
    """One check for each row; a value that cannot be read becomes a failed check."""
    return [_check(row, home) for row in rows]


def _check(row: HostCheck, home: Path) -> Check:
    try:
        value = round(row.measure(home), 2)
    except OSError as error:
        return failed(row.code, Failure("client_error", f"{error.filename}: {error.strerror}"), row.fail, row.unit)
    limits: tuple[tuple[float, Severity], ...] = ((row.fail, "error"), (row.warn, "warning"))
    for limit, severity in limits:
        if value < limit:
            message = f"{row.failure}: {row.what}: {value:g} {row.unit}; the limit is {limit:g} {row.unit}"
            return Check(row.code, False, severity, message, value, limit, row.unit, runbook=row.failure)
    return Check(
        row.code, True, message=f"{row.what}: {value:g} {row.unit}", value=value, limit=row.warn, unit=row.unit
    )
