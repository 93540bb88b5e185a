"""The command ``bin/vram-plan``. Prints a table or JSON; exit code 0: fits, 1: does not fit, 2: invalid input."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case, Plan
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model, from_entry, from_folder
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import (
    REQUIREMENTS,
    Requirement,
    Requirements,
    option_name,
    read,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import judge, solve
from ansible_collections.inference.vllm.plugins.module_utils.planner.table import table
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

FITS, DOES_NOT_FIT, BAD_INPUT = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """Raises a refusal for an invalid option, so that ``--json`` also applies to it."""

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
        description="Determine whether a model fits GPUs, and the flags of vLLM for it, before the download. "
        "Without --solve, the settings are judged, with vLLM's defaults for those that are not set. With --solve, the "
        "options are requirements, and the other settings are chosen.",
        epilog="Exit code: 0: fits, 1: does not fit, 2: invalid input.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME_OR_FOLDER", help="entry of the catalogue, repository or folder")
    add("--gpu", metavar='"2x RTX 4090"', help="GPUs by count and name")
    add("--gpu-total-gib", type=float, metavar="F", help="instead of --gpu: memory of a CUDA process, in GiB")
    add("--gpu-count", type=int, metavar="N", help="with --gpu-total-gib: number of GPUs")
    add("--compute-capability", type=float, metavar="X.Y", help="with --gpu-total-gib: for example 8.9")
    add(
        "--catalogue-dir",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="folder with your own entries, searched first; may be repeated",
    )
    for row in REQUIREMENTS:
        _add_requirement(parser, row)
    add("--budget-gib", type=float, metavar="F", help="memory of each GPU for the engine, instead of a fraction")
    add(
        "--engine-version",
        metavar="X.Y.Z",
        help=f"version of vLLM to plan for; default: {versions.CALIBRATED}, the newest measured one, or with --solve "
        f"{versions.DEPLOYED}, the deployed one",
    )
    add("--solve", action="store_true", help="find the settings")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _add_requirement(parser: argparse.ArgumentParser, row: Requirement) -> None:
    """Add one row of the table as an option, its help without the markup of Ansible's documentation."""
    text = re.sub(r"\b[A-Z]\(([^)]*)\)", r"\1", row.help).rstrip(".")
    text = text[0].lower() + text[1:] if text[1].islower() else text
    if row.kind == "bool":
        parser.add_argument(option_name(row.name), action="store_true", help=text)
        return
    option = row.option()
    metavar = None if row.choices else {"int": "N", "float": "F"}[row.kind]
    parser.add_argument(
        option_name(row.name), default=option["default"], choices=option.get("choices"), metavar=metavar, help=text
    )


def _plan(options: argparse.Namespace) -> Plan:
    model, ladder = _model(options.model, options.catalogue_dir)
    host = _host(options)
    version = options.engine_version or (versions.DEPLOYED if options.solve else versions.CALIBRATED)
    case = Case(model, host, engines.engine(version, is_moe=model.is_moe))
    way = solve if options.solve else judge
    return way(case, _requirements(options), ladder)


def _model(name: str, own: Sequence[Path]) -> tuple[Model, list[catalogue.Entry]]:
    """The model and its alternatives."""
    folder = Path(name)
    if name not in catalogue.names(own) and folder.exists():
        return from_folder(folder if folder.is_dir() else folder.parent), []
    entry = _entry(name, own)
    return from_entry(entry), [catalogue.load(other, own) for other in entry.alternatives]


def _entry(name: str, own: Sequence[Path]) -> catalogue.Entry:
    """The entry with that name, or with that repository on the hub, ignoring case."""
    known = catalogue.names(own)
    if name in known:
        return catalogue.load(name, own)
    wanted = name.casefold()
    for entry in catalogue.load_all(own).values():
        if wanted in (entry.name, entry.repository.casefold(), entry.repository.rsplit("/", 1)[-1].casefold()):
            return entry
    raise RefusalError(catalogue.unknown_model(name, known, "--model, which is not a folder either"))


def _host(options: argparse.Namespace) -> gpus.Host:
    figures: dict[str, Any] = {
        "--gpu-total-gib": options.gpu_total_gib,
        "--gpu-count": options.gpu_count,
        "--compute-capability": options.compute_capability,
    }
    given = [name for name, value in figures.items() if value is not None]
    if options.gpu and given:
        raise RefusalError(
            Refusal("bad_arguments", f"--gpu and {', '.join(given)} exclude each other.", "Set one of them.")
        )
    if options.gpu:
        return gpus.parse(options.gpu)
    missing = [name for name in figures if name not in given]
    if missing:
        raise RefusalError(
            Refusal(
                "bad_arguments",
                f"{'Missing: ' + ', '.join(missing) if given else 'No GPU is named'}.",
                'Set --gpu "2x RTX 4090", or all of --gpu-total-gib, --gpu-count and --compute-capability.',
            )
        )
    for name in given:
        if not 0 < figures[name] < float("inf"):
            raise RefusalError(
                Refusal("impossible_value", f"{name}: {figures[name]} is not above 0.", f"Change {name}.")
            )
    return gpus.custom(options.gpu_total_gib, options.gpu_count, options.compute_capability)


def _requirements(options: argparse.Namespace) -> Requirements:
    if options.budget_gib is not None and options.gpu_memory_utilization != "auto":
        raise RefusalError(
            Refusal(
                "bad_arguments", "--budget-gib and --gpu-memory-utilization exclude each other.", "Give one of them."
            )
        )
    return replace(read(vars(options), option_name), budget_gib=options.budget_gib)
