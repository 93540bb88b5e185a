"""JSON Schemas of the files between the steps, made from the types in contracts.py and checks/results.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from textwrap import dedent
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import RESULTS
from ansible_collections.inference.vllm.plugins.module_utils.contracts import CONTRACTS, VERSION_KEY, Contract

FOLDER = "docs/schemas"


def paths() -> Mapping[str, type[Contract]]:
    """Path of each schema in the repository, and the type that it describes."""
    kinds = {**CONTRACTS, **RESULTS}
    return {f"{FOLDER}/{name.removesuffix('.json')}.schema.json": kind for name, kind in kinds.items()}


def text(kind: type[Contract]) -> str:
    """The schema of one file."""
    schema = TypeAdapter(kind).json_schema()
    definitions = schema.get("$defs", {})
    for name, described in {kind.__name__: kind, **_dataclasses(kind)}.items():
        _describe(schema if described is kind else definitions[name], described)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _dataclasses(kind: Any) -> dict[str, Any]:
    """The dataclasses that the fields of one lead to, by name."""
    found: dict[str, Any] = {}
    for hint in get_type_hints(kind).values():
        for part in _parts(hint):
            if isinstance(part, type) and is_dataclass(part) and part.__name__ not in found:
                found |= {part.__name__: part, **_dataclasses(part)}
    return found


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _describe(schema: dict[str, Any], kind: Any) -> None:
    """Add what the docstring says of each field, that no other fields are allowed, and the version of the file."""
    schema["description"] = " ".join(_split(kind)[0].split()).replace("``", "")
    schema["additionalProperties"] = False
    described = _attributes(kind)
    for each in fields(kind):
        schema["properties"][each.name]["description"] = described[each.name]
    if issubclass(kind, Contract):
        version = {"const": kind.SCHEMA, "description": "Version of this schema; a file without it has version 0."}
        derived = {name: _derived(getattr(kind, name)) for name in kind.DERIVED}
        schema["properties"] = {VERSION_KEY: version, **derived, **schema["properties"]}
        schema["required"] = [VERSION_KEY, *derived, *schema["required"]]


def _derived(prop: property) -> dict[str, Any]:
    """The schema of a property that the file holds as well."""
    described = " ".join((prop.__doc__ or "").split()).replace("``", "")
    return {"description": described, **TypeAdapter(get_type_hints(prop.fget)["return"]).json_schema()}


def _split(kind: Any) -> tuple[str, str]:
    """The summary of a docstring, and its attributes."""
    summary, _, attributes = dedent(f"    {kind.__doc__}").partition("\nAttributes:\n")
    return summary, attributes


def _attributes(kind: Any) -> dict[str, str]:
    """What the docstrings of a class and of those that it extends say of each field."""
    described: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        found = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", _split(each)[1], re.DOTALL | re.MULTILINE)
        described |= {name: " ".join(sentence.split()).replace("``", "") for name, sentence in found}
    return described
