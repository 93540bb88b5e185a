"""Each module documents itself so that `ansible-doc` shows it, and says how it behaves in check mode."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "collections" / "ansible_collections" / "inference" / "vllm" / "plugins"
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))


@pytest.fixture(scope="module")
def documented() -> dict[str, dict[str, object]]:
    names = [f"inference.vllm.{name}" for name in MODULES]
    shown = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-doc")), "--json", "-t", "module", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(shown.stdout))


def test_there_are_modules() -> None:
    assert MODULES


@pytest.mark.parametrize("name", MODULES)
def test_module_is_documented(documented: dict[str, dict[str, object]], name: str) -> None:
    entry = documented[f"inference.vllm.{name}"]
    assert yaml.safe_load(str(entry["examples"]))
    assert entry["return"]
    doc = entry["doc"]
    assert isinstance(doc, dict)
    assert doc["attributes"]["check_mode"]["support"] == "full"
    assert "diff_mode" in doc["attributes"]
    assert all(option.get("description") for option in doc.get("options", {}).values())


@pytest.mark.parametrize("playbook", sorted(path.name for path in (ROOT / "playbooks").glob("*.yml")))
def test_operators_are_told_of_each_playbook(playbook: str) -> None:
    table = [line for line in (ROOT / "docs" / "operations.md").read_text().splitlines() if line.startswith("| `")]
    (row,) = [line for line in table if re.search(rf"[`/]{re.escape(playbook)}`", line)]
    page, _, section = re.findall(r"\]\(([^)#]*)(#?)([^)]*)\)", row)[0]
    text = (ROOT / "docs" / (page or "operations.md")).read_text()
    headings = [re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()) for line in text.splitlines() if line[:1] == "#"]
    assert not section or section.replace("-", " ") in headings
