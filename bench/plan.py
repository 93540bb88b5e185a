"""`make bench-plan`: predicted against measured for every known boot, beside three other estimators.

The tables go to the screen and, between two markers, into docs/planning.md, with one more: what two RTX 4090 can do.
hf-mem and accelerate read a hub only:
they get a local one with checkpoints of true size and no content. They live in an environment of their own under
.cache/, made at the first run; ``--without-others`` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "collections"))
sys.path.insert(0, str(ROOT / "tests"))

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.account import kv_bytes_per_token  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Wishes  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import judge, solve  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import (  # noqa: E402
    GIB,
    from_shapes,
    total_bytes,
)
from bench import plan_hub  # noqa: E402
from bench.pages import between_markers  # noqa: E402
from support.boots import Boot, boots  # noqa: E402
from support.checkpoint import write_checkpoint  # noqa: E402

OTHERS = ("hf-mem==0.5.6", "accelerate==1.15.0", "transformers==5.24.0", "torch==2.13.0")
ENVIRONMENT = ROOT / ".cache" / "bench-plan"
_PAIR = 2
PAGE = ROOT / "docs" / "planning.md"

# For each estimator: model -> GiB that it says the model needs before any KV cache.
Estimates = Mapping[str, Mapping[str, float]]


def main() -> int:
    """Print the table and write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-others", action="store_true", help="only the planner, nothing is installed")
    options = parser.parse_args()
    known = boots()
    others: Estimates = {} if options.without_others else others_for({boot.entry.name: boot.entry for boot in known})
    text = "\n".join([*table(known, others), "", *seen_on_two(known), "", *two_4090s()])
    print(text)
    if not options.without_others:
        PAGE.write_text(between_markers(PAGE.read_text(encoding="utf-8"), "bench-plan", text), encoding="utf-8")
    return 0


def table(known: Sequence[Boot], others: Estimates) -> list[str]:
    """The comparison in Markdown: one table for the planner, one for the others."""
    lines = [
        "| measured / predicted | weights, GiB per GPU | KV cache, tokens | starts | survives |",
        "| --- | --- | --- | --- | --- |",
    ]
    for boot in known:
        measured, plan = boot.measured, boot.plan
        weights = _pair(measured.get("weights_gib"), round(plan.account.weights, 2))
        tokens = _pair(boot.tokens, plan.account.kv_cache_tokens)
        starts = _verdict(measured.get("starts"), plan.starts)
        survives = _verdict(measured.get("survives"), plan.survives)
        lines.append(f"| {boot.name} | {weights} | {tokens} | {starts} | {survives} |")
    if others:
        names = list(others)
        lines += ["", "KV cache in tokens, as it follows from what each estimator says that the model needs:", ""]
        lines += [f"| boot | measured | vram-plan | {' | '.join(names)} |", "| --- " * (3 + len(names)) + "|"]
        for boot in known:
            if boot.tokens:
                told = [_tokens(boot, others[name].get(boot.entry.name)) for name in names]
                cells = [_with_error(boot.tokens, value) for value in (boot.plan.account.kv_cache_tokens, *told)]
                lines.append(f"| {boot.name} | {boot.tokens} | {' | '.join(cells)} |")
    return lines


