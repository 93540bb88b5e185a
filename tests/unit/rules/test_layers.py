"""The import graph of plugins/ has no circle, and each package imports only from layers below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.paths import ROOT

PLUGINS = ROOT / "plugins"
PREFIX = "ansible_collections.inference.vllm.plugins."

#: Packages and modules of plugins/, from the top down. Those in one row do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("action", "callback", "doc_fragments", "filter", "lookup", "modules"),
    ("report", "plugin_utils", "controller"),
    ("checks", "gateway"),
    ("service",),
    ("host", "image", "inventory", "weights"),
    ("planner",),
    ("catalogue", "collection", "contracts", "gpu_facts"),
    ("closest", "columns", "files", "refusal", "versions"),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}


def module_name(path: Path) -> str:
    parts = path.relative_to(PLUGINS).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PLUGINS.rglob("*.py") if "__pycache__" not in path.parts}


def imported(text: str) -> Iterator[str]:
    """Modules of this collection that a module's text imports, also inside of functions and for the type checker."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(PREFIX):
                found = name.removeprefix(PREFIX)
                yield found if found in MODULES else found.rpartition(".")[0]


def package(module: str) -> str:
    """``planner`` for ``module_utils.planner.solve``, ``modules`` for ``modules.vram_plan``."""
    return module.removeprefix("module_utils.").split(".")[0]


def upward(module: str, text: str) -> list[str]:
    """Imports of a module that do not point to a lower layer or to its own package."""
    own = package(module)
    return [name for name in imported(text) if package(name) != own and LEVEL[package(name)] <= LEVEL[own]]


def test_every_package_has_a_layer() -> None:
    assert {package(module) for module in MODULES} - {"module_utils"} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"module_utils"}))
def test_imports_point_downwards(module: str) -> None:
    assert upward(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_no_circle() -> None:
    TopologicalSorter({m: set(imported(path.read_text(encoding="utf-8"))) for m, path in MODULES.items()}).prepare()


def test_an_upward_import_is_found() -> None:
    text = f"def f():\n    from {PREFIX}module_utils.checks import verdict\n"
    assert upward("module_utils.planner.solve", text) == ["module_utils.checks.verdict"]
    assert upward("module_utils.report.view", text) == []
