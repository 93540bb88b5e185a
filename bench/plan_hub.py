"""A local hub with checkpoints of true size and no content, for tools that read a hub only.

Each model of the catalogue becomes a folder with config.json and one sparse file of weights: the header names every
tensor with its type, shape and place, as the published checkpoint does, and the rest is a hole.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.planner.weights import from_shapes  # noqa: E402

# Type of a tensor by the bytes of one element; the measured models hold no others.
_TYPES = {1: "F8_E4M3", 2: "BF16", 4: "F32"}


def write_checkpoint(entry: Entry, folder: Path) -> None:
    """Write config.json and the sparse weights of one entry."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(entry)))
    header: dict[str, Any] = {}
    place = 0
    for tensor in from_shapes(from_entry(entry)):
        elements = 1
        for side in tensor.shape:
            elements *= side
        header[tensor.name] = {
            "dtype": _TYPES[tensor.size // elements],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.size],
        }
        place += tensor.size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + place)


def config(entry: Entry) -> dict[str, Any]:
    """The config.json that an entry with vision stands for."""
    shapes = entry.shapes
    vision = {key: value for key, value in shapes["vision"].items() if key not in ("max_pixels", "min_pixels")}
    tied = shapes["tie_word_embeddings"]
    data: dict[str, Any] = {
        "architectures": [shapes["architecture"]],
        "model_type": "qwen3_vl",
        "dtype": shapes["dtype"],
        "tie_word_embeddings": tied,
        "text_config": {"model_type": "qwen3_vl_text", "dtype": shapes["dtype"], "tie_word_embeddings": tied}
        | shapes["text"],
        "vision_config": {"model_type": "qwen3_vl"} | vision,
    }
    if entry.quantization.block:
        data["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(entry.quantization.block)}
    return data


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
