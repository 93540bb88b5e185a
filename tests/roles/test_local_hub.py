"""State of a host after role local_hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MODEL = Path(__file__).parents[2] / "molecule" / "local_hub" / "model"
HOME = "/opt/local-hub"
URL = "http://127.0.0.1:18080"


def get(host: Any, path: str) -> str:
    return str(
        host.check_output(f"python3 -c \"import urllib.request as r; print(r.urlopen('{URL}{path}').read().decode())\"")
    )


def test_hub_listens_on_loopback_only(host):
    assert host.socket("tcp://127.0.0.1:18080").is_listening
    assert not host.socket("tcp://0.0.0.0:18080").is_listening


def test_hub_runs_as_an_unprivileged_user(host):
    process = host.process.get(pid=int(host.file(f"{HOME}/hub.pid").content_string))
    assert (process.user, process.comm) == ("nobody", "python3")


def test_hub_lists_exactly_the_files_of_the_model(host):
    listed = json.loads(get(host, "/api/models/test/made-up?blobs=true"))
    files = {path.relative_to(MODEL).as_posix(): path.stat().st_size for path in MODEL.rglob("*") if path.is_file()}
    assert {row["rfilename"]: row["size"] for row in listed["siblings"]} == files


@pytest.mark.parametrize("path", ["config.json", "sub/notes.txt"])
def test_hub_serves_the_content_of_a_file(host, path):
    assert get(host, f"/test/made-up/resolve/main/{path}") == (MODEL / path).read_text().rstrip("\n")
