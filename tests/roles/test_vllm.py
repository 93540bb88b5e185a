"""Role vllm: the settings that a play sees which lists the role."""

from __future__ import annotations

import json


def settings(host, name):
    return json.loads(host.file(f"/root/{name}.json").content_string)


def test_defaults(host):
    python, lock = "/opt/vllm/venv/bin/python", "/run/vllm.deploy-lock"
    assert settings(host, "defaults") == ["/opt/vllm", python, "vllm", "vllm-spare", lock]


def test_settings_that_follow_from_those_of_an_inventory(host):
    python, lock = "/srv/vllm/venv/bin/python", "/run/lab.deploy-lock"
    assert settings(host, "inventory") == ["/srv/vllm", python, "lab", "lab-spare", lock]


def test_the_role_itself_changes_nothing(host):
    assert not host.file("/opt/vllm").exists
    assert not host.file("/srv/vllm").exists
