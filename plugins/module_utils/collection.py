"""Name, version and requirements of this collection, from its metadata. Used on the controller only."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Folder of this collection: the root of a checkout, or where ``ansible-galaxy`` installed it.
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Collection:
    """Metadata of a collection.

    Attributes:
        name: ``namespace.name``.
        version: Its version, e.g. ``1.2.0``.
        dependencies: Range of versions by required collection, e.g. ``>=3.0.0``.
        requires_ansible: Range of versions of ansible-core.
        installed: Whether ``ansible-galaxy`` installed it; False for a checkout.
    """

    name: str
    version: str
    dependencies: Mapping[str, str]
    requires_ansible: str
    installed: bool

    def __str__(self) -> str:
        """Name and version, e.g. ``inference.vllm 1.2.0``."""
        return f"{self.name} {self.version}"


def read(root: Path = ROOT) -> Collection:
    """Read the metadata of the collection in a folder; raises OSError if there is none."""
    data = _info(root)
    return Collection(
        name=f"{data['namespace']}.{data['name']}",
        version=data["version"],
        dependencies=data["dependencies"],
        requires_ansible=_yaml(root / "meta" / "runtime.yml")["requires_ansible"],
        installed=(root / "MANIFEST.json").is_file(),
    )


def version_of(name: str) -> str | None:
    """Version of a collection on this machine; None if Ansible does not find it, empty if it has no version."""
    try:
        package = importlib.import_module(f"ansible_collections.{name}")
        return str(_info(Path(package.__path__[0])).get("version") or "")
    except ImportError:
        return None
    except OSError:
        return ""


def _info(root: Path) -> dict[str, Any]:
    """``MANIFEST.json`` of an installed collection, or ``galaxy.yml`` of a checkout."""
    manifest = root / "MANIFEST.json"
    if manifest.is_file():
        return dict(json.loads(manifest.read_bytes())["collection_info"])
    return _yaml(root / "galaxy.yml")


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
