"""What role nvidia_driver would do on each system, task by task: the only evidence for systems that no test host runs.

`UPDATE_GOLDEN=1 pytest tests/unit/host/test_nvidia_driver_tasks.py` updates the golden files; review the diff.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from jinja2 import Environment, FileSystemLoader

from support.paths import GOLDEN, ROOT

ROLE = ROOT / "roles" / "nvidia_driver"
GOLDEN = GOLDEN / "nvidia_driver_tasks.yml"
TABLE = yaml.safe_load((ROLE / "vars" / "main" / "compatibility.yml").read_text())["__nvidia_driver_compatibility"]
SYSTEMS = sorted(TABLE["systems"])


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[dict[str, Any]]]:
    """Rendered tasks by system."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = ROOT / "tests" / "support" / "driver_tasks.py"
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_tasks_of_every_system_are_as_reviewed(tasks: dict[str, Any]) -> None:
    found = tasks
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(yaml.safe_dump(found, sort_keys=False, width=120))
    assert found == yaml.safe_load(GOLDEN.read_text())


def test_golden_file_has_every_system_of_the_table() -> None:
    assert set(SYSTEMS) <= set(yaml.safe_load(GOLDEN.read_text()))


@pytest.mark.parametrize("system", SYSTEMS)
def test_containers_stop_before_packages_change_and_pins_come_first(tasks: dict[str, Any], system: str) -> None:
    names = [task["task"] for task in tasks[system]]
    assert names.index("Containers | Name and stop those that use GPUs") < names.index("Packages | Install")
    if "Packages | Hold them" in names:
        assert names.index("Packages | Pin everything to this version") < names.index("Packages | Install")
        assert names.index("Packages | Install") < names.index("Packages | Hold them")
    else:
        assert names.index("Packages | Install") < names.index("Packages | Lock everything to this version")


def test_nothing_restarts_a_host_before_the_refusal() -> None:
    steps = yaml.safe_load((ROLE / "tasks" / "reboot.yml").read_text())
    assert "ansible.builtin.assert" in steps[0]
    assert "ansible_connection" in steps[0]["vars"]["__nvidia_driver_refused"]
    restarting = [path.name for path in (ROLE / "tasks").glob("*.yml") if "builtin.reboot" in path.read_text()]
    assert restarting == ["reboot.yml"]


def test_apt_files() -> None:
    environment = Environment(loader=FileSystemLoader(ROLE / "templates"), keep_trailing_newline=True, trim_blocks=True)
    choice = {"pinned": ["nvidia-driver*", "libcuda1"]}
    values = {"__nvidia_driver_choice": choice, "__nvidia_driver_version": "580.126.20"}
    preferences = environment.get_template("preferences.j2").render(values).splitlines()
    assert preferences[1:] == ["Package: nvidia-driver* libcuda1", "Pin: version 580.126.20*", "Pin-Priority: 1001"]
    blacklist = environment.get_template("unattended-upgrades.j2").render(values)
    assert '    "^nvidia-driver";\n    "^libcuda1$";\n};\n' in blacklist
