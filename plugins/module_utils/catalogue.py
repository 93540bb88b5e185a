"""The catalogue: what the project knows about each model variant.

``catalogue/<name>.yaml`` is one variant (repository, quantisation, parsers, lowest safe engine); the sizes of its
layers stand once per family in ``catalogue/shapes/<family>.yaml``. This module reads and checks both. It needs
PyYAML only where files are read, so that a host without it can still take an entry that the controller has read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

VARIANTS = ("instruct", "thinking", "text")
ACCELERATORS = ("nvidia", "cpu")
TOOL_CALL_PARSERS = ("hermes",)
REASONING_PARSERS = ("qwen3",)
METHODS = ("none", "fp8", "awq", "compressed-tensors", "nvfp4", "gguf")

_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of the language model are stored; vision tower, embeddings and head stay in BF16.

    Attributes:
        method: One of ``METHODS``; ``none`` is BF16 throughout.
        weight_bits: Bits of one stored weight.
        block: Rows and columns that share one scale (``fp8``), else None.
        group_size: Input columns that share one scale (4-bit methods), else None.
        scale_bits: Bits of one scale.
        zero_points: Whether each group also stores a packed zero point.
    """

    method: str
    weight_bits: int = 16
    block: tuple[int, int] | None = None
    group_size: int | None = None
    scale_bits: int = 32
    zero_points: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quantization:
        """Read the mapping ``quantization`` of an entry; unknown keys raise TypeError."""
        block = data.get("block")
        return cls(**{**data, "block": tuple(block) if block else None})


@dataclass(frozen=True)
class Refused:
    """Why a variant is listed only to be refused."""

    message: str
    fix: str


