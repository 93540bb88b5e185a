"""Runs a module of the collection in this process, like Ansible would run it on a host."""

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
    """Result of the module. Fails if the output contains the secret."""
    with patch_module_args(dict(arguments)), pytest.raises(SystemExit):
        module.main()
    output = capsys.readouterr().out
    assert not secret or secret not in output
    return dict(json.loads(output))
