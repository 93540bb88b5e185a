"""driver_tasks.py: print as JSON the tasks that role nvidia_driver would run on a new host of each system.

Ansible's own templating renders the arguments. A separate program, because Ansible's collection loader must be
initialized before anything imports a collection.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.role_paths import LOADER, settings, walk  # noqa: E402

ROLE = ROOT / "roles" / "nvidia_driver"

SYSTEMS = {
    "Debian 12": ("Debian", "12", "Debian", "6.1.0-41-amd64"),
    "Debian 13": ("Debian", "13", "Debian", "6.12.57+deb13-amd64"),
    "Ubuntu 22": ("Ubuntu", "22", "Debian", "5.15.0-161-generic"),
    "Ubuntu 24": ("Ubuntu", "24", "Debian", "6.8.0-88-generic"),
    "RedHat 9": ("Rocky", "9", "RedHat", "5.14.0-611.5.1.el9_7.x86_64"),
    "RedHat 10": ("AlmaLinux", "10", "RedHat", "6.12.0-124.8.1.el10_1.x86_64"),
}
LISTING = {
    "Debian": "nvidia-driver-cuda | 580.126.20-1 | https://x Packages\n",
    "RedHat": "nvidia-driver-cuda.x86_64   3:580.126.20-1.el9   nvidia-driver\n",
}


def host(system: str, *, secure_boot: bool = False) -> dict[str, Any]:
    """Variables of a new host with two H100 and NVSwitches."""
    distribution, major, family, kernel = SYSTEMS[system]
    variables = settings(ROLE)
    modules = dict.fromkeys(("nvidia", "nvidia_uvm", "nouveau", "nova_core"), False)
    around = {"kernel_module": {"version": None}, "userspace_version": None, "modules": modules, "nvswitches": 4}
    return variables | {
        "ansible_check_mode": False,
        "ansible_facts": {
            "distribution": distribution,
            "distribution_major_version": major,
            "os_family": family,
            "pkg_mgr": "apt" if family == "Debian" else "dnf",
            "kernel": kernel,
            "architecture": "x86_64",
        },
        "nvidia_driver_gpus": [{"name": "H100", "count": 2}],
        "__nvidia_driver_running": {"gpus": [], "host": around | {"secure_boot": secure_boot}},
        "__nvidia_driver_before": {
            "installed": {}, "held": [], "unfinished": [], "managed_version": "", "runfile": False,
            "gpu_containers": ["vllm-engine-1"], "offered": {},
        },
        "__nvidia_driver_listing": {"stdout": LISTING[family], "stderr": "", "rc": 0},
        "_nvidia_repository_python_debian": {"changed": True},
        "__nvidia_driver_stream": {"stdout": ""},
        "__nvidia_driver_installed": {
            "installed": {"nvidia-driver-cuda": "580.126.20-1", "libcuda1": "580.126.20-1"}, "held": [],
        },
    }  # fmt: skip


def tasks(system: str, *, secure_boot: bool = False) -> list[dict[str, Any]]:
    """All tasks that install the packages."""
    variables = host(system, secure_boot=secure_boot)
    choice = Templar(LOADER, variables=variables).template(variables["__nvidia_driver_choice"])
    if choice["refused"]:
        raise SystemExit(f"{system}: {choice['refused']}")
    steps = walk(ROLE / "tasks" / f"packages_{choice['manager']}.yml", variables)
    return [{"task": step.task, step.module: step.arguments} for step in steps]


def main() -> None:
    """Print the tasks of all systems."""
    init_plugin_loader([str(ROOT / "collections")])
    found = {system: tasks(system) for system in SYSTEMS}
    found["Ubuntu 24 with Secure Boot"] = tasks("Ubuntu 24", secure_boot=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
