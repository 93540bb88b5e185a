"""The catalogue: the known model variants.

``catalogue/<name>.yaml`` is one variant (repository, quantisation, parsers, lowest safe engine); the sizes of its
layers and its alternatives are in one file per family, ``catalogue/shapes/<family>.yaml``. Folders of the user have
the same layout and are searched first: an entry of the same name replaces the built-in one. A user's entry may use
built-in shapes. This module reads and checks both. It needs PyYAML only to read files, so that a host without PyYAML
can use an entry that the controller has read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

VARIANTS = ("instruct", "thinking", "text")
ACCELERATORS = ("nvidia", "cpu")
#: Parsers of vLLM, for catalogue entries and the flags of the service.
TOOL_CALL_PARSERS = ("hermes", "qwen3_coder", "qwen3_xml")
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
        block: Rows and columns that share one scale (``fp8``), otherwise None.
        group_size: Input columns that share one scale (4-bit methods), otherwise None.
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
    """Message and fix of a variant that is always refused."""

    message: str
    fix: str


@dataclass(frozen=True)
class Entry:
    """One model variant of the catalogue.

    Attributes:
        name: Name of the file without ``.yaml``, the value of ``vllm_model``.
        title: Description in one line.
        repository: ``owner/name`` on the hub.
        revision: Branch, tag or commit to resolve.
        variant: ``instruct``, ``thinking`` or ``text`` (no vision).
        served_model_name: Model name in requests.
        tool_call_parser: Value of vLLM's ``--tool-call-parser``, or None.
        reasoning_parser: Value of ``--reasoning-parser``; only a thinking variant has one.
        images_per_prompt: Default limit of images in one request.
        min_engine_version: Lowest version of vLLM that loads it and has no known vulnerability.
        quantization: How the weights are stored.
        accelerators: Supported accelerators: ``nvidia``, ``cpu``.
        min_compute_capability: Lowest CUDA compute capability, or None on a CPU.
        shapes: Sizes of the layers, from ``catalogue/shapes/``.
        source: Source of the figures (a config.json, a boot, memory).
        flags: Other vLLM flags of the model, by name without leading dashes.
        alternatives: Entries to try if this one does not fit, best first; by default those of the family that come
            after this one.
        refused: Set if the variant is always refused.
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
        """Build an entry from the plain data of :meth:`as_dict`; raises RefusalError if it is not valid."""
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
    """The folder ``catalogue/`` of this collection."""
    return Path(__file__).resolve().parents[2] / "catalogue"


def folders(own: Iterable[Path] = ()) -> list[Path]:
    """The folders of entries in search order; raises RefusalError for one that does not exist."""
    own = list(own)
    for folder in own:
        if not folder.is_dir():
            raise RefusalError(
                Refusal(
                    "missing_catalogue_dir",
                    f"vllm_catalogue_dirs or --catalogue-dir: {str(folder)!r} is not a folder on this machine.",
                    "Create it, or correct the path.",
                )
            )
    return [*own, folder_of_project()]


def names(own: Iterable[Path] = ()) -> list[str]:
    """Names of all entries, sorted."""
    return sorted({path.stem for folder in folders(own) for path in folder.glob("*.yaml")})


def unknown_model(name: object, known: Collection[str], variable: str = "vllm_model") -> Refusal:
    """The refusal of an unknown model; the fix also suggests the entry of a repository name."""
    like = closest(str(name).rsplit("/", maxsplit=1)[-1], known)
    return Refusal(
        "unknown_model",
        f"{variable}: {name!r} is not in the catalogue, which has: {', '.join(sorted(known))}.",
        f"Set it to {' or '.join(like)}." if like else "Set it to one of these.",
    )


def load(name: str, own: Iterable[Path] = ()) -> Entry:
    """Read one entry with its shapes; raises RefusalError with the closest names, or with the errors in the file.

    Args:
        name: Name of the entry.
        own: Folders of the user; searched first.
    """
    where = folders(own)
    known = names(own)
    if name not in known:
        raise RefusalError(unknown_model(name, known))
    path = _first(where, f"{name}.yaml")
    data = _read_yaml(path)
    family = data.get("shapes")
    if isinstance(family, str):
        data["shapes"], ladder = _family(where, family, path)
        # The list is sorted: only the models after the entry are alternatives.
        data.setdefault("alternatives", ladder[ladder.index(name) + 1 :] if name in ladder else ladder)
    problems = [f"its name is {data.get('name')!r}, its file {path.name}"] if data.get("name") != name else _check(data)
    if not problems:
        unknown = [other for other in data.get("alternatives", ()) if other not in known]
        problems = [f"alternatives has {', '.join(unknown)}, which the catalogue does not have"] if unknown else []
    if problems:
        raise RefusalError(*(_invalid(str(path), problem) for problem in problems))
    return Entry.from_dict(data)


