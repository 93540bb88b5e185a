"""Sparse checkpoints with the real size and structure.

Creates a folder with config.json and one sparse weights file for a model of the catalogue. The header lists every
tensor with its type, shape and offsets, like the published checkpoint; the data is a hole.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import from_shapes

# Tensor type by bytes per element. Eight 4-bit values are packed into one 32-bit integer. The measured models have no
# other types.
_TYPES = {0.5: "I32", 1: "F8_E4M3", 2: "BF16", 4: "F32"}


def write_checkpoint(entry: Entry, folder: Path, leave_out: str = "") -> None:
    """Write config.json and the sparse weights of an entry, except tensors with ``leave_out`` in their name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(entry)))
    header: dict[str, Any] = {}
    place = 0
    for tensor in from_shapes(from_entry(entry)):
        if leave_out and leave_out in tensor.name:
            continue
        elements = 1
        for side in tensor.shape:
            elements *= side
        header[tensor.name] = {
            "dtype": _TYPES[tensor.size / elements],
            "shape": list(tensor.shape) if tensor.size >= elements else [tensor.size // 4],
            "data_offsets": [place, place + tensor.size],
        }
        place += tensor.size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + place)


def config(entry: Entry) -> dict[str, Any]:
    """Content of the config.json of an entry."""
    shapes = entry.shapes
    common = {"dtype": shapes["dtype"], "tie_word_embeddings": shapes["tie_word_embeddings"]}
    data: dict[str, Any] = {"architectures": [shapes["architecture"]], **common}
    if shapes["vision"]:
        vision = {key: value for key, value in shapes["vision"].items() if key not in ("max_pixels", "min_pixels")}
        data |= {
            "model_type": "qwen3_vl",
            "text_config": {"model_type": "qwen3_vl_text"} | common | shapes["text"],
            "vision_config": {"model_type": "qwen3_vl"} | vision,
        }
    else:
        data |= {"model_type": "qwen3"} | shapes["text"]
    how = entry.quantization
    if how.block:
        data["quantization_config"] = {"quant_method": how.method, "weight_block_size": list(how.block)}
    elif how.group_size:
        data["quantization_config"] = {
            "quant_method": how.method,
            "bits": how.weight_bits,
            "group_size": how.group_size,
            "zero_point": how.zero_points,
        }
    return data
