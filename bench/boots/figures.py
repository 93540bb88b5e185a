"""Tables of boots for docs/optimisation.md.

``python -m bench.boots.figures keep RESULTS.jsonl ... --gpu CARD --engine VERSION --date DAY`` extracts the figures
from results and writes them to ``seen/DAY.json``, or with ``--name`` to a file with that name.
``python -m bench.boots.figures`` updates the tables of the page from all files in ``seen``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pages import between_markers

SEEN = Path(__file__).parent / "seen"
PAGE = Path(__file__).parents[2] / "docs" / "optimisation.md"
NAME = "boots"

#: Kept figures of ``vllm bench serve``.
_KEPT = (
    "completed", "failed", "duration", "output_throughput", "request_throughput", "request_goodput",
    "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms",
)  # fmt: skip
#: Descriptions of the workloads of the matrices.
WORKLOADS: Mapping[str, str] = {
    "text": "text, 1024 in, 128 out, concurrency 16",
    "text 1": "text, 1024 in, 128 out, concurrency 1",
    "text 8": "the same, concurrency 8",
    "text 16": "the same, concurrency 16",
    "text 16 again": "the same prompts again",
    "busy text": "text, 2048 in, 256 out, concurrency 32",
    "image": "image of 1 MP, concurrency 8",
    "image again": "the same images again",
    "busy image": "image of 4 MP, concurrency 12",
}


def main() -> None:
    """Extract figures from results, or update the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action")
    keep = actions.add_parser("keep")
    keep.add_argument("results", type=Path, nargs="+")
    for name in ("--gpu", "--engine", "--date"):
        keep.add_argument(name, required=True)
    keep.add_argument("--name", help="name of the file, if a day has several")
    options = parser.parse_args()
    if options.action == "keep":
        about = {"gpu": options.gpu, "engine": options.engine, "date": options.date}
        texts = [text for path in options.results for text in path.read_text(encoding="utf-8").splitlines()]
        data = about | {"boots": [kept(json.loads(text)) for text in texts]}
        (SEEN / f"{options.name or options.date}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """Page with the tables of all files."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(SEEN.glob("*.json"))]
    return between_markers(text, NAME, "\n\n".join("\n".join(table(file)) for file in files))


def kept(result: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a boot, without logs, probes and single answers."""
    bench = {
        name: {key: round(value, 2) for key, value in done.items() if key in _KEPT}
        for name, done in result.get("bench", {}).items()
    }
    stages = {
        name: f"{sum(answer['survived'] for answer in answers)} of {len(answers)}"
        for name, answers in result.get("stages", {}).items()
    }
    figures = {key: result.get(key) for key in ("name", "model", "settings", "card_gib", "environment", "ready_s")}
    figures |= {"max_model_len": result.get("max_model_len"), "alive": result.get("alive", False)}
    verify = result.get("verify")
    return figures | {"bench": bench, "stages": stages} | ({"verify": _verdict(verify)} if verify else {})


def _verdict(verify: Mapping[str, Any]) -> dict[str, Any]:
    checks = verify.get("checks", ())
    return {
        "rc": verify["rc"],
        "seconds": verify["seconds"],
        "ok": verify.get("ok", False),
        "checks": len(checks),
        "not_ok": [{key: check[key] for key in ("code", "severity", "message")} for check in checks if not check["ok"]],
    }


def table(file: Mapping[str, Any]) -> list[str]:
    """Output tokens per second and goodput of each benchmarked boot; one column per boot."""
    timed = [boot for boot in file["boots"] if boot["bench"]]
    rows = [
        [WORKLOADS[name], *(figure(boot["bench"].get(name)) for boot in timed)]
        for name in WORKLOADS
        if any(name in boot["bench"] for boot in timed)
    ]
    head = [f"{file['gpu']}, vLLM {file['engine']}, {file['date']}", *(f"`{boot['name']}`" for boot in timed)]
    lines = [
        head,
        ["---"] * len(head),
        *rows,
        ["engine afterwards", *("running" if b["alive"] else "crashed" for b in timed)],
    ]
    notes = against_baseline(timed) + against_defaults(timed) + judged(file["boots"])
    return ["| " + " | ".join(line) + " |" for line in lines] + notes


#: Figures that are compared with a baseline: name in ``vllm bench serve`` and description.
_COMPARED = {
    "output_throughput": "output tokens per second",
    "median_ttft_ms": "first token, median ms",
    "median_tpot_ms": "time per token, median ms",
}


def against_baseline(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures of the first boot and of the boot named ``baseline-*``, and their ratios."""
    baseline = next((boot for boot in timed if boot["name"].startswith("baseline")), None)
    if baseline is None or timed[0] is baseline:
        return []
    rows = []
    for name, words in WORKLOADS.items():
        seen, base = _done(timed[0], name), _done(baseline, name)
        if seen and base:
            ratios = (f"{seen[key]:.0f} / {base[key]:.0f} = {seen[key] / base[key]:.2f}" for key in _COMPARED)
            rows.append([words, *ratios])
    head = [f"`{timed[0]['name']}` / `{baseline['name']}`", *_COMPARED.values()]
    return ["", *("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])]


def _done(boot: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Figures of a workload; empty if the boot did not finish it."""
    done = boot["bench"].get(name) or {}
    return done if done.get("completed") and not done.get("failed") else {}


def against_defaults(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Goodput of the first boot relative to vLLM's defaults, if both were benchmarked."""
    defaults = next((boot for boot in timed if boot["name"].startswith("defaults")), None)
    if defaults is None or timed[0] is defaults:
        return []
    ratios = [
        f"{done['request_goodput'] / base['request_goodput']:.2f} ({WORKLOADS[name]})"
        for name, done in timed[0]["bench"].items()
        if (base := defaults["bench"].get(name)) and base.get("request_goodput")
    ]
    return ["", f"Goodput of `{timed[0]['name']}` divided by `{defaults['name']}`: {', '.join(ratios)}."]


def judged(boots: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per boot with the result of ``playbooks/verify.yml``."""
    lines = []
    for boot in boots:
        if verify := boot.get("verify"):
            bad = ", ".join(f"`{check['code']}`" for check in verify["not_ok"] if check["severity"] == "error")
            outcome = f"failed: {bad}" if bad else "proven"
            summary = f"{verify['checks']} checks in {verify['seconds']:.0f} s, exit code {verify['rc']}; {outcome}"
            lines.append(f"* `{boot['name']}`: {summary}.")
    return ["", *lines] if lines else []


def figure(done: Mapping[str, Any] | None) -> str:
    """One cell: output tokens per second, and requests per second within the limits and in total."""
    if done is None:
        return "-"
    if not done.get("completed"):
        return "crashed"
    lost = f"; {done['failed']} of {done['failed'] + done['completed']} requests lost" if done["failed"] else ""
    if done["failed"] > done["completed"]:
        # Too few requests were answered to measure the speed.
        return "crashed" + lost
    good = (
        f"{done['output_throughput']:.0f} tokens/s, {done['request_goodput']:.2f} of {done['request_throughput']:.2f}"
    )
    return good + lost


if __name__ == "__main__":
    main()
