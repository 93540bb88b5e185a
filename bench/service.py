"""`make bench-service`: print a table with the cost of the gateway, the duration of starts and deploys, and the goals.

Deploys the demo with a gateway; only the image exists before. vLLM's `vllm bench serve`, from the engine image, then
sends requests to the engine and the gateway at the same time. Each round compares the two.

Part fleet is `make bench-fleet`: it deploys separate hosts instead of the demo (bench/fleet.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "collections")]

from bench import fleet  # noqa: E402
from bench.demo import green, task_seconds, timed  # noqa: E402
from bench.goals import Row, table  # noqa: E402
from bench.load import Load, engines_key  # noqa: E402
from bench.load import ask as send  # noqa: E402
from e2e.conftest import PORT  # noqa: E402

CLIENTS_KEY = "sk-bench-0123456789abcdefghijklmnop"
GATEWAY_PORT = 18443
SETTINGS: dict[str, Any] = {
    "gateway_enabled": True,
    "gateway_bind_address": "127.0.0.1",
    "gateway_tls": "disabled",
    "gateway_port": GATEWAY_PORT,
    "gateway_metrics_port": 18405,
    "gateway_config_dir": "/etc/vllm-gateway-bench",
    "gateway_run_dir": "/run/vllm-gateway-bench",
    "gateway_log_file": "/var/log/vllm-gateway-bench.log",
    "gateway_requests_per_minute": 10**6,
    "gateway_keys": [{"name": "bench", "key": CLIENTS_KEY}],
}
WAYS = {"direct": PORT, "gateway": GATEWAY_PORT}
#: For the time to the first token: short answers, one at a time. For the throughput: half of the planned concurrency,
#: because both ways are measured at the same time.
LOADS = {"one": Load(1, 160, 8), "many": Load(2, 80, 64)}


def main() -> int:
    """Print the table. Returns 1 if a goal is missed or a deployment failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="number of rounds (default: 5, for the fleet 3)")
    parser.add_argument(
        "--only", choices=["starts", "deploys", "gateway", "fleet"], help="one part (default: all except fleet)"
    )
    parser.add_argument("--hosts", type=int, default=8, help="hosts of the fleet")
    parser.add_argument("--keep", action="store_true", help="keep the deployment")
    options = parser.parse_args()
    if options.only == "fleet":
        return fleet.main(options.hosts, options.rounds or 3, keep=options.keep)
    timed("playbooks/teardown.yml", **SETTINGS, teardown_remove_data=True, teardown_stop_docker=False)
    rows: list[Row] = []
    try:
        parts: dict[str, Callable[[], list[Row]]] = {
            "starts": starts,
            "deploys": deploys,
            "gateway": partial(gateway, options.rounds or 5),
        }
        if options.only not in (None, "starts"):
            green(timed("deploy.yml", **SETTINGS)[0])
        for part in [parts[options.only]] if options.only else parts.values():
            rows += part()
    finally:
        if not options.keep:
            timed("playbooks/teardown.yml", **SETTINGS, teardown_remove_data=True, teardown_stop_docker=False)
        # Print the results even if a later part fails.
        print(table(rows))
    return int(not all(row.met for row in rows))


def starts() -> list[Row]:
    """Compare a start without caches with a restart."""
    cold = green(timed("deploy.yml", **SETTINGS)[0])
    warm = green(timed("playbooks/restart.yml", **SETTINGS)[0])
    cold_s = task_seconds(cold.seconds, "Start | Start the service")
    warm_s = task_seconds(warm.seconds, "Restart | Restart the engine", "Restart | Wait for the first token")
    return [
        Row("start until the first token, cold", cold_s, "s"),
        Row("restart until the first token, warm", warm_s, "s"),
        Row("  ratio of warm to cold", warm_s / cold_s, "x", 0.6),
    ]


def deploys() -> list[Row]:
    """Deploys without a change, of the demo with and without the gateway, and their slowest tasks."""
    rows = []
    for name, settings, goal in (("embedded host", {}, 25), ("with the gateway", SETTINGS, None)):
        again, seconds = timed("deploy.yml", **settings)
        if green(again).changed:
            raise RuntimeError(f"{name}: a deploy without a change reported changes")
        slowest = sorted(again.seconds.items(), key=lambda item: -item[1])[:6]
        rows.append(Row(f"deploy.yml without a change, {name}", seconds, "s", goal))
        rows += [Row(f"  {task}", value, "s") for task, value in slowest]
    return rows


def gateway(rounds: int) -> list[Row]:
    """Compare direct requests with requests through the gateway, sent at the same time under the same conditions."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(WAYS)) as pool:
        folder = Path(name)
        ask("direct", "many", folder / "warm-up")
        for number, load in product(range(rounds), LOADS):
            results = {way: pool.submit(ask, way, load, folder / f"{number}-{way}-{load}") for way in WAYS}
            for way, result in results.items():
                seen.setdefault((way, load), []).append(result.result())
    ttft = {way: median(result["median_ttft_ms"] for result in seen[way, "one"]) for way in WAYS}
    added = [
        through["median_ttft_ms"] - direct["median_ttft_ms"]
        for through, direct in zip(seen["gateway", "one"], seen["direct", "one"], strict=True)
    ]
    tokens = {way: median(result["output_throughput"] for result in seen[way, "many"]) for way in WAYS}
    shares = [
        through["output_throughput"] / direct["output_throughput"]
        for through, direct in zip(seen["gateway", "many"], seen["direct", "many"], strict=True)
    ]
    return [
        Row("first token, direct, median", ttft["direct"], "ms"),
        Row("first token, gateway, median", ttft["gateway"], "ms"),
        Row("  overhead of the gateway, median of the rounds", median(added), "ms", 3),
        Row("  minimum and maximum", min(added), "ms"),
        Row("", max(added), "ms"),
        Row("throughput, direct", tokens["direct"], "tok/s"),
        Row("throughput, gateway", tokens["gateway"], "tok/s"),
        Row("  ratio of gateway to direct, median of the rounds", median(shares), "x", 0.98, most=False),
        Row("  minimum and maximum", min(shares), "x"),
        Row("", max(shares), "x"),
    ]


def ask(way: str, load: str, folder: Path) -> dict[str, Any]:
    """Send one load one way. Returns the result."""
    key = CLIENTS_KEY if way == "gateway" else engines_key()
    result = send(WAYS[way], key, LOADS[load], folder)
    print(f"{way}, {load}: {result['median_ttft_ms']:.1f} ms, {result['output_throughput']:.1f} tok/s", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
