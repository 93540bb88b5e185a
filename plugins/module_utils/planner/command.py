"""The command ``bin/vram-plan``: arguments in, a table or JSON out, exit code 0 fits, 1 does not, 2 bad input."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case, Plan
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model, from_entry, from_folder
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Wishes, fraction, whole_number
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import judge, solve
from ansible_collections.inference.vllm.plugins.module_utils.planner.table import table
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

FITS, DOES_NOT_FIT, BAD_INPUT = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option as a refusal, so that ``--json`` holds for bad input too."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting; argparse's message names the option."""
        named = re.search(r"--[a-z-]+", message)
        known = closest(named[0], [o for a in self._actions for o in a.option_strings]) if named else []
        fix = f"Did you mean {' or '.join(known)}?" if "unrecognized" in message and known else "See --help."
        raise RefusalError(Refusal("bad_arguments", f"{message[0].upper()}{message[1:]}.", fix))


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    wants_json = "--json" in arguments
    try:
        plan = _plan(_parser().parse_args(arguments))
    except RefusalError as error:
        if wants_json:
            refusals = [refusal.as_dict() for refusal in error.refusals]
            print(json.dumps({"starts": False, "survives": False, "refusals": refusals}, indent=2))
        else:
            print("\n".join(map(str, error.refusals)), file=sys.stderr)
        return BAD_INPUT
    print(plan.file().to_json().rstrip() if wants_json else table(plan))
    return FITS if plan.fits else DOES_NOT_FIT


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vram-plan",
        description="Say before the download whether a model fits GPUs, and with which flags of vLLM.",
        epilog="Exit code: 0 it fits, 1 it does not, 2 bad input.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME_OR_FOLDER", help="entry of the catalogue, repository or folder")
    add("--gpu", metavar='"2x RTX 4090"', help="GPUs by count and name")
    add("--gpu-total-gib", type=float, metavar="F", help="instead of --gpu: memory that CUDA gives a process, in GiB")
    add("--gpu-count", type=int, metavar="N", help="with --gpu-total-gib: number of GPUs")
    add("--compute-capability", type=float, metavar="X.Y", help="with --gpu-total-gib: for example 8.9")
    add("--tensor-parallel-size", default="auto", metavar="N", help="GPUs that share one copy (as many as divide it)")
    add("--gpu-memory-utilization", default="auto", metavar="F", help="share of each GPU (vLLM's 0.92)")
    add("--budget-gib", type=float, metavar="F", help="the same in GiB, instead of a share")
    add("--kv-cache-dtype", default="auto", choices=["auto", "bfloat16", "fp8"], help="type of the KV cache")
    add("--max-num-seqs", default="auto", metavar="N", help="requests in one batch")
    add("--max-num-batched-tokens", default="auto", metavar="N", help="tokens that one step computes")
    add("--max-pixels", default="auto", metavar="N", help="pixels of one image after scaling")
    add("--images-per-prompt", default="auto", metavar="N", help="images in one request")
    add("--max-model-len", default="auto", metavar="N|auto", help="tokens of the longest request")
    add("--concurrent-requests", default="1", metavar="N", help="requests of that length that must fit at once (1)")
    add("--mm-encoder-tp-mode", default="weights", choices=["weights", "data"], help="split or copy the vision tower")
    add("--enforce-eager", action="store_true", help="no CUDA graphs")
    add(
        "--engine-version",
        metavar="X.Y.Z",
        help=f"vLLM whose check is foretold: {versions.CALIBRATED}, the newest that was measured; "
        f"with --solve {versions.DEPLOYED}, which this project deploys",
    )
    add("--solve", action="store_true", help="find the settings; what is given is a wish that must hold")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    model, ladder = _model(options.model)
    host = _host(options)
    version = options.engine_version or (versions.DEPLOYED if options.solve else versions.CALIBRATED)
    case = Case(model, host, engines.engine(version, is_moe=model.is_moe))
    way = solve if options.solve else judge
    return way(case, _wishes(options), ladder)


def _model(name: str) -> tuple[Model, list[catalogue.Entry]]:
    """The model and the entries that may replace it."""
    folder = Path(name)
    if name not in catalogue.names() and folder.exists():
        return from_folder(folder if folder.is_dir() else folder.parent), []
    entry = _entry(name)
    return from_entry(entry), [catalogue.load(other) for other in entry.alternatives]


def _entry(name: str) -> catalogue.Entry:
    """The entry of that name, or of that repository on the hub, in any case."""
    known = catalogue.names()
    if name in known:
        return catalogue.load(name)
    wanted = name.casefold()
    for entry in catalogue.load_all().values():
        if wanted in (entry.name, entry.repository.casefold(), entry.repository.rsplit("/", 1)[-1].casefold()):
            return entry
    raise RefusalError(catalogue.unknown_model(name, known, "--model, as it is no folder either"))


def _host(options: argparse.Namespace) -> gpus.Host:
    figures: dict[str, Any] = {
        "--gpu-total-gib": options.gpu_total_gib,
        "--gpu-count": options.gpu_count,
        "--compute-capability": options.compute_capability,
    }
    given = [name for name, value in figures.items() if value is not None]
    if options.gpu and given:
        raise RefusalError(
            Refusal("bad_arguments", f"--gpu and {', '.join(given)} exclude each other.", "Give one of them.")
        )
    if options.gpu:
        return gpus.parse(options.gpu)
    missing = [name for name in figures if name not in given]
    if missing:
        raise RefusalError(
            Refusal(
                "bad_arguments",
                f"{'Missing: ' + ', '.join(missing) if given else 'No GPU is named'}.",
                'Give --gpu "2x RTX 4090", or all of --gpu-total-gib, --gpu-count and --compute-capability.',
            )
        )
    for name in given:
        if not 0 < figures[name] < float("inf"):
            raise RefusalError(
                Refusal("impossible_value", f"{name}: {figures[name]} is not above 0.", f"Change {name}.")
            )
    return gpus.custom(options.gpu_total_gib, options.gpu_count, options.compute_capability)


def _wishes(options: argparse.Namespace) -> Wishes:
    if options.budget_gib is not None and options.gpu_memory_utilization != "auto":
        raise RefusalError(
            Refusal(
                "bad_arguments", "--budget-gib and --gpu-memory-utilization exclude each other.", "Give one of them."
            )
        )
    return Wishes(
        context=whole_number("--max-model-len", options.max_model_len),
        concurrent_requests=whole_number("--concurrent-requests", options.concurrent_requests) or 1,
        max_pixels=whole_number("--max-pixels", options.max_pixels),
        images_per_prompt=whole_number("--images-per-prompt", options.images_per_prompt, least=0),
        tensor_parallel_size=whole_number("--tensor-parallel-size", options.tensor_parallel_size),
        gpu_memory_utilization=fraction("--gpu-memory-utilization", options.gpu_memory_utilization),
        budget_gib=options.budget_gib,
        kv_cache_dtype=_dtype(options),
        max_num_seqs=whole_number("--max-num-seqs", options.max_num_seqs),
        max_num_batched_tokens=whole_number("--max-num-batched-tokens", options.max_num_batched_tokens),
        enforce_eager=options.enforce_eager,
        copies_encoder=options.mm_encoder_tp_mode == "data",
    )


def _dtype(options: argparse.Namespace) -> str | None:
    return None if options.kv_cache_dtype == "auto" else str(options.kv_cache_dtype)
