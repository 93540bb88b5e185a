"""The local hub speaks the hub's protocol: as seen by the official client, and byte by byte."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from support.faulty_hub import (
    HUB_FILE,
    SERVER_FILE,
    FaultyHub,
    RequestRefusedError,
    file_server,
    hub,
    running,
    write_model,
)

FILES = {
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    "model.safetensors": bytes(range(256)) * 4096,
    "sub folder/größe+1.txt": b"x" * 1000,
}


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FaultyHub]:
    write_model(tmp_path, "org/tiny", FILES)
    with running(tmp_path) as server:
        yield server


def ask(server: FaultyHub, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_official_client_downloads_and_verifies_everything(served: FaultyHub, tmp_path: Path) -> None:
    client: Any = huggingface_hub.HfApi(endpoint=served.url, token=False)
    folder = Path(client.snapshot_download("org/tiny", local_dir=tmp_path / "copy"))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    checked = client.verify_repo_checksums("org/tiny", local_dir=folder)
    assert (checked.checked_count, checked.mismatches, checked.missing_paths) == (len(FILES), [], [])


def test_the_official_client_names_what_is_missing(served: FaultyHub) -> None:
    client: Any = huggingface_hub.HfApi(endpoint=served.url, token=False)
    with pytest.raises(errors.RepositoryNotFoundError):
        client.model_info("org/other")
    with pytest.raises(errors.RevisionNotFoundError):
        client.model_info("org/tiny", revision="v2")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        client.hf_hub_download("org/tiny", "none.json", local_dir="/nonexistent")


def test_commit_follows_contents_and_names(served: FaultyHub, tmp_path: Path) -> None:
    def commit() -> str:
        return str(json.loads(ask(served, "/api/models/org/tiny")[2])["sha"])

    first, config = commit(), tmp_path / "org/tiny/config.json"
    os.utime(config, (1, 1))
    assert commit() == first
    config.write_bytes(b'{"a": 2}\n')
    second = commit()
    config.rename(config.with_name("renamed.json"))
    assert len({first, second, commit()}) == 3
    assert ask(served, f"/api/models/org/tiny/revision/{first}")[0] == 404


def test_sizes_and_hashes_come_only_when_asked_for(served: FaultyHub) -> None:
    plain = json.loads(ask(served, "/api/models/org/tiny")[2])["siblings"]
    assert [set(row) for row in plain] == [{"rfilename"}] * len(FILES)
    full = {row["rfilename"]: row for row in json.loads(ask(served, "/api/models/org/tiny?blobs=True")[2])["siblings"]}
    assert {name: row["size"] for name, row in full.items()} == {name: len(body) for name, body in FILES.items()}
    assert {name for name, row in full.items() if "lfs" in row} == {"model.safetensors"}
    # `git hash-object` of an empty file
    assert full["empty.txt"]["blobId"] == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_tree_of_a_folder(served: FaultyHub) -> None:
    def paths(address: str) -> list[tuple[str, str]]:
        return [(row["type"], row["path"]) for row in json.loads(ask(served, address)[2])]

    assert ("directory", "sub folder") in paths("/api/models/org/tiny/tree/main")
    assert paths("/api/models/org/tiny/tree/main/sub%20folder") == [("file", "sub folder/größe+1.txt")]
    assert len(paths("/api/models/org/tiny/tree/main?recursive=True")) == len(FILES) + 1
    assert ask(served, "/api/models/org/tiny/tree/main/nowhere")[1]["x-error-code"] == "EntryNotFound"


def test_head_tells_what_get_sends(served: FaultyHub) -> None:
    address = "/org/tiny/resolve/main/model.safetensors"
    status, head, body = ask(served, address, "HEAD")
    assert (status, body) == (200, b"")
    status, headers, body = ask(served, address)
    assert (status, body) == (200, FILES["model.safetensors"])
    for name in ("content-length", "etag", "x-linked-etag", "x-linked-size", "x-repo-commit"):
        assert head[name] == headers[name]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=5-", 5, 1048575), ("bytes=-7", 1048569, 1048575), ("bytes=9-99999999", 9, 1048575)],
)
def test_range(served: FaultyHub, asked: str, first: int, last: int) -> None:
    status, headers, body = ask(served, "/org/tiny/resolve/main/model.safetensors", Range=asked)
    assert (status, headers["content-range"]) == (206, f"bytes {first}-{last}/1048576")
    assert body == FILES["model.safetensors"][first : last + 1]


@pytest.mark.parametrize("asked", ["", "bytes=-", "bytes=1-2,4-5", "lines=1-2"])
def test_a_range_that_is_not_understood_means_all(asked: str) -> None:
    assert file_server.parse_range(asked, 10) is None


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(asked: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        file_server.parse_range(asked, 10)
    assert refused.value.status == 416


@pytest.mark.parametrize(
    "path",
    [
        "/org/tiny/resolve/main/../../../secret",
        "/org/tiny/resolve/main/%2e%2e/%2e%2e/secret",
        "/org/tiny/resolve/main/..%2f..%2fsecret",
        "/org/tiny/resolve/main/link",
        "/api/models/../secret",
        "/api/models/org/..",
        "/secret",
    ],
)
def test_nothing_outside_the_served_folders(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("the secret")
    write_model(tmp_path / "models", "org/tiny", {"a": b"a", ".git/config": b"the secret"})
    (tmp_path / "models/org/tiny/link").symlink_to(tmp_path / "secret")
    with running(tmp_path / "models") as server:
        status, _headers, body = ask(server, path)
        assert status == 404
        assert b"the secret" not in body
        assert ask(server, "/org/tiny/resolve/main/.git/config")[0] == 404


def test_a_model_may_change_while_it_is_served(served: FaultyHub, tmp_path: Path) -> None:
    write_model(tmp_path, "org/new", {"a": b"1"})
    assert ask(served, "/org/new/resolve/main/a")[2] == b"1"
    write_model(tmp_path, "org/new", {"a": b"2"})
    assert ask(served, "/org/new/resolve/main/a")[2] == b"2"


def test_it_tells_what_it_is_and_serves_and_the_source_of_a_copy_is_listed_alike(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", "org/tiny", FILES)
    (source / ".cache").mkdir()
    (source / ".cache/note").write_text("not of the model")
    (source / "link.txt").symlink_to(source / "config.json")
    # As a copy is: what a link led to is a file of its own.
    shutil.copytree(source, tmp_path / "home/models/org/tiny")
    settings = {"address": "127.0.0.1", "port": 0, "root": "models"}
    (tmp_path / "home/hub.json").write_text(json.dumps(settings))
    for file in (HUB_FILE, SERVER_FILE):
        shutil.copy(file, tmp_path)
    command = [sys.executable, "-IB", str(tmp_path / "hub.py")]
    (listed,) = json.loads(subprocess.check_output([*command, "--list", str(source)]))
    config = str(tmp_path / "home/hub.json")
    with subprocess.Popen([*command, "--config", config], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            # The version is of the running program, not of the current file.
            (tmp_path / "hub.py").write_text("another")
            with urllib.request.urlopen(url) as answer:
                reported = json.load(answer)
        finally:
            process.terminate()
    assert set(listed) == {*FILES, "link.txt"}
    assert reported == {
        "software": "local-hub",
        "program": hashlib.sha256(HUB_FILE.read_bytes() + SERVER_FILE.read_bytes()).hexdigest(),
        "settings": settings,
        "files": {"org/tiny": listed},
    }


def test_what_is_no_folder_is_not_listed_as_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="gone is not a folder"):
        hub.listing(tmp_path / "gone")
