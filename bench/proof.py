"""`make bench-proof`: what proving a ready service costs, as a table. Nothing is asserted.

Deploys the demo, verifies it once more while it is ready, and reads the times from the tasks and the rest from what the
checks wrote: how much of one core the reading of memory took under load, and how large the report is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "collections")]

from bench.demo import task_seconds  # noqa: E402
from e2e.conftest import HOME, play  # noqa: E402

# Share of a core, and bytes, that the project allows itself.
MOST_SECONDS = 60
MOST_SHARE = 0.01
MOST_BYTES = 2_000_000


def table(seconds: dict[str, float], share: float, size: int) -> str:
    """The figures as aligned text, each beside its goal."""
    rows = [
        *((name, f"{value:.1f} s", "") for name, value in seconds.items()),
        ("smoke and memory together", f"{sum(seconds.values()):.1f} s", f"{MOST_SECONDS} s"),
        ("reading of memory, of one core", f"{100 * share:.2f} %", f"{100 * MOST_SHARE:.0f} %"),
        ("report", f"{size / 1000:.0f} kB", f"{MOST_BYTES / 1000:.0f} kB"),
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:>10}  {goal:>8}" for name, value, goal in [("what", "", "goal"), *rows])


def main() -> int:
    """Run the benchmark; 0 when both runs were green, else 1."""
    deployed = play("deploy.yml")
    proven = play("playbooks/verify.yml")
    if deployed.rc or proven.rc:
        print((deployed if deployed.rc else proven).text)
        return 1
    report = HOME / "reports" / (HOME / "current").resolve().name
    vram = json.loads((report / "vram.json").read_text(encoding="utf-8"))
    seconds = {
        "smoke test": task_seconds(proven.seconds, "Smoke | Ask"),
        "memory under load": task_seconds(proven.seconds, "VRAM | Measure"),
    }
    print(table(seconds, vram["sampling"]["cpu_share"], (report / "report.html").stat().st_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
