"""Files are replaced whole or not at all, whoever reads them and whenever the writer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic, write_if_changed
from support.paths import PLUGINS

NOBODY_ID = 65534
#: Writes the same file again and again, each time all of one letter, and says so after each.
WRITER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from files import write_atomic
for letter in itertools.cycle("ab"):
    write_atomic(Path(sys.argv[2]), letter * 3_000_000)
    print(letter, flush=True)
"""


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "smoke.json"
    write_atomic(path, "old")
    write_atomic(path, "new \ud800")
    assert path.read_text() == "new ?"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_atomic(path, 7)  # type: ignore[arg-type]
    assert path.read_text() == "new ?"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_one_whole_text_also_after_the_writer_was_killed(tmp_path: Path) -> None:
    path, whole = tmp_path / "plan.json", ("a" * 3_000_000, "b" * 3_000_000)
    command = [sys.executable, "-c", WRITER, str(PLUGINS / "module_utils"), str(path)]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                writer.stdout.readline()
                assert all(path.read_text() in whole for _ in range(3))
            writer.send_signal(signal.SIGKILL)
        assert path.read_text() in whole


@pytest.mark.parametrize("call", ["fsync", "fchmod", "fdopen"])
def test_a_failure_while_writing_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(path, "new")
    monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_disk_has_the_content_before_the_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "lock.json", []
    sync = os.fsync

    def watched(handle: int) -> None:
        synced = Path(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: PTH115 - of a descriptor
        seen.append((synced == tmp_path, synced.read_text() if synced.is_file() else "", path.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(path, "text")
    assert seen == [(False, "text", False), (True, "", True)]
    write_atomic(path, "of no worth after a power failure", durable=False)
    assert len(seen) == 2


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644])
def test_the_mode_is_the_one_that_was_asked_for(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    before = os.umask(0o077)
    try:
        write_atomic(path, "text", mode)
        write_atomic(path, "again", mode)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "api_key"
    path.write_text("old")
    os.chown(path, NOBODY_ID, NOBODY_ID)
    write_atomic(path, "new", 0o400)
    found = path.stat()
    assert (path.read_text(), found.st_uid, found.st_gid) == ("new", NOBODY_ID, NOBODY_ID)


def test_a_folder_is_made_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "reports/r1/engine.log"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(path, "text")
    assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    write_atomic(path, "text", folder_mode=0o750)
    assert path.read_text() == "text"
    assert path.parent.stat().st_mode & 0o777 == 0o750


def test_a_link_is_replaced_and_what_it_led_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("target")
    path = tmp_path / "link"
    path.symlink_to("target")
    write_atomic(path, "text")
    assert not path.is_symlink()
    assert (tmp_path / "target").read_text() == "target"


def test_what_is_the_same_already_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    assert write_if_changed(path, "text", 0o644) is True
    number = path.stat().st_ino
    assert write_if_changed(path, "text", 0o644) is False
    assert path.stat().st_ino == number
    assert write_if_changed(path, "text", 0o600) is True
    assert write_if_changed(path, "other", 0o600) is True
    path.write_bytes(b"\xff")
    assert write_if_changed(path, "text", 0o600) is True
    assert path.read_text() == "text"
