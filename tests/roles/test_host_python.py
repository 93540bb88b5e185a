"""State of a host after role host_python."""

from __future__ import annotations

import json
from pathlib import Path

PYTHON = "/opt/vllm/venv/bin/python"
REQUIREMENTS = Path(__file__).parents[2] / "roles" / "host_python" / "files" / "requirements.txt"


def test_versions_are_the_pinned_ones(host):
    wanted = dict(
        line.lower().split("==") for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")
    )
    listed = json.loads(host.check_output(f"{PYTHON} -m pip list --format=json --disable-pip-version-check"))
    installed = {p["name"].lower().replace("_", "-"): p["version"] for p in listed}
    assert {n: installed.get(n.replace("_", "-")) for n in wanted} == wanted


def test_libraries_load(host):
    assert host.run(f"{PYTHON} -c 'import docker, huggingface_hub, openai, PIL, pynvml, requests, yaml'").rc == 0


def test_the_system_python_is_unchanged(host):
    assert host.run("/usr/bin/python3 -c 'import huggingface_hub'").rc != 0


def test_state_folder(host):
    folder = host.file("/opt/vllm")
    assert folder.is_directory
    assert folder.mode == 0o755
