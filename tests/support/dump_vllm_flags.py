"""Print what vLLM's own parser knows of each flag of `vllm serve`, as JSON; run with the Python that has vLLM.

    python dump_vllm_flags.py > flags.json

The unit test of the flag table reads such a list from tests/unit/golden/vllm_serve_flags.json.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

# Where the parser was defined, newest release first.
HOMES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")


def parser() -> Any:
    """vLLM's argument parser for `vllm serve`."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for home in HOMES:
        if importlib.util.find_spec(home):
            return importlib.import_module(home).make_arg_parser(FlexibleArgumentParser())
    raise SystemExit(f"no parser in {' or '.join(HOMES)}")


def kind(action: Any) -> str:
    """The table's word for what an action takes."""
    if action.nargs == 0:
        return "bool"
    if action.nargs == "+":
        return "list"
    return getattr(action.type, "__name__", "other")


def main() -> None:
    """Write the list to standard output."""
    flags = {
        option[2:]: {
            "kind": kind(action),
            "choices": sorted(map(str, action.choices)) if action.choices else [],
            "negatable": any(other.startswith("--no-") for other in action.option_strings),
        }
        for action in parser()._actions
        for option in action.option_strings
        if option.startswith("--") and not option.startswith("--no-")
    }
    json.dump(flags, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
