"""The five acceptance criteria of the migration, each with its result.

A criterion that no check of this release measured is *not measured*; it does not count as met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check

MET, MISSED, UNMEASURED = "met", "missed", "not measured"
MOST_GIB = 24.0
LEAST_REQUESTS = 20
GUIDES = ("docs/deployment-vision.md", "docs/optimisation.md", "docs/lessons.md")


def criteria(checks: Iterable[Check], memory_source: str) -> list[dict[str, str]]:
    """Each criterion with ``title``, ``state`` and ``message``.

    Args:
        checks: All checks of the release.
        memory_source: Where the memory check read: ``nvml`` on GPUs.
    """
    by_code = {check.code: check for check in checks}
    found = [
        ("At most 24 GB of memory on each GPU", *_memory(by_code, memory_source)),
        ("Images are captioned and questions about them answered", *_vision(by_code)),
        ("Texts are answered as fast as by the text model before", *_text(by_code)),
        (f"Stable: no crash in more than {LEAST_REQUESTS} requests", *_stable(by_code)),
        ("The migration is documented", "see", f"In the project: {', '.join(GUIDES)}"),
    ]
    return [{"title": title, "state": state, "message": message} for title, state, message in found]


def _memory(checks: Mapping[str, Check], source: str) -> tuple[str, str]:
    check = checks.get("vram_under_load")
    if check is None or source != "nvml":
        return UNMEASURED, "No GPU's memory was read under load"
    held = check.value
    within = check.ok and isinstance(held, (int, float)) and held <= MOST_GIB
    return MET if within else MISSED, check.message


def _vision(checks: Mapping[str, Check]) -> tuple[str, str]:
    # At level protocol the answers were not judged, which shows in a missing limit.
    asked = [checks[case.code] for case in CASES if case.images and case.code in checks]
    judged = [check for check in asked if check.limit is not None]
    if not judged:
        return UNMEASURED, "No answer about an image was judged"
    right = sum(check.ok for check in judged)
    return MET if right == len(judged) else MISSED, f"{right} of {len(judged)} answers about images are right"


def _text(checks: Mapping[str, Check]) -> tuple[str, str]:
    check = checks.get("benchmark_text_regression")
    if check is None:
        return UNMEASURED, "There is no result of the text model to compare with"
    return MET if check.ok else MISSED, check.message


def _stable(checks: Mapping[str, Check]) -> tuple[str, str]:
    sent, restarts = checks.get("stability_requests"), checks.get("stability_restarts")
    if sent is None or restarts is None:
        return UNMEASURED, "No mixed requests were sent"
    if not restarts.decides and not restarts.ok and sent.ok:
        return UNMEASURED, restarts.message
    enough = isinstance(sent.value, int) and sent.value >= LEAST_REQUESTS
    good: Any = sent.ok and restarts.ok
    if good and not enough:
        return UNMEASURED, f"Only {sent.value} requests were sent"
    return MET if good else MISSED, sent.message if not sent.ok or restarts.ok else restarts.message
