"""What the tests of the report share."""

from __future__ import annotations

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.report import runbooks
from ansible_collections.inference.vllm.plugins.module_utils.report.runbooks import Runbook


@pytest.fixture
def short_runbooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failure has a runbook of three lines: a golden page must not change with the text of the real ones."""

    def find(name: str) -> Runbook:
        return Runbook(
            name, ("slow",), f"{name}: text", f"Summary of {name}.", f"Summary of {name}.\n\n## Fix\n\n`do`."
        )

    monkeypatch.setattr(runbooks, "find", find)
