"""Facts about a model that its memory depends on, from a catalogue entry or from a folder with config.json."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import (
    TEXT_SIZES,
    VISION_SIZES,
    Entry,
    Quantization,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

VISION_ARCHITECTURES = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
TEXT_ARCHITECTURES = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
ARCHITECTURES = (*VISION_ARCHITECTURES, *TEXT_ARCHITECTURES)

# Limits of the image processor of Qwen3-VL (preprocessor_config.json: longest_edge, shortest_edge).
MAX_PIXELS = 16_777_216
MIN_PIXELS = 65_536

# A safetensors header longer than this is a damaged file, not a header.
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Text:
    """Sizes of the language model; ``experts`` is 0 where it is dense."""

    vocab_size: int
    max_position_embeddings: int
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    experts: int = 0
    experts_per_token: int = 0


@dataclass(frozen=True)
class Vision:
    """Sizes of the vision tower; a merged token covers ``(patch_size * spatial_merge_size)**2`` pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int
    deepstack: int
    max_pixels: int = MAX_PIXELS
    min_pixels: int = MIN_PIXELS

    @property
    def pixels_per_token(self) -> int:
        """Pixels of an image that become one token of the language model."""
        return (self.patch_size * self.spatial_merge_size) ** 2

    @property
    def patches_per_token(self) -> int:
        """Patches of the vision tower that are merged into one token."""
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: its name, its shape and its size in bytes."""

    name: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Model:
    """All that the account needs to know about a model.

    Attributes:
        name: Name of the catalogue entry, or the folder.
        tied: Whether the head shares the embedding's weights.
        tensors: The checkpoint's own tensors where its headers could be read, else empty: then they follow from the
            shapes.
        known: Whether the shapes come from a published config.json (False: partly from memory).
    """

    name: str
    text: Text
    vision: Vision | None
    tied: bool
    quantization: Quantization
    images_per_prompt: int = 1
    tensors: tuple[Tensor, ...] = ()
    known: bool = True

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward layers are mixtures of experts."""
        return self.text.experts > 0


def from_entry(entry: Entry) -> Model:
    """Model facts from a catalogue entry; raises RefusalError where the entry exists to be refused."""
    if entry.refused:
        raise RefusalError(Refusal("model_refused", f"{entry.name}: {entry.refused.message}", entry.refused.fix))
    shapes = entry.shapes
    text = dict(shapes["text"])
    vision = dict(shapes["vision"]) if shapes.get("vision") else None
    if vision:
        vision["deepstack"] = len(vision.pop("deepstack_visual_indexes"))
    return Model(
        name=entry.name,
        text=Text(**text),
        vision=Vision(**vision) if vision else None,
        tied=shapes["tie_word_embeddings"],
        quantization=entry.quantization,
        images_per_prompt=entry.images_per_prompt,
        known="memory" not in entry.source,
    )


def from_folder(folder: Path) -> Model:
    """Model facts from a folder as the hub serves it: config.json, and the headers of its weights where present.

    Raises RefusalError where config.json is missing, not JSON, of another architecture, or lacks a size.
    """
    config = _read_json(folder / "config.json")
    processor = folder / "preprocessor_config.json"
    limits = _read_json(processor).get("size", {}) if processor.exists() else {}
    return from_config(config, name=str(folder), limits=limits, tensors=_headers(folder))


