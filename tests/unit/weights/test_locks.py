"""The locks of the catalogue are for its entries, and the demo's is for the demo's model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import check_source, parse_lock
from support.paths import ROOT

LOCKS = sorted((ROOT / "catalogue" / "locks").glob("*.json"))
TINY = ROOT / "tests" / "tiny_model" / "model"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_is_for_the_entry_of_its_name(path: Path) -> None:
    entry = catalogue.load(path.stem)
    check_source(entry.repository, entry.revision, parse_lock(json.loads(path.read_text()), path.name))


def test_the_demos_lock_is_for_the_demos_model() -> None:
    """After a change of the model: make demo stops at the weights; playbooks/lock_weights.yml writes the lock again."""
    lock = parse_lock(json.loads((ROOT / "catalogue/locks/tiny-qwen3-vl.json").read_text()), "lock")
    files = {path.relative_to(TINY).as_posix(): path.read_bytes() for path in TINY.rglob("*") if path.is_file()}
    assert {spec.path: spec.sha256 for spec in lock.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
