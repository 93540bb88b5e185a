"""Local hub with sparse checkpoints of the real size, for tools that read models only from a hub."""

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
    """The project's local hub with these folders on a free port. The caller runs and closes it."""
    hub = _hub()

    class Handler(hub.HubHandler):  # type: ignore[name-defined]
        """Adds the model information of the public hub."""

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing, to keep the output to the table."""

        def send_json(self, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            """Send data, with config.json for a model."""
            if isinstance(data, dict) and "modelId" in data:
                path = root / data["modelId"] / "config.json"
                data = data | {"config": json.loads(path.read_text()), "library_name": "transformers"}
            super().send_json(data, status, headers)

    # Hashing tens of GiB of a sparse file would take minutes.
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