@dataclass(frozen=True)
class Entry:
    """One model variant of the catalogue.

    Attributes:
        name: Name of the file without ``.yaml``; what ``vllm_model`` holds.
        title: One line for people.
        repository: ``owner/name`` on the hub.
        revision: Branch, tag or commit to resolve.
        variant: ``instruct``, ``thinking`` or ``text`` (no vision).
        served_model_name: Name that clients ask for.
        tool_call_parser: Value of vLLM's ``--tool-call-parser``, or None.
        reasoning_parser: Value of ``--reasoning-parser``; only a thinking variant has one.
        images_per_prompt: Images that one request may hold unless the operator says otherwise.
        min_engine_version: Lowest vLLM that loads it and has no known hole.
        quantization: How the weights are stored.
        accelerators: What it runs on: ``nvidia``, ``cpu``.
        min_compute_capability: Lowest CUDA compute capability, or None on a CPU.
        shapes: Sizes of the layers, from ``catalogue/shapes/``.
        source: Where the figures come from (a config.json, a boot, memory).
        flags: Further vLLM flags that belong to the model, by dashed name without the dashes.
        alternatives: Entries to try next where this one does not fit, best first.
        refused: Set where the variant exists only to be refused.
    """

    name: str
    title: str
    repository: str
    revision: str
    variant: str
    served_model_name: str
    tool_call_parser: str | None
    reasoning_parser: str | None
    images_per_prompt: int
    min_engine_version: str
    quantization: Quantization
    accelerators: tuple[str, ...]
    min_compute_capability: float | None
    shapes: Mapping[str, Any]
    source: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    refused: Refused | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """Build an entry from plain data, such as ``as_dict`` gives; raises RefusalError where it is not valid."""
        problems = check(data)
        if problems:
            raise RefusalError(*problems)
        refused = data.get("refused")
        return cls(
            **{
                **data,
                "quantization": Quantization.from_dict(data["quantization"]),
                "accelerators": tuple(data["accelerators"]),
                "alternatives": tuple(data.get("alternatives", ())),
                "refused": Refused(**refused) if refused else None,
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain data for JSON, Jinja and module arguments."""
        return asdict(self)


def folder_of_project() -> Path:
    """The folder ``catalogue/`` of the checkout that this file belongs to."""
    return Path(__file__).resolve().parents[2] / "catalogue"


def names(folder: Path | None = None) -> list[str]:
    """Names of all entries, sorted."""
    return sorted(path.stem for path in (folder or folder_of_project()).glob("*.yaml"))


def unknown_model(name: object, known: Collection[str], variable: str = "vllm_model") -> Refusal:
    """The refusal of a model that is not among the known; a repository's own name leads to its entry, too."""
    like = closest(str(name).rsplit("/", maxsplit=1)[-1], known)
    return Refusal(
        "unknown_model",
        f"{variable}: {name!r} is not in the catalogue, which has: {', '.join(sorted(known))}.",
        f"Set it to {' or '.join(like)}." if like else "Set it to one of these.",
    )


def load(name: str, folder: Path | None = None) -> Entry:
    """Read one entry with its shapes; raises RefusalError with the nearest names or with what is wrong in the file."""
    where = folder or folder_of_project()
    if name not in names(where):
        raise RefusalError(unknown_model(name, names(where)))
    data = _read_yaml(where / f"{name}.yaml")
    family = data.get("shapes")
    if isinstance(family, str):
        data["shapes"] = _read_yaml(where / "shapes" / f"{family}.yaml")
    if data.get("name") != name:
        raise RefusalError(_invalid(name, f"its name is {data.get('name')!r}, its file {name}.yaml"))
    return Entry.from_dict(data)


def load_all(folder: Path | None = None) -> dict[str, Entry]:
    """All entries by name."""
    return {name: load(name, folder) for name in names(folder)}


def check(data: Mapping[str, Any]) -> list[Refusal]:
    """All that is wrong with the plain data of one entry; an empty list where it is valid."""
    name = str(data.get("name"))
    missing = [item.name for item in fields(Entry) if item.name not in data and item.name not in _OPTIONAL]
    unknown = sorted(set(data) - {item.name for item in fields(Entry)})
    if missing or unknown:
        return [_invalid(name, f"missing keys {missing}, unknown keys {unknown}")]
    return [_invalid(name, problem) for problem in _problems(data)]


_OPTIONAL = ("flags", "alternatives", "refused")


def _problems(data: Mapping[str, Any]) -> list[str]:
    found = []
    for key, pattern in (("name", _NAME), ("repository", _REPOSITORY), ("min_engine_version", versions.PLAIN)):
        if not isinstance(data[key], str) or not pattern.fullmatch(data[key]):
            found.append(f"{key} is {data[key]!r}, which does not match {pattern.pattern}")
    for key, allowed in (
        ("variant", VARIANTS),
        ("tool_call_parser", (None, *TOOL_CALL_PARSERS)),
        ("reasoning_parser", (None, *REASONING_PARSERS)),
    ):
        if data[key] not in allowed:
            found.append(f"{key} is {data[key]!r}, allowed are {', '.join(map(str, allowed))}")
    if not data["accelerators"] or set(data["accelerators"]) - set(ACCELERATORS):
        found.append(f"accelerators is {data['accelerators']!r}, allowed are {', '.join(ACCELERATORS)}")
    if (data["reasoning_parser"] is not None) != (data["variant"] == "thinking"):
        # On an Instruct model it moves the whole answer into `reasoning` and leaves `content` null.
        found.append(f"reasoning_parser is {data['reasoning_parser']!r}; a thinking variant needs one, others must not")
    images = data["images_per_prompt"]
    if not isinstance(images, int) or images < 0 or (images == 0) != (data["variant"] == "text"):
        found.append(f"images_per_prompt is {images!r}; at least 1 with vision, 0 for a text variant")
    quantization = data["quantization"]
    if not isinstance(quantization, Mapping) or quantization.get("method") not in METHODS:
        found.append(f"quantization is {quantization!r}; its method is one of {', '.join(METHODS)}")
    return [*found, *_shape_problems(data["shapes"])]


#: Sizes of the language model, by the names that config.json has for them.
TEXT_SIZES = (
    "vocab_size",
    "max_position_embeddings",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def _shape_problems(shapes: Any) -> list[str]:
    if not isinstance(shapes, Mapping):
        return [f"shapes is {shapes!r}, not a mapping or the name of a file in shapes/"]
    text = shapes.get("text") or {}
    bad = [size for size in TEXT_SIZES if not isinstance(text.get(size), int) or text[size] < 1]
    missing = [key for key in ("architecture", "tie_word_embeddings", "vision") if key not in shapes]
    problems = [f"shapes.text has no positive whole number for {', '.join(bad)}"] if bad else []
    return [*problems, *(f"shapes has no {key}" for key in missing)]


def _invalid(name: str, problem: str) -> Refusal:
    return Refusal("invalid_catalogue_entry", f"catalogue entry {name}: {problem}.", "Correct the file in catalogue/.")


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # hosts that receive entries as data have no PyYAML

    # By libyaml where that is there, which is ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - both are safe
    except (OSError, yaml.YAMLError) as error:
        raise RefusalError(_invalid(path.stem, f"{path} cannot be read: {error}")) from error
    if not isinstance(data, dict):
        raise RefusalError(_invalid(path.stem, f"{path} does not hold a mapping"))
    return data
