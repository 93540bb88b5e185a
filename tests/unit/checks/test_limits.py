"""Host checks: a value below a limit is a named failure, and limits that cannot be used are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks import limits
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import NAMES
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import HOST_CHECKS, HostCheck
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError


def size_of(home: Path) -> float:
    """Bytes of a file, so that a test can choose the value."""
    return float((home / "file").stat().st_size)


ROW = HostCheck("file_size", size_of, "size of the file", "bytes", warn=20, fail=10, failure="result_empty")


@pytest.mark.parametrize(
    ("size", "ok", "severity", "limit"),
    [
        (20, True, "error", 20),
        (19, False, "warning", 20),
        (10, False, "warning", 20),
        (9, False, "error", 10),
        (0, False, "error", 10),
    ],
)
def test_a_value_below_a_limit_is_a_warning_or_a_failure(
    tmp_path: Path, size: int, ok: bool, severity: str, limit: float
) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    (check,) = limits.checks_of([ROW], tmp_path)
    assert (check.ok, check.severity, check.value, check.limit, check.unit) == (ok, severity, size, limit, "bytes")
    assert check.runbook == (None if ok else "result_empty")
    assert check.message.startswith("size of the file: " if ok else "result_empty: size of the file: ")


def test_a_value_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    (check,) = limits.checks_of([ROW], tmp_path)
    assert (check.ok, check.severity, check.runbook) == (False, "error", "client_error")
    assert "file: No such file or directory" in check.message


def test_limits_of_the_inventory_replace_the_defaults() -> None:
    (row,) = limits.rows_of({"file_size": {"warn": 5}}, [ROW])
    assert (row.warn, row.fail) == (5, 10)
    assert limits.rows_of({}, [ROW]) == [ROW]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"disk": {"warn": 1}}, "disk is not a host check. Fix: Use one of file_size."),
        ({"file_size": 5}, "file_size is 5. Fix: Set warn, fail or both."),
        ({"file_size": {}}, "file_size is {}"),
        ({"file_size": {"wanr": 5}}, "file_size is {'wanr': 5}"),
        ({"file_size": {"warn": "much"}}, "file_size.warn is 'much'. Fix: Set a number of at least 0."),
        ({"file_size": {"warn": -1}}, "file_size.warn is -1"),
        ({"file_size": {"fail": True}}, "file_size.fail is True"),
    ],
)
def test_limits_that_cannot_be_used_are_refused_by_name(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(RefusalError) as refused:
        limits.rows_of(given, [ROW])
    assert str(refused.value).startswith("[bad_host_limits] host_limits: ")
    assert problem in str(refused.value)


def test_every_host_check_has_ordered_limits_and_a_known_failure() -> None:
    assert len({row.code for row in HOST_CHECKS}) == len(HOST_CHECKS)
    for row in HOST_CHECKS:
        assert row.warn >= row.fail >= 0
        assert row.failure in NAMES
