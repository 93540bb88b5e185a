"""A user's own model: a fine-tune whose entry is one file in a folder of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from support.paths import ROOT


def write_own_entry(folder: Path, name: str = "mine", **changes: Any) -> Path:
    """Write ``<folder>/<name>.yaml``, a fine-tune of Qwen3-VL-32B in FP8; returns its path."""
    stock = yaml.safe_load((ROOT / "catalogue" / "qwen3-vl-32b-instruct-fp8.yaml").read_text(encoding="utf-8"))
    own = stock | {"name": name, "title": "My fine-tune", "repository": "me/Mine-FP8", "served_model_name": name}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(own | changes), encoding="utf-8")
    return path
