"""State of a host after role model_weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

MODEL = Path(__file__).parents[2] / "molecule" / "local_hub" / "model"
BASE = "/opt/vllm/models/test/made-up"
FILES = {path.relative_to(MODEL).as_posix(): path.read_bytes() for path in MODEL.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def lock(host: Any) -> Any:
    return json.loads(host.file(f"{BASE}/lock.json").content_string)


def test_the_lock_records_the_source(lock):
    assert lock["repo"] == "test/made-up"
    assert {row["path"]: row["sha256"] for row in lock["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }


@pytest.mark.parametrize("name", FILES)
def test_files_are_equal_and_read_only(host, lock, name):
    file = host.file(f"{BASE}/{lock['commit']}/{name}")
    assert file.content == FILES[name]
    assert (file.mode, file.user) == (0o444, "root")


def test_the_engines_user_can_read_but_not_write(host, lock):
    folder = f"{BASE}/{lock['commit']}"
    as_engine = "setpriv --reuid 2000 --regid 0 --clear-groups"
    assert host.run(f"{as_engine} cat {folder}/model.safetensors").rc == 0
    assert host.run(f"{as_engine} touch {folder}/new").rc != 0
    assert host.run(f"{as_engine} sh -c 'echo x >> {folder}/config.json'").rc != 0


def test_only_the_newest_old_commit_and_the_one_in_use_are_kept_and_nothing_unfinished(host, lock):
    entries = set(host.check_output(f"ls -A {BASE}").split())
    kept = {lock["commit"], "c" * 40, "a" * 40}
    assert entries == {*kept, "lock.json", ".running", f".state-{lock['commit']}.json"}


@pytest.mark.parametrize("name", FILES)
def test_files_were_copied_from_a_folder_without_a_hub(host, lock, name):
    assert host.file(f"/opt/copy/test/made-up/{lock['commit']}/{name}").content == FILES[name]


def test_a_refused_lock_left_no_file(host):
    assert host.run("find /opt/refused -name config.json -o -name lock.json").stdout == ""


@pytest.mark.parametrize("name", FILES)
def test_each_host_has_the_files_without_a_hub(host, lock, name):
    assert host.file(f"/opt/joined/test/made-up/{lock['commit']}/{name}").content == FILES[name]


def test_the_peer_server_is_stopped(host):
    assert "18081" not in host.check_output("ss --tcp --listening --numeric")
    assert host.run("pgrep --full [p]eer.py").rc != 0
    assert not host.file("/opt/vllm/peer/peer.pid").exists