def load_all(own: Iterable[Path] = ()) -> dict[str, Entry]:
    """All entries by name."""
    own = list(own)
    return {name: load(name, own) for name in names(own)}


def lock_file(name: str, own: Iterable[Path] = ()) -> Path:
    """Path of the lock of an entry's weights, or of a new lock; raises RefusalError if there is no such entry.

    This is the first ``locks/<name>.json`` in the folders up to the one of the entry; a lock in a later folder belongs
    to an entry that is replaced. A new lock is in the folder of a user's entry; for a built-in entry it is in the first
    folder of the user.
    """
    where = folders(own)
    if name not in names(where[:-1]):
        raise RefusalError(unknown_model(name, names(where[:-1])))
    home = _first(where, f"{name}.yaml").parent
    locks = [folder / "locks" / f"{name}.json" for folder in where[: where.index(home) + 1]]
    new = locks[0] if home == where[-1] else locks[-1]
    return next((lock for lock in locks if lock.is_file()), new)


def check(data: Mapping[str, Any]) -> list[Refusal]:
    """All errors in the plain data of one entry; empty if it is valid."""
    return [_invalid(f"catalogue entry {data.get('name')}", problem) for problem in _check(data)]


def _check(data: Mapping[str, Any]) -> list[str]:
    missing = [item.name for item in fields(Entry) if item.name not in data and item.name not in _OPTIONAL]
    unknown = sorted(map(str, set(data) - {item.name for item in fields(Entry)}))
    if missing or unknown:
        return [f"missing keys {missing}, unknown keys {unknown}"]
    return _problems(data)


def _first(where: Iterable[Path], name: str) -> Path:
    return next(folder / name for folder in where if (folder / name).is_file())


def _family(where: Sequence[Path], family: str, entry: Path) -> tuple[dict[str, Any], list[Any]]:
    """The shapes of a family, and the alternatives of its entries."""
    known = {path.stem for folder in where for path in (folder / "shapes").glob("*.yaml")}
    if family not in known:
        problem = f"shapes is {family!r}; no folder of the catalogue has shapes/{family}.yaml"
        raise RefusalError(_invalid(str(entry), problem))
    path = _first(where, f"shapes/{family}.yaml")
    shapes = _read_yaml(path)
    ladder = shapes.pop("alternatives", [])
    problems = _shape_problems(shapes)
    if not _is_texts(ladder):
        problems.append(f"alternatives is {ladder!r}, not a list of names")
    if problems:
        raise RefusalError(*(_invalid(str(path), problem) for problem in problems))
    return shapes, ladder


_OPTIONAL = ("flags", "alternatives", "refused")


def _problems(data: Mapping[str, Any]) -> list[str]:
    found = [
        f"{key} is {data[key]!r}, not a text in one line"
        for key in ("title", "revision", "served_model_name", "source")
        if not _is_text(data[key])
    ]
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
    accelerators = data["accelerators"]
    if not _is_texts(accelerators) or not accelerators or set(accelerators) - set(ACCELERATORS):
        found.append(f"accelerators is {accelerators!r}, allowed is a list of {', '.join(ACCELERATORS)}")
    if (data["reasoning_parser"] is not None) != (data["variant"] == "thinking"):
        # With an Instruct model the parser moves the whole answer into `reasoning`, and `content` is null.
        found.append(f"reasoning_parser is {data['reasoning_parser']!r}; a thinking variant needs one, others must not")
    images = data["images_per_prompt"]
    if not _is_size(images, least=0) or (images == 0) != (data["variant"] == "text"):
        found.append(f"images_per_prompt is {images!r}; at least 1 with vision, 0 for a text variant")
    capability = data["min_compute_capability"]
    if capability is not None and (isinstance(capability, bool) or not isinstance(capability, (int, float))):
        found.append(f"min_compute_capability is {capability!r}, not a number such as 8.9 or null")
    found += _quantization_problems(data["quantization"])
    found += _optional_problems(data)
    shapes = _shape_problems(data["shapes"])
    if not shapes and (data["shapes"]["vision"] is None) != (data["variant"] == "text"):
        shapes = [
            f"variant is {data['variant']!r}, but shapes.vision is {'null' if data['variant'] != 'text' else 'set'}"
        ]
    return [*found, *shapes]


