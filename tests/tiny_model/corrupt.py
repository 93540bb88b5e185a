#!/usr/bin/env python3
"""Corrupt a copy of the tiny model by zeroing its vision tower: ``python corrupt.py MODEL_FOLDER``.

A test deploys the corrupt model to verify that the smoke test detects it. Edits the safetensors file (eight bytes
length, a JSON header, the tensor data) with the standard library only.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
VISION = ".visual."
"""Part of the name of every weight of the vision tower."""


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file, and the offset of the tensor data.

    Returns:
        Mapping of names to ``{dtype, shape, data_offsets}``, without the metadata; offset in bytes.

    Raises:
        ValueError: The data is not a safetensors file.
    """
    try:
        (length,) = LENGTH.unpack_from(data)
        start = LENGTH.size + length
        header = json.loads(data[LENGTH.size : start])
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}, start
    except (struct.error, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error


def blind(data: bytes) -> bytes:
    """Set every tensor of the vision tower to zero, so that the model ignores its images.

    Args:
        data: Content of a safetensors file.

    Raises:
        ValueError: The data is not a safetensors file or has no vision tower.
    """
    header, start = read_header(data)
    result = bytearray(data)
    towers = [tensor["data_offsets"] for name, tensor in header.items() if VISION in name]
    if not towers:
        raise ValueError(f"no weight has {VISION!r} in its name: nothing to blind")
    for first, last in towers:
        result[start + first : start + last] = bytes(last - first)
    return bytes(result)


def blind_file(path: Path) -> None:
    """Zero the vision tower in the safetensors file at ``path``, in place. The size of the file does not change."""
    path.write_bytes(blind(path.read_bytes()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    blind_file(Path(sys.argv[1]) / "model.safetensors")