def from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    limits: Mapping[str, Any] | None = None,
    tensors: tuple[Tensor, ...] = (),
) -> Model:
    """Model facts from the content of a config.json.

    Args:
        config: The parsed file.
        name: What to call the model in messages.
        limits: ``size`` of preprocessor_config.json (longest_edge, shortest_edge).
        tensors: Tensors that the headers of the weights name.
    """
    architecture = (config.get("architectures") or ["none named"])[0]
    if architecture not in ARCHITECTURES:
        raise RefusalError(
            Refusal(
                "unsupported_architecture",
                f"{name}: architecture {architecture} is not one that the planner can account for "
                f"({', '.join(ARCHITECTURES)}); it lacks the sizes under text_config and vision_config.",
                "Choose a Qwen3-VL or Qwen3 model.",
            )
        )
    has_vision = architecture in VISION_ARCHITECTURES
    text_config = config.get("text_config", {}) if has_vision else config
    text = _sizes(name, "text_config", text_config, _TEXT_KEYS)
    moe = bool(text_config.get("num_experts"))
    if moe:
        text |= _sizes(name, "text_config", text_config, _MOE_KEYS)
    vision = None
    if has_vision:
        sizes = _sizes(name, "vision_config", config.get("vision_config", {}), _VISION_KEYS)
        sizes["max_pixels"] = (limits or {}).get("longest_edge", MAX_PIXELS)
        sizes["min_pixels"] = (limits or {}).get("shortest_edge", MIN_PIXELS)
        vision = Vision(**sizes, deepstack=len(config["vision_config"].get("deepstack_visual_indexes", [])))
    tied = config.get("tie_word_embeddings", text_config.get("tie_word_embeddings", False))
    return Model(
        name=name,
        text=Text(**text),
        vision=vision,
        tied=bool(tied),
        quantization=_quantization(name, config.get("quantization_config") or text_config.get("quantization_config")),
        images_per_prompt=4 if vision else 0,
        tensors=tensors,
    )


# Our name of each size, and the name in config.json.
_TEXT_KEYS = {key: key for key in TEXT_SIZES}
_MOE_KEYS = {
    "intermediate_size": "moe_intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
}
_VISION_KEYS = {key: key for key in VISION_SIZES}


def _sizes(name: str, section: str, config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, int]:
    bad = [key for key in keys.values() if not isinstance(config.get(key), int) or config[key] < 1]
    if bad:
        raise RefusalError(
            Refusal(
                "incomplete_config",
                f"{name}: {section} of config.json has no positive whole number for {', '.join(bad)}.",
                "Take config.json as the model's repository publishes it.",
            )
        )
    return {ours: config[theirs] for ours, theirs in keys.items()}


def _quantization(name: str, config: Mapping[str, Any] | None) -> Quantization:
    if not config:
        return Quantization("none")
    method = config.get("quant_method")
    if method == "fp8" and config.get("weight_block_size"):
        rows, columns = config["weight_block_size"]
        return Quantization("fp8", 8, block=(rows, columns))
    if method == "awq":
        return Quantization(
            "awq", config.get("bits", 4), group_size=config["group_size"], scale_bits=16, zero_points=True
        )
    if method == "compressed-tensors":
        weights = next(iter(config["config_groups"].values()))["weights"]
        if weights["num_bits"] == _FOUR_BITS and weights.get("group_size"):
            floating = weights.get("type") == "float"
            return Quantization(
                "nvfp4" if floating else "compressed-tensors",
                _FOUR_BITS,
                group_size=weights["group_size"],
                scale_bits=8 if floating else 16,
                zero_points=not weights.get("symmetric", True),
            )
    raise RefusalError(
        Refusal(
            "unsupported_quantization",
            f"{name}: the planner cannot account for quantisation {method!r} of config.json "
            "(it knows none, fp8 with blocks, awq, and compressed-tensors with 4-bit groups).",
            "Choose a variant of the catalogue.",
        )
    )


_FOUR_BITS = 4


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefusalError(
            Refusal(
                "unreadable_model",
                f"{path} cannot be read as JSON: {error}.",
                "Give a folder with the model's config.json.",
            )
        ) from error
    if not isinstance(data, dict):
        raise RefusalError(Refusal("unreadable_model", f"{path} does not hold an object.", "Take the published file."))
    return data


def _headers(folder: Path) -> tuple[Tensor, ...]:
    """Tensors that the headers of ``*.safetensors`` name; empty where there are no weights.

    Format: eight bytes with the header's length (little endian), then JSON with dtype and shape of each tensor.
    """
    tensors = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _HEADER_LIMIT:
                    raise ValueError(f"header of {length} bytes")
                header = json.loads(file.read(length))
            tensors += [
                Tensor(key, tuple(value["shape"]), value["data_offsets"][1] - value["data_offsets"][0])
                for key, value in header.items()
                if key != "__metadata__"
            ]
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise RefusalError(
                Refusal("damaged_weights", f"{path} has no safetensors header: {error}.", "Fetch the file again.")
            ) from error
    return tuple(tensors)
