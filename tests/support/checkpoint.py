"""Checkpoints of true size and no content.

A model of the catalogue becomes a folder with config.json and one sparse file of weights: the header names every
tensor with its type, shape and place, as the published checkpoint does, and the rest is a hole.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import from_shapes

# Type of a tensor by the bytes of one element; 4-bit values lie eight to a 32-bit number. The measured models hold no
# others.
_TYPES = {0.5: "I32", 1: "F8_E4M3", 2: "BF16", 4: "F32"}


def write_checkpoint(entry: Entry, folder: Path, leave_out: str = "") -> None:
    """Write config.json and the sparse weights of one entry, without the tensors whose names hold ``leave_out``."""
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
    """The config.json that an entry stands for."""
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
