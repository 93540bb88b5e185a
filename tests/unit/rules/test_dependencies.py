"""What our code imports is installed where it runs: a test environment has more, and would hide what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import CHECKS
from support.paths import PLUGINS, ROOT

COLLECTIONS = ROOT / "collections"
OURS = "ansible_collections.inference."
DISTRIBUTIONS = importlib.metadata.packages_distributions()


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def reached(start: list[Path]) -> set[Path]:
    """The files, and all of our own that they import in the end."""
    todo, seen = list(start), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            base = COLLECTIONS / name.replace(".", "/")
            own = [p for p in (base.with_suffix(".py"), base / "__init__.py") if name.startswith(OURS) and p.is_file()]
            todo += own
    return seen


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def needed(files: set[Path]) -> set[str]:
    """Distributions that the files need, besides Python itself and Ansible."""
    tops = {name.partition(".")[0] for path in files for name in imports(path)}
    tops -= set(sys.stdlib_module_names) | {"ansible", "ansible_collections"}
    return {canonical(DISTRIBUTIONS[top][0]) for top in tops if top in DISTRIBUTIONS}


def listed(lines: list[str]) -> set[str]:
    return {canonical(re.split(r"[=<>\[; ]", line)[0]) for line in lines if line and not line.startswith("#")}


@pytest.fixture(scope="module")
def deploy_group() -> set[str]:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return listed([entry for entry in groups["deploy"] if isinstance(entry, str)])


def test_a_version_stands_in_one_place() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    entries = [entry for group in groups.values() for entry in group if isinstance(entry, str)]
    of_hosts = listed((ROOT / "roles/host_python/files/requirements.txt").read_text(encoding="utf-8").splitlines())
    pinned = listed([entry for entry in entries if "==" in entry])
    # Types follow the libraries that they describe; nothing depends on their exact version.
    open_ones = {name for name in listed(entries) - pinned if not name.startswith("types-")}
    assert (pinned & of_hosts, open_ones - of_hosts) == (set(), set())


def test_where_ansible_runs(deploy_group: set[str]) -> None:
    files = reached([p for kind in ("filter", "lookup", "callback") for p in (PLUGINS / kind).glob("*.py")])
    wanted = needed(files)
    assert {"pillow", "jinja2", "pyyaml"} <= wanted
    assert wanted <= deploy_group


def test_where_ansible_runs_an_address_can_be_verified(deploy_group: set[str]) -> None:
    files = reached([PLUGINS / "modules" / f"{check.role}.py" for check in CHECKS])
    # The one that openai itself brings.
    assert needed(files) - {"httpx2"} <= deploy_group | {"pillow"}


def test_on_a_host() -> None:
    requirements = (ROOT / "roles/host_python/files/requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = needed(reached(list((PLUGINS / "modules").glob("*.py"))))
    assert {"openai", "huggingface-hub", "nvidia-ml-py"} <= wanted
    # The one that huggingface_hub itself uses and brings.
    assert wanted - {"httpx2"} <= listed(requirements)
