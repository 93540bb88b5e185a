"""A local hub with checkpoints of true size and no content, for tools that read a hub only."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]


def serve(root: Path) -> Any:
    """The project's local hub over these folders, on a free port; the caller runs and closes it."""
    hub = _hub()

    class Handler(hub.HubHandler):  # type: ignore[name-defined]
        """Adds what the public hub tells of a model beside its files."""

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the table is what the reader wants."""

        def send_json(self, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            """Send data, a model's with its config."""
            if isinstance(data, dict) and "modelId" in data:
                path = root / data["modelId"] / "config.json"
                data = data | {"config": json.loads(path.read_text()), "library_name": "transformers"}
            super().send_json(data, status, headers)

    # The content is a hole of tens of GiB: its hash is not worth the minutes.
    vars(hub)["_hashes"] = lambda file, size: (hashlib.sha256(f"{file} {size}".encode()).hexdigest(), "0" * 40)
    return hub.HubServer("127.0.0.1", 0, root, Handler)


def _hub() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_hub", ROOT / "roles/local_hub/files/hub.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("roles/local_hub/files/hub.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
