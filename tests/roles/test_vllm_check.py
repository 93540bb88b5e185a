"""Role vllm_check: the settings that a play sees which lists the role."""

from __future__ import annotations

import json


def settings(host, name):
    return json.loads(host.file(f"/root/{name}.json").content_string)


def test_defaults(host):
    *shared, results = settings(host, "defaults")
    assert shared == [
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:8000/metrics",
        "/opt/vllm/secrets/api_key",
        "qwen3-vl-32b-instruct",
        4,
        "vllm-vllm-1",
    ]
    assert results["smoke"] == ["smoke.json"]
    assert results["stability"] == ["smoke.json", "vram.json", "stability.json"]


def test_settings_that_follow_from_those_of_an_inventory(host):
    assert settings(host, "inventory") == [
        "http://127.0.0.1:8100/v1",
        "http://127.0.0.1:8100/metrics",
        "/srv/vllm/secrets/api_key",
        "tiny-qwen3-vl",
        4,
        "lab-vllm-1",
    ]


def test_the_role_itself_changes_nothing(host):
    assert not host.file("/opt/vllm").exists
    assert not host.file("/srv/vllm").exists
