"""Check a configuration with vLLM's own parser. Runs in the engine image, because the flags depend on its version.

    python3 - CONFIG <parse_flags.py

Exits with 0 if the parser accepts the configuration, with 3 and the reason in the last line if it rejects it, and with
4 if the parser cannot be used.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

ACCEPTED, REFUSED, UNKNOWN = 0, 3, 4
# Modules that define the parser, newest vLLM release first.
PARSER_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")


def import_parser_module() -> Any:
    """Import vLLM's module that creates the parser."""
    for name in PARSER_MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise ModuleNotFoundError(f"found neither {' nor '.join(PARSER_MODULES)}")


def main(config: str) -> int:
    """Check the configuration and return the exit code."""
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        module = import_parser_module()
        parser = module.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    except Exception as error:
        # Without a GPU, vLLM may raise any exception.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return UNKNOWN
    try:
        module.validate_parsed_serve_args(parser.parse_args(["--config", config]))
    except SystemExit as error:
        return REFUSED if error.code else ACCEPTED
    except (TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    return ACCEPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
