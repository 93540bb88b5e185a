"""Does vLLM's own parser take a configuration? Runs in the engine's image, which alone knows what its version takes.

    python3 - CONFIG <parse_flags.py

Exit code 0 where it does, 3 where it does not, with the reason as the last line, and 4 where it cannot be asked.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

TAKEN, REFUSED, UNKNOWN = 0, 3, 4
# Where the parser is defined, newest release first.
HOMES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")


def home() -> Any:
    """vLLM's module that makes the parser."""
    for name in HOMES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise ModuleNotFoundError(f"neither {' nor '.join(HOMES)} is there")


def main(config: str) -> int:
    """Ask; the exit code."""
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        found = home()
        parser = found.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    except Exception as error:
        # An engine without its GPU may fail in any way.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return UNKNOWN
    try:
        found.validate_parsed_serve_args(parser.parse_args(["--config", config]))
    except SystemExit as error:
        return REFUSED if error.code else TAKEN
    except (TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    return TAKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
