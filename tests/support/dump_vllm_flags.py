"""Print the flags of `vllm serve` from vLLM's own parser as JSON. Run it with the Python that has vLLM.

    python dump_vllm_flags.py > flags.json

The unit test of the flag table reads this list from tests/unit/golden/vllm_serve_flags.json.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

# Modules that define the parser, newest vLLM release first.
PARSER_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")


def parser() -> Any:
    """vLLM's argument parser for `vllm serve`."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in PARSER_MODULES:
        if importlib.util.find_spec(name):
            return importlib.import_module(name).make_arg_parser(FlexibleArgumentParser())
    raise SystemExit(f"no parser in {' or '.join(PARSER_MODULES)}")


def kind(action: Any) -> str:
    """Kind of value of an argparse action, as named in the flag table."""
    if action.nargs == 0:
        return "bool"
    if action.nargs == "+":
        return "list"
    return getattr(action.type, "__name__", "other")


def main() -> None:
    """Print the list."""
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
