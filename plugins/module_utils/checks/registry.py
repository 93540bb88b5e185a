"""The check roles and the host checks: a row for each, and which roles a run of the verify playbook runs.

Everything that goes through the check roles reads :data:`CHECKS`: the verify playbook, the results that a verdict is
made of, the digest of what a proof asks, the report, and the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils.checks import host
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    BenchmarkResult,
    CheckResult,
    StabilityResult,
    VramResult,
)


@dataclass(frozen=True)
class CheckRole:
    """A role that checks a release, with a module of the same name.

    Attributes:
        name: Tag of the verify playbook, and stem of the result file.
        role: Name of the role.
        title: Heading of its result in the report.
        result: Type of its result file.
        default: Whether every proof of a release includes it. Else ``--tags`` or a variable of the playbook adds it.
    """

    name: str
    role: str
    title: str
    result: type[CheckResult] = CheckResult
    default: bool = True

    @property
    def file(self) -> str:
        """Name of the result file."""
        return f"{self.name}.json"


# In the order in which they run.
CHECKS = (
    CheckRole("smoke", "smoke_test", "Answers and refusals"),
    CheckRole("vram", "vram_check", "Memory, planned and measured", VramResult),
    CheckRole("stability", "stability", "Stability: mixed requests", StabilityResult),
    CheckRole("benchmark", "benchmark", "Speed: latency and throughput", BenchmarkResult, default=False),
)
#: Type of each result file, by the name of the file.
RESULTS: Mapping[str, type[CheckResult]] = {check.file: check.result for check in CHECKS}
ALL = "all"


@dataclass(frozen=True)
class HostCheck:
    """A value of the host that must not fall below two limits. Role smoke_test checks it for a deployed release.

    To add a check, write a function in ``host.py``, add a row to :data:`HOST_CHECKS`, and write the runbook
    ``docs/runbooks/<failure>.md``.

    Attributes:
        code: Code of the check, and its name in ``smoke_test_host_limits``.
        measure: Function that reads the value, with the path of ``vllm_home``. May raise OSError.
        what: What the value is, as the subject of a message.
        unit: Unit of the value and the limits.
        warn: Default limit below which the check is a warning.
        fail: Default limit below which the check fails the release.
        failure: Name of the failure and of its runbook.
    """

    code: str
    measure: Callable[[Path], float]
    what: str
    unit: str
    warn: float
    fail: float
    failure: str


HOST_CHECKS: tuple[HostCheck, ...] = (
    HostCheck("disk_left", host.disk_left, "free disk space of vllm_home", "GiB", warn=20, fail=2, failure="disk_low"),
)


def chain_of(also: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
    """The checks that prove a release, in order.

    Args:
        also: Checks that are added to those of every proof.
        without: Checks that are left out.

    Raises:
        ValueError: A check does not exist.
    """
    unknown = {*also, *without} - {check.name for check in CHECKS}
    if unknown:
        raise ValueError(f"there is no check {', '.join(sorted(unknown))}; there are {_names()}")
    return [check.name for check in CHECKS if (check.default or check.name in also) and check.name not in without]


def results_of(chosen: Sequence[str], skipped: Sequence[str], chain: Sequence[str]) -> dict[str, list[str]]:
    """The result files that the verdict is made of after each check of a run.

    Args:
        chosen: Tags of the command line (``--tags``); ``all`` without any.
        skipped: Tags of ``--skip-tags``.
        chain: Checks that prove a release: they run where no tag is given, and their stored results count where another
            check runs alone.

    Returns:
        Each check that runs, in order, with the names of its result files.

    Raises:
        ValueError: No check is chosen, so that nothing would be proven; or a check does not exist.
    """
    chain_of(also=chain)
    wanted = chain if ALL in chosen else chosen
    steps = [check for check in CHECKS if check.name in wanted and check.name not in skipped]
    if not steps:
        raise ValueError(
            f"[no_check] tags {', '.join(chosen)} without {', '.join(skipped) or 'any skipped'} choose no check, so"
            f" that nothing would be proven. Fix: choose of {_names()}."
        )
    kept = [check for check in CHECKS if check.name in chain and check not in steps]
    return {check.name: [item.file for item in (*kept, *steps[: place + 1])] for place, check in enumerate(steps)}


def roles_of(results: Mapping[str, object]) -> list[str]:
    """The roles of the checks that run, in order."""
    return [check.role for check in CHECKS if check.name in results]


def _names() -> str:
    return ", ".join(check.name for check in CHECKS)
