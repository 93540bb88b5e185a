"""Runs a module of the collection in this process, as Ansible would run it on a host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args


def run_module(
    module: ModuleType, capsys: pytest.CaptureFixture[str], arguments: Mapping[str, Any], secret: str = ""
) -> dict[str, Any]:
    """The module's result; a secret, where one is given, may stand nowhere in it."""
    with patch_module_args(dict(arguments)), pytest.raises(SystemExit):
        module.main()
    output = capsys.readouterr().out
    assert not secret or secret not in output
    return dict(json.loads(output))
