"""Module inference.vllm.release: check mode, diff, idempotence and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.modules import release as module
from support.modules import run_module

FILES = {"compose.yaml": "name: x\n", "entrypoint.sh": "#!/bin/sh\n"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(**arguments: Any) -> dict[str, Any]:
        return run_module(module, capsys, {"home": str(home), **arguments})

    return call


def prepare(run: Any, files: dict[str, str] = FILES, **more: Any) -> dict[str, Any]:
    return dict(run(prefix="tiny", files=files, modes={"entrypoint.sh": "0755"}, manifest={"model": "tiny"}, **more))


def test_second_run_changes_nothing(run: Any, home: Path) -> None:
    first = prepare(run)
    assert (first["changed"], first["failed"], first["current"]) == (True, False, None)
    assert Path(first["path"]) == home / "releases" / first["id"]
    second = prepare(run)
    assert second["changed"] is False
    assert second["id"] == first["id"]


def test_check_mode_returns_the_id_and_writes_nothing(run: Any, home: Path) -> None:
    predicted = prepare(run, _ansible_check_mode=True)
    assert predicted["changed"] is True
    assert not home.exists()
    assert prepare(run)["id"] == predicted["id"]
    assert prepare(run, _ansible_check_mode=True)["changed"] is False


def test_diff_is_against_the_current_release(run: Any) -> None:
    first = prepare(run, _ansible_diff=True)
    assert {entry["before"] for entry in first["diff"]} == {""}
    chosen = run(state="current", id=first["id"], _ansible_diff=True)
    assert chosen["diff"] == [{"before": "current -> None\n", "after": f"current -> {first['id']}\n"}]
    second = prepare(run, {**FILES, "compose.yaml": "name: y\n"}, _ansible_diff=True, _ansible_check_mode=True)
    changed = {entry["after_header"].rpartition("/")[2]: entry for entry in second["diff"]}
    assert set(changed) == {"compose.yaml", "manifest.json"}
    assert (changed["compose.yaml"]["before"], changed["compose.yaml"]["after"]) == ("name: x\n", "name: y\n")


def test_choose_in_check_mode_leaves_the_link(run: Any, home: Path) -> None:
    release_id = prepare(run)["id"]
    assert run(state="current", id=release_id, _ansible_check_mode=True)["changed"] is True
    assert not (home / "current").exists()
    assert run(state="current", id=release_id)["changed"] is True
    again = run(state="current", id=release_id)
    assert (again["changed"], again["current"]) == (False, release_id)


def test_check_mode_takes_a_release_that_a_run_would_write(run: Any) -> None:
    predicted = prepare(run, _ansible_check_mode=True)["id"]
    assert run(state="current", id=predicted, _ansible_check_mode=True)["changed"] is True
    assert run(state="current", id=predicted)["failed"] is True


def test_absent_and_pruned(run: Any) -> None:
    ids = [prepare(run, {**FILES, "compose.yaml": f"{number}\n"})["id"] for number in range(3)]
    run(state="current", id=ids[0])
    refused = run(state="absent", id=ids[0])
    assert refused["failed"] is True
    assert "release_in_use" in refused["msg"]
    assert run(state="absent", id=ids[1], _ansible_check_mode=True)["removed"] == [ids[1]]
    gone = run(state="absent", id=ids[1])
    assert (gone["changed"], set(gone["releases"])) == (True, {ids[0], ids[2]})
    assert run(state="absent", id=ids[1])["changed"] is False
    assert run(state="pruned", keep=0, id=ids[2])["changed"] is False
    assert run(state="pruned", keep=0)["removed"] == [ids[2]]


def test_leftovers_of_a_killed_run_are_removed(run: Any, home: Path) -> None:
    prepare(run)
    (home / "releases" / ".tmp-tiny-x").mkdir()
    result = prepare(run)
    assert (result["changed"], result["removed"]) == (True, [".tmp-tiny-x"])


def test_an_edited_release_fails_with_file_and_fix(run: Any) -> None:
    path = Path(prepare(run)["path"])
    (path / "compose.yaml").write_text("name: edited\n")
    for check_mode in (False, True):
        result = prepare(run, _ansible_check_mode=check_mode)
        assert result["failed"] is True
        assert "compose.yaml was edited" in result["msg"]
        assert result["refusals"][0]["fix"]


def test_a_disk_that_takes_nothing_fails_clearly(run: Any, home: Path) -> None:
    home.mkdir()
    (home / "releases").write_text("in the way")
    result = prepare(run)
    assert result["failed"] is True
    assert "release_not_written" in result["msg"]


@pytest.mark.parametrize(
    "arguments", [{"home": "relative", "state": "pruned"}, {"keep": -1, "state": "pruned"}, {"state": "current"}, {}]
)
def test_bad_arguments_fail(run: Any, arguments: dict[str, Any]) -> None:
    assert run(**arguments)["failed"] is True
