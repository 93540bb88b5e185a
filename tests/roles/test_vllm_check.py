"""Role vllm_check: the settings that a play sees which lists the role."""

from __future__ import annotations

import json


def settings(host, name):
    return json.loads(host.file(f"/root/{name}.json").content_string)


def test_defaults(host):
    found = settings(host, "defaults")
    assert found["base_url"] == "http://127.0.0.1:8000/v1"
    assert found["api_key_file"] == "/opt/vllm/secrets/api_key"
    assert (found["model"], found["images"]) == ("tiny-qwen3-vl", 4)
    assert found["container"] == "vllm-vllm-1"
    assert found["results"]["stability"] == ["smoke.json", "vram.json", "stability.json"]


def test_settings_that_follow_from_those_of_an_inventory(host):
    assert settings(host, "inventory") == {
        "base_url": "http://127.0.0.1:8123/v1",
        "api_key_file": "/srv/vllm/secrets/api_key",
        "container": "lab-vllm-1",
    }


def test_the_role_itself_changes_nothing(host):
    assert not host.file("/opt/vllm").exists
    assert not host.file("/srv/vllm").exists
