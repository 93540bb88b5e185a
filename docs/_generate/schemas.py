"""JSON Schemas of the files between the steps, made from the types in module_utils/contracts.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from textwrap import dedent
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter

from ansible_collections.inference.vllm.plugins.module_utils.contracts import CONTRACTS, VERSION_KEY, Contract

FOLDER = "docs/schemas"


def paths() -> Mapping[str, type[Contract]]:
    """Path of each schema in the repository, and the type that it describes."""
    return {f"{FOLDER}/{name.removesuffix('.json')}.schema.json": kind for name, kind in CONTRACTS.items()}


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
    summary, _, attributes = dedent(f"    {kind.__doc__}").partition("\nAttributes:\n")
    said = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", attributes, re.DOTALL | re.MULTILINE)
    schema["description"] = " ".join(summary.split()).replace("``", "")
    schema["additionalProperties"] = False
    described = {name: " ".join(sentence.split()).replace("``", "") for name, sentence in said}
    for each in fields(kind):
        schema["properties"][each.name]["description"] = described[each.name]
    if issubclass(kind, Contract):
        version = {"const": kind.SCHEMA, "description": "Version of this schema; a file without it has version 0."}
        schema["properties"] = {VERSION_KEY: version, **schema["properties"]}
        schema["required"] = [VERSION_KEY, *schema["required"]]
