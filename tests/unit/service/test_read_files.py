"""Several files in one task; a missing file is no failure, an unreadable one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.modules import read_files
from support.modules import run_module


def test_each_path_has_its_entry_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").write_text("zwei\n")
    (tmp_path / "c").write_bytes(b"\xff!")
    paths = [str(tmp_path / name) for name in ("c", "a", "b", "b/below")]
    result = run_module(read_files, capsys, {"paths": paths})
    assert [file["path"] for file in result["files"]] == paths
    assert [file["text"] for file in result["files"]] == ["\ufffd!", None, "zwei\n", None]
    assert result["changed"] is False


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_module(read_files, capsys, {"paths": [str(tmp_path)]})
    assert result["failed"] is True
    assert result["msg"].startswith(f"[unreadable_file] {tmp_path} exists but cannot be read: Is a directory.")