def seen_on_two(known: Sequence[Boot]) -> list[str]:
    """What two cards of 24 GB were seen to do, nothing of it computed."""
    lines = [
        "Two cards of 24 GB, seen (vLLM 0.26.0, two H100 80GB or two H200, held to 23.52 GiB each). Speed is output",
        "tokens per second of `vllm bench serve`: text (1024 in, 128 out, 16 at once), an image of 1 megapixel (64 in,",
        "64 out, 8 at once), and the same images again. Compare speeds of one day and card only:",
        "",
        "| boot | card, day | starts | survives | longest request | ready after, s | text | image | image again |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for boot in known:
        if boot.plan.case.host.count == _PAIR and "held" in boot.measured_on:
            measured = boot.measured
            speed = measured.get("output_tokens_per_s", {})
            survives = {True: "yes", False: f"no: {boot.note}", None: "-"}[measured.get("survives")]
            starts = "yes" if measured["starts"] else f"no: {boot.note}"
            longest = boot.longest or "-" if measured["starts"] else "-"
            card = f"{boot.measured_on.partition(',')[0]}, {boot.date}"
            cells = (boot.name, card, starts, survives, longest, measured.get("ready_s", "-"))
            speeds = (speed.get(name, "-") for name in ("text", "image", "image again"))
            lines.append(f"| {' | '.join(map(str, (*cells, *speeds)))} |")
    return lines


def two_4090s() -> list[str]:
    """What two RTX 4090 can do: the flags of the study, the best FP8 plan, and the 4-bit plan for 128k."""
    proposed = Wishes(context=131_072, gpu_memory_utilization=0.85, kv_cache_dtype="fp8", max_num_seqs=32)
    fp8, awq = "qwen3-vl-32b-instruct-fp8", "qwen3-vl-32b-instruct-awq"
    rows = [
        (f"the study's flags, vLLM {versions.CALIBRATED}", judge(_case(fp8, versions.CALIBRATED), proposed)),
        (f"the study's flags, vLLM {versions.DEPLOYED}", judge(_case(fp8, versions.DEPLOYED), proposed)),
        ("best FP8 plan", solve(_case(fp8, versions.DEPLOYED), Wishes())),
        ("FP8 plan with images of 1 megapixel", solve(_case(fp8, versions.DEPLOYED), Wishes(max_pixels=1_048_576))),
        ("4-bit plan for 128k", solve(_case(awq, versions.DEPLOYED), Wishes(context=131_072))),
    ]
    lines = [
        "Two RTX 4090 (23.52 GiB each), planned, GiB per GPU:",
        "",
        "| plan | starts | survives | weights | KV cache | longest request | max_pixels | utilization | left |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, plan in rows:
        account, told = plan.account, plan.settings
        cells = (
            name,
            "yes" if plan.starts else "no",
            "yes" if plan.survives else "no",
            f"{account.weights:.2f}",
            f"{account.kv_cache:.2f} ({told.kv_cache_dtype})",
            str(plan.max_model_len),
            str(told.max_pixels),
            f"{plan.flags()['gpu-memory-utilization']:.2f}",
            f"{account.headroom:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *(f"* {name}: {plan.refusals[0].message}" for name, plan in rows if plan.refusals)]


def _case(name: str, version: str) -> Case:
    return Case(from_entry(catalogue.load(name)), gpus.parse("2x RTX 4090"), engines.engine(version))


def others_for(entries: Mapping[str, Entry]) -> Estimates:
    """What the other estimators say of these models."""
    rule = {name: 1.2 * total_bytes(from_shapes(from_entry(e))) / GIB + 2 for name, e in entries.items()}
    tools = install()
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        root = Path(folder)
        for entry in entries.values():
            write_checkpoint(entry, root / entry.repository)
        server = plan_hub.serve(root)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(root / ".home"), "NO_PROXY": "127.0.0.1"}
        try:
            hf_mem = _each(entries, lambda entry: ask_hf_mem(tools, entry, environment))
            accelerate = _each(entries, lambda entry: ask_accelerate(tools, entry, environment))
        finally:
            server.shutdown()
            server.server_close()
    return {"hf-mem": hf_mem, "accelerate (int8)": accelerate, "weights x 1.2 + 2 GiB": rule}


def install() -> Path:
    """The environment with the other tools, made where it is missing; returns its folder of programs."""
    programs = ENVIRONMENT / "bin"
    if not (programs / "hf-mem").exists():
        # PyTorch's small CPU build, where a machine offers it at all, is for this Python.
        python = shutil.which("python3.11") or sys.executable
        print(f"Installing {', '.join(OTHERS)} into {ENVIRONMENT} ...", file=sys.stderr, flush=True)
        _run(python, "-m", "venv", "--clear", ENVIRONMENT)
        _run(programs / "python", "-m", "pip", "install", *OTHERS)
    return programs


def ask_hf_mem(tools: Path, entry: Entry, environment: Mapping[str, str]) -> float:
    """What hf-mem says that the weights take, in GiB."""
    script = Path(__file__).with_name("plan_hf_mem.py")
    told = _ask(environment, tools / "python", script, "--model-id", entry.repository, "--json-output")
    return float(json.loads(told.splitlines()[-1])["memory"]) / GIB


def ask_accelerate(tools: Path, entry: Entry, environment: Mapping[str, str]) -> float:
    """What accelerate says that the model takes in int8, the nearest to FP8 that it knows; its GB are 2^30 bytes."""
    options = ("--library_name", "transformers", "--dtypes", "int8")
    told = _ask(environment, tools / "accelerate", "estimate-memory", entry.repository, *options)
    found = re.search(r"int8[^\n]*?[│|]\s*[\d.]+ [KMG]B\s*[│|]\s*([\d.]+) ([MG])B", told)
    if not found:
        raise ValueError(f"accelerate estimate-memory printed no line for int8:\n{told}")
    return float(found[1]) / (1024 if found[2] == "M" else 1)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - fixed programs, no shell


def _ask(environment: Mapping[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout


def _each(entries: Mapping[str, Entry], ask: Callable[[Entry], float]) -> dict[str, float]:
    return {name: ask(entry) for name, entry in entries.items()}


def _tokens(boot: Boot, needed: float | None) -> int | None:
    """Tokens of KV cache that an estimate leaves of the budget of all GPUs; none where it leaves nothing."""
    if needed is None:
        return None
    settings = boot.plan.settings
    left = settings.budget_gib - needed / settings.tensor_parallel
    return max(int(left * GIB / kv_bytes_per_token(boot.plan.case.model, settings)), 0)


def _with_error(measured: int, predicted: int | None) -> str:
    return "-" if predicted is None else f"{predicted} ({(predicted - measured) / measured:+.1%})"


def _pair(measured: float | None, predicted: float) -> str:
    if measured is None:
        return f"- / {predicted}"
    return f"{measured} / {predicted} ({(predicted - measured) / measured:+.1%})"


def _verdict(measured: bool | None, predicted: bool) -> str:
    said = "yes" if predicted else "no"
    if measured is None:
        return f"- / {said}"
    return f"{'yes' if measured else 'no'} / {said}{'' if measured == predicted else ' **wrong**'}"


if __name__ == "__main__":
    sys.exit(main())
