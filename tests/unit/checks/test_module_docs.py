"""The documentation of the modules that check a server equals their arguments, with those of the fragment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import CHECKS
from support.paths import ROOT

MODULES = {
    check.role: import_module(f"ansible_collections.inference.vllm.plugins.modules.{check.role}") for check in CHECKS
}


@cache
def documented() -> dict[str, dict[str, Any]]:
    """What ansible-doc shows of them."""
    names = [f"inference.vllm.{name}" for name in MODULES]
    command = [str(Path(sys.executable).with_name("ansible-doc")), "--json", "--type", "module", *names]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return {name.rpartition(".")[2]: entry["doc"] for name, entry in json.loads(shown).items()}


def plain(options: dict[str, Any], inner: str) -> dict[str, Any]:
    """Type, default and so on of each option."""
    return {
        name: {
            **{key: option.get(key) for key in ("elements", "choices", "default")},
            **{"type": option.get("type", "str"), "required": bool(option.get("required"))},
            **{"inner": plain(option.get(inner) or {}, inner)},
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_options_are_the_arguments(name: str) -> None:
    assert plain(documented()[name]["options"], "suboptions") == plain(MODULES[name].ARGUMENTS, "options")


@pytest.mark.parametrize("name", MODULES)
def test_every_option_is_told_and_so_is_what_they_share(name: str) -> None:
    shown = documented()[name]
    assert all(option["description"] for option in shown["options"].values())
    assert any("never reports C(changed)" in note for note in shown["notes"])
