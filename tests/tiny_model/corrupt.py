#!/usr/bin/env python3
"""Blinds a copy of the tiny model: ``python corrupt.py MODEL_FOLDER``.

A test deploys the blinded model to see that the smoke test notices. Works on the bytes of the safetensors file with
nothing but the standard library: eight bytes length, a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
VISION = ".visual."
"""What the name of every weight of the vision tower contains."""


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the tensors' bytes begin.

    Returns:
        Name to ``{dtype, shape, data_offsets}``, without the file's own metadata; offset in bytes.

    Raises:
        ValueError: The bytes are no safetensors file.
    """
    try:
        (length,) = LENGTH.unpack_from(data)
        start = LENGTH.size + length
        header = json.loads(data[LENGTH.size : start])
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}, start
    except (struct.error, UnicodeDecodeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error


def blind(data: bytes) -> bytes:
    """The same weights with every tensor of the vision tower set to zero: the model no longer sees its pictures.

    Args:
        data: A safetensors file.

    Raises:
        ValueError: The bytes are no safetensors file, or hold no vision tower.
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
    """Blinds the safetensors file at ``path`` in place; it has the same size before and after."""
    path.write_bytes(blind(path.read_bytes()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    blind_file(Path(sys.argv[1]) / "model.safetensors")