def _quantization_problems(quantization: Any) -> list[str]:
    if not isinstance(quantization, Mapping) or quantization.get("method") not in METHODS:
        return [f"quantization is {quantization!r}; its method is one of {', '.join(METHODS)}"]
    block = quantization.get("block")
    wrong = [
        str(key)
        for key, value in quantization.items()
        if (key in ("weight_bits", "scale_bits") and not _is_size(value))
        or (key == "group_size" and value is not None and not _is_size(value))
        or (key == "zero_points" and not isinstance(value, bool))
        or key not in {item.name for item in fields(Quantization)}
    ]
    if block is not None and not (
        isinstance(block, (list, tuple)) and len(block) == _SIDES and all(map(_is_size, block))
    ):
        wrong.append("block")
    return [f"quantization has no valid {', '.join(wrong)}"] if wrong else []


_SIDES = 2


def _optional_problems(data: Mapping[str, Any]) -> list[str]:
    found = []
    if not isinstance(data.get("flags", {}), Mapping):
        found.append(f"flags is {data['flags']!r}, not a mapping")
    if not _is_texts(data.get("alternatives", [])):
        found.append(f"alternatives is {data['alternatives']!r}, not a list of names")
    refused = data.get("refused")
    keys = {item.name for item in fields(Refused)}
    if refused is not None and not (isinstance(refused, Mapping) and set(refused) == keys):
        found.append(f"refused is {refused!r}, not a mapping of {' and '.join(sorted(keys))}")
    return found


#: Sizes of the language model and of the vision tower, by their names in config.json.
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
VISION_SIZES = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
    "num_position_embeddings",
    "out_hidden_size",
)
_SHAPES = ("architecture", "tie_word_embeddings", "text", "vision")


def _shape_problems(shapes: Any) -> list[str]:
    if not isinstance(shapes, Mapping):
        return [f"shapes is {shapes!r}, not a mapping or the name of a file in shapes/"]
    problems = [f"shapes has no {key}" for key in _SHAPES if key not in shapes]
    unknown = sorted(map(str, set(shapes) - {*_SHAPES, "dtype"}))
    if unknown:
        problems.append(f"shapes has unknown keys {unknown}")
    if not isinstance(shapes.get("tie_word_embeddings", False), bool):
        problems.append("shapes.tie_word_embeddings is not true or false")
    problems += _size_problems("text", shapes.get("text"), TEXT_SIZES, ("experts", "experts_per_token"))
    vision = shapes.get("vision")
    if vision is not None:
        problems += _size_problems("vision", vision, VISION_SIZES, ("max_pixels", "min_pixels"), levels=True)
    return problems


def _size_problems(
    part: str, sizes: Any, needed: Sequence[str], optional: Sequence[str], *, levels: bool = False
) -> list[str]:
    """Errors in the sizes of the language model or of the vision tower, which also has levels of DeepStack."""
    sizes = sizes if isinstance(sizes, Mapping) else {}
    bad = [key for key in (*needed, *(key for key in optional if key in sizes)) if not _is_size(sizes.get(key))]
    problems = [f"shapes.{part} has no positive whole number for {', '.join(bad)}"] if bad else []
    if levels and not isinstance(sizes.get("deepstack_visual_indexes"), list):
        problems.append(f"shapes.{part} has no list deepstack_visual_indexes")
    unknown = sorted(map(str, set(sizes) - {*needed, *optional, *(["deepstack_visual_indexes"] if levels else [])}))
    return [*problems, f"shapes.{part} has unknown keys {unknown}"] if unknown else problems


def _is_size(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\n" not in value


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _invalid(where: str, problem: str) -> Refusal:
    return Refusal("invalid_catalogue_entry", f"{where}: {problem}.", f"Correct {where}.")


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # hosts that receive entries as data have no PyYAML

    # libyaml, if it is installed, is ten times faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - both are safe
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RefusalError(_invalid(str(path), f"cannot be read: {error}")) from error
    if not isinstance(data, dict):
        raise RefusalError(_invalid(str(path), "does not hold a mapping"))
    return data
