"""What the collection says about itself, in a checkout and where it is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from ansible_collections.inference.vllm.plugins.module_utils import collection
from support.paths import ROOT


def test_metadata_of_a_checkout_is_galaxy_yml() -> None:
    this = collection.read()
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert this.name == "inference.vllm"
    assert this.version == galaxy["version"]
    assert re.fullmatch(r"inference\.vllm \d+\.\d+\.\d+", str(this))
    assert set(this.dependencies) == {"community.crypto", "community.docker", "community.general"}
    assert not this.installed


def test_metadata_of_an_installed_collection_is_its_manifest(tmp_path: Path) -> None:
    info = {"namespace": "one", "name": "two", "version": "1.2.3", "dependencies": {"three.four": ">=5.0.0"}}
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"collection_info": info}))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "runtime.yml").write_text('requires_ansible: ">=2.19.0"\n')
    assert collection.read(tmp_path) == collection.Collection(
        "one.two", "1.2.3", {"three.four": ">=5.0.0"}, ">=2.19.0", installed=True
    )


def test_a_missing_collection_has_no_version() -> None:
    assert collection.version_of("nobody.nowhere") is None
