"""`make bench-proof`: print a table with the cost of proving a ready service. Nothing is asserted.

Deploys the demo and verifies it once more. Reads the times from the tasks, and from the results of the checks the CPU
share of the memory readings under load and the size of the report.

Then `vllm bench serve` sends text requests continuously, and memory is read, like in the check, during every other
interval. The engine's token counters in a pair of intervals give the remaining share of the throughput.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles, stdev

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "collections")]

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session, Target  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.container import Container  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.engine_counters import Counters  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sampler  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import run as vram_run  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import unplanned  # noqa: E402
from bench.demo import task_seconds  # noqa: E402
from bench.load import Load, engines_key, steady  # noqa: E402
from e2e.conftest import HOME, PORT, PROJECT, Run, play  # noqa: E402

# Goals: seconds, share of a core and of the throughput, and bytes.
MOST_SECONDS = 60
MOST_SHARE = 0.01
MOST_BYTES = 2_000_000
# Seconds between two readings, like in role vram_check.
INTERVAL = 0.2
#: More requests than the benchmark needs.
LOAD = Load(concurrency=4, requests=6_000, tokens=64)
_STEADY_SECONDS = 180
_LEAST_RATE = 1.0

Read = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Shares:
    """Remaining share of the throughput while memory is read, for each pair of intervals; 1 means no loss."""

    pairs: Sequence[float]

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Median, quartiles, and mean with its standard error."""
        low, _, high = quantiles(self.pairs, n=4)
        error = stdev(self.pairs) / math.sqrt(len(self.pairs))
        return [
            (f"throughput while memory is read, {len(self.pairs)} pairs", f"{median(self.pairs):.3f}", "0.99"),
            ("  quartiles of the pairs", f"{low:.3f} to {high:.3f}", ""),
            ("  mean, and its standard error", f"{mean(self.pairs):.3f} ± {error:.3f}", ""),
        ]


def main() -> int:
    """Run the benchmark. Returns 0 if both runs succeeded, otherwise 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=25, help="pairs of intervals, with and without readings")
    parser.add_argument("--seconds", type=float, default=4, help="length of an interval, in seconds")
    options = parser.parse_args()
    there = (HOME / "current").exists()
    try:
        deployed = play("deploy.yml")
        proven = deployed if deployed.rc else play("playbooks/verify.yml")
        if proven.rc:
            print(proven.text)
            return 1
        rows = costs(proven)
        try:
            rows += throughput(options.pairs, options.seconds).rows
        finally:
            # Print the results even if a later part fails.
            print(table(rows))
    finally:
        if there:
            print("The demo was deployed before and was not removed.")
        else:
            play("playbooks/teardown.yml", teardown_remove_data=True, teardown_stop_docker=False)
    return 0


def costs(proven: Run) -> list[tuple[str, str, str]]:
    """Times of a full proof, CPU share of the memory readings, and size of the report."""
    report = HOME / "reports" / (HOME / "current").resolve().name
    vram = json.loads((report / "vram.json").read_text(encoding="utf-8"))
    seconds = {
        "smoke test": task_seconds(proven.seconds, "Smoke | Run the smoke test"),
        "memory under load": task_seconds(proven.seconds, "VRAM | Measure the memory"),
    }
    size = (report / "report.html").stat().st_size
    return [
        *((name, f"{value:.1f} s", "") for name, value in seconds.items()),
        ("smoke and memory together", f"{sum(seconds.values()):.1f} s", f"{MOST_SECONDS} s"),
        ("memory readings, CPU share", f"{100 * vram['sampling']['cpu_share']:.2f} %", f"{100 * MOST_SHARE:.0f} %"),
        ("report", f"{size / 1000:.0f} kB", f"{MOST_BYTES / 1000:.0f} kB"),
    ]


def throughput(pairs: int, seconds: float) -> Shares:
    """Compare tokens per second with and without memory readings, in alternating intervals under a constant load.

    Raises:
        RuntimeError: The load ends too early, or memory cannot be read.
    """
    key = engines_key()
    session = Session(Target(f"http://127.0.0.1:{PORT}/v1", key))
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(Container(f"{PROJECT}-vllm-1", "unix:///var/run/docker.sock"))
        expected = unplanned("cpu", 1.0, 0, 1)
        source = vram_run.source_of(stack, container, vram_run.state_now(container), expected, None)
        if isinstance(source, Failure):
            raise RuntimeError(str(source))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "load"
        sends = stack.enter_context(steady(PORT, key, LOAD, folder))

        def rate(read: Read | None) -> float:
            sends()
            return tokens_per_second(session, read, seconds)

        begin = time.monotonic()
        while min(rate(None), rate(None)) < _LEAST_RATE:
            if time.monotonic() - begin > _STEADY_SECONDS:
                raise RuntimeError(f"vllm bench serve sent nothing within {_STEADY_SECONDS} s")
        shares = []
        for number in range(pairs):
            # Alternate the order, in case the machine becomes faster or slower.
            seen = {bool(read): rate(read) for read in ((None, source.read) if number % 2 else (source.read, None))}
            shares.append(seen[True] / seen[False])
            print(f"{seen[False]:.0f} tokens/s, {seen[True]:.0f} while memory is read", flush=True)
    return Shares(shares)


def tokens_per_second(session: Session, read: Read | None, seconds: float) -> float:
    """Tokens per second of the engine during an interval, with or without memory readings."""
    sampler = Sampler(read, INTERVAL) if read else None
    if sampler:
        sampler.start()
    url = f"http://127.0.0.1:{PORT}/metrics"
    start, before = time.monotonic(), Counters.read(session, url).tokens
    time.sleep(seconds)
    end, after = time.monotonic(), Counters.read(session, url).tokens
    if sampler:
        sampler.stop()
        if sampler.failure:
            raise RuntimeError(sampler.failure)
    if before is None or after is None:
        raise RuntimeError(f"{url} does not count tokens")
    return (after - before) / (end - start)


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Figures and goals as an aligned text table."""
    width = max(len(name) for name, _, _ in rows)
    lines = [("figure", "", "goal"), *rows]
    return "\n".join(f"{name:<{width}}  {value:>16}  {goal:>8}" for name, value, goal in lines)


if __name__ == "__main__":
    sys.exit(main())
