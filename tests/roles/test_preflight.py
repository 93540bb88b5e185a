"""Role preflight describes the host and changes nothing; its refusals: the scenario, tests/e2e/test_refusals.py."""

from __future__ import annotations

import json


def test_the_host_is_described(host):
    row = json.loads(host.file("/root/row.json").content_string)
    assert (row["name"], row["system"], row["accelerator"]) == ("preflight-bookworm", "Debian 12", "cpu")
    assert row["model"] == "tiny-qwen3-vl"
    assert row["weights_gib"] > 0
    assert row["free_gib"] > 1
    assert row["found"]["memory_gib"] > 1
    assert (row["found"]["docker"], row["found"]["release"]) == (None, None)


def test_no_file_was_created(host):
    assert not host.file("/opt/vllm").exists


def test_no_package_was_installed(host):
    assert not host.package("docker.io").is_installed
