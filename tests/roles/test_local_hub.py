"""What a user of role local_hub would check on the host."""

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


def test_it_listens_on_loopback_only(host):
    assert host.socket("tcp://127.0.0.1:18080").is_listening
    assert not host.socket("tcp://0.0.0.0:18080").is_listening


def test_it_runs_without_rights(host):
    process = host.process.get(pid=int(host.file(f"{HOME}/hub.pid").content_string))
    assert (process.user, process.comm) == ("nobody", "python3")


def test_it_lists_the_model_and_nothing_else(host):
    listed = json.loads(get(host, "/api/models/test/made-up?blobs=true"))
    files = {path.relative_to(MODEL).as_posix(): path.stat().st_size for path in MODEL.rglob("*") if path.is_file()}
    assert {row["rfilename"]: row["size"] for row in listed["siblings"]} == files


@pytest.mark.parametrize("path", ["config.json", "sub/notes.txt"])
def test_it_serves_the_bytes(host, path):
    assert get(host, f"/test/made-up/resolve/main/{path}") == (MODEL / path).read_text().rstrip("\n")
