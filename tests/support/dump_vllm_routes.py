"""Print every route of vLLM's API server as JSON. Run it with the Python that has vLLM.

    python dump_vllm_routes.py > tests/unit/golden/vllm_routes.json

More complete than its OpenAPI document: includes the routes of all tasks, the development endpoints, and undocumented
routes. The gateway test sends a request to each of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_SERVER_DEV_MODE"] = "1"
os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"


def application() -> Any:
    """The ASGI application of `vllm serve`, without an engine."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.tasks import SupportedTask
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--enable-prompt-tokens-details"])
    tasks = tuple(task for part in get_args(SupportedTask) for task in (get_args(part) or (part,)))
    # The attributes that the routers read; num_labels=1 enables the scoring routes.
    model = SimpleNamespace(get_pooling_task=lambda tasks: "embed", hf_config=SimpleNamespace(num_labels=1))
    return build_app(args, tasks, model)


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of each route; GET for mounted applications and web sockets."""
    for route in app.routes:
        for method in getattr(route, "methods", None) or ("GET",):
            yield method, route.path


def main() -> None:
    """Print the list."""
    from importlib.metadata import version

    found = sorted(set(routes(application())), key=lambda route: (route[1], route[0]))
    about = "Routes of vLLM's API server, every task and the development mode on (tests/support/dump_vllm_routes.py)."
    lines = ",\n  ".join(json.dumps(route) for route in found)
    release = version("vllm").partition("+")[0]
    sys.stdout.write(
        f'{{\n "about": {json.dumps(about)},\n "release": {json.dumps(release)},\n "routes": [\n  {lines}\n ]\n}}\n'
    )


if __name__ == "__main__":
    main()
