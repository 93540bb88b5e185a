"""Which checks a run of the verify playbook makes, and which results each of them is judged together with."""

from __future__ import annotations

from collections.abc import Sequence

# In the order in which they run; the name is also the tag, and the stem of the result file.
STEPS = ("smoke", "vram", "stability", "benchmark")
ALL = "all"


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
    unknown = set(chain) - set(STEPS)
    if unknown:
        raise ValueError(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    asked = chain if ALL in chosen else chosen
    steps = [step for step in STEPS if step in asked and step not in skipped]
    if not steps:
        raise ValueError(
            f"[no_check] tags {', '.join(chosen)} without {', '.join(skipped) or 'any skipped'} choose no check, so"
            f" that nothing would be proven. Fix: choose of {', '.join(STEPS)}."
        )
    kept = [step for step in chain if step not in steps]
    return {step: [f"{name}.json" for name in (*kept, *steps[: place + 1])] for place, step in enumerate(steps)}
