"""Modules document themselves, as `ansible-doc` shows it; pages link to what is there, and tell to type what works."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils.inventory import RENAMED
from support.paths import PLUGINS, ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "roles").glob("*/README.md")),
    *sorted((ROOT / "tests").rglob("*.md")),
]
#: Folders of the repository that a path in a page may begin with.
TOP = {path.name for path in ROOT.iterdir() if path.is_dir()} - {".cache", ".venv"}
#: Part of a path that a reader replaces, such as NAME, CODE, ``<model>`` or a folder of the reader.
PLACEHOLDER = re.compile(r"\b(?!README|SHA256SUMS)[A-Z]{2,}\b|[<{]|\b(?:mine|staging)\b|…|\.\.\.")
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


def test_each_filter_is_documented() -> None:
    sources = [path.stem for path in (PLUGINS / "filter").glob("*.py")]
    modules = [import_module(f"ansible_collections.inference.vllm.plugins.filter.{name}") for name in sources]
    filters = {name for module in modules for name in module.FilterModule().filters()}
    assert {path.stem for path in (PLUGINS / "filter").glob("*.yml")} == filters


def test_each_exception_of_the_sanity_tests_has_a_reason() -> None:
    (file,) = (ROOT / "tests" / "sanity").glob("ignore-*.txt")
    for line in file.read_text().splitlines():
        path, _, reason = line.partition(" # ")
        assert (ROOT / path.split()[0]).is_file()
        assert reason


@pytest.mark.parametrize("playbook", sorted(path.name for path in (ROOT / "playbooks").glob("*.yml")))
def test_each_playbook_is_documented(playbook: str) -> None:
    head = (ROOT / "docs" / "operations.md").read_text().partition("\n## ")[0]
    table = [line for line in head.splitlines() if line.startswith("| `")]
    (row,) = [line for line in table if re.search(rf"[`/]{re.escape(playbook)}`", line)]
    page, _, section = re.findall(r"\]\(([^)#]*)(#?)([^)]*)\)", row)[0]
    text = (ROOT / "docs" / (page or "operations.md")).read_text()
    assert not section or section in anchors(text)


def anchors(text: str) -> set[str]:
    """What a link may name of a page: its headings, as GitHub writes them, and its named anchors."""
    headings = [line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#")]
    named = re.findall(r'<a id="([^"]+)">', text)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings} | set(named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@functools.cache
def boots() -> frozenset[str]:
    """Names of the boots that `bench.boots` knows."""
    matrices = [yaml.safe_load(path.read_text()) for path in (ROOT / "bench" / "boots").glob("*.yaml")]
    return frozenset(boot["name"] for matrix in matrices for boot in matrix["boots"])


@functools.cache
def options() -> frozenset[str]:
    """Variables of the roles."""
    specs = [
        yaml.safe_load(path.read_text())["argument_specs"] for path in ROOT.glob("roles/*/meta/argument_specs.yml")
    ]
    return frozenset(name for spec in specs for entry in spec.values() for name in entry.get("options", {}))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_tells_to_type_exists(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", "\n".join(code(text)), re.MULTILINE)) <= set(targets)
    for path in re.findall(r"ansible-playbook (\S+\.yml)", text) + re.findall(
        r"\b(?:bin/vram-plan|bench/\w+\.py)\b", text
    ):
        assert (ROOT / path).is_file(), path
    for names in re.findall(r"--only((?: [a-z0-9.-]+)+)", text):
        assert set(names.split()) <= boots()
    for names in re.findall(r"tests/roles/run((?: [a-z_]+)+)", text):
        assert all((ROOT / "molecule" / name).is_dir() for name in names.split())
    # Of a role's variables those that are given a value.
    owners = tuple(f"{path.name}_" for path in (ROOT / "roles").iterdir())
    given = re.findall(r"(?:^ *-? ?|[{`,] ?)([a-z]\w+): |-e ([a-z]\w+)=", "\n".join(code(text)), re.MULTILINE)
    named = {name for pair in given for name in pair if name.startswith(owners)}
    assert named <= options()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    words = [word.strip("`'\",;:()[]") for text in code(page.read_text()) for word in re.split(r"[\s=]+", text)]
    paths = [word for word in words if "/" in word and word.split("/")[0] in TOP and not PLACEHOLDER.search(word)]
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_that_a_page_names_exist(page: Path) -> None:
    owners = tuple(f"{path.name}_" for path in (ROOT / "roles").iterdir())
    named = {word for word in re.findall(r"`([a-z]\w+)`", page.read_text()) if word.startswith(owners)}
    unknown = {name for name in named - options() if name not in words_of_the_code()}
    assert unknown | named & set(RENAMED) == set()


@functools.cache
def words_of_the_code() -> frozenset[str]:
    """Names that are no variables but begin like one: codes of checks, facts, modules, scenarios."""
    scenarios = (path.name for path in (ROOT / "molecule").iterdir())
    files = [path for folder in ("plugins", "playbooks") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = (path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".yml"))
    return frozenset(scenarios) | {word for text in texts for word in re.findall(r"\w+", text)}


def code(text: str) -> list[str]:
    """What stands between backticks: blocks, and words in a line."""
    blocks = text.split("```")
    return [*blocks[1::2], *(f"`{word}" for part in blocks[::2] for word in re.findall(r"`([^`\n]+)`", part))]
