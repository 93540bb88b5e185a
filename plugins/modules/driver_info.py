#!/usr/bin/python
"""Module: read the packages of a host's NVIDIA driver, and the containers that use it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: driver_info
short_description: Read the packages of a host's NVIDIA driver and the containers that use it
version_added: 0.1.0
description:
  - Reads the driver's packages and their holds, what an interrupted dpkg left, and the containers that use GPUs.
  - Changes nothing. P(inference.vllm.gpu_info#module) reads the GPUs and the driver that runs.
options:
  manager:
    description: The host's package manager.
    type: str
    choices: [apt, dnf]
    required: true
  pin_file:
    description: File with the version that the driver's packages are pinned to.
    type: path
    required: true
  packages:
    description: Packages to look for among those that are installed or in a repository.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Driver | Read packages and containers
  inference.vllm.driver_info:
    manager: apt
    pin_file: /etc/apt/preferences.d/nvidia-driver
  register: state
"""

RETURN = r"""
installed:
  description: Version by name of the installed packages that may belong to the driver.
  type: dict
  returned: always
held:
  description: Those on hold.
  type: list
  elements: str
  returned: always
unfinished:
  description: Any packages that an interrupted dpkg left half installed.
  type: list
  elements: str
  returned: always
managed_version:
  description: Driver version that O(pin_file) pins; empty where it does not.
  type: str
  returned: always
offered:
  description: >-
    By name in O(packages), whether it is installed or in a repository; null where the package manager's lists are
    missing. They are read as they are.
  type: dict
  returned: always
runfile:
  description: Whether a driver of NVIDIA's .run file is installed.
  type: bool
  returned: always
gpu_containers:
  description: Names of running containers that use GPUs.
  type: list
  elements: str
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.host import driver_state

ROOT = Path("/")
DPKG_FORMAT = "${db:Status-Status} ${db:Status-Want} ${Package} ${Version}\\n"
RPM_FORMAT = "%{NAME} %{EPOCH}:%{VERSION}-%{RELEASE}\\n"


def read(path: str) -> str:
    """Text of a file below ROOT, stripped; empty where it cannot be read."""
    try:
        return (ROOT / path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def output(module: AnsibleModule, *argv: str) -> str:
    """What a command printed; empty where it is missing or failed."""
    program = module.get_bin_path(argv[0])
    if not program:
        return ""
    code, out, _ = module.run_command([program, *argv[1:]])
    return str(out) if code == 0 else ""


def packages(module: AnsibleModule) -> dict[str, Any]:
    """Installed, held and unfinished packages."""
    if module.params["manager"] == "dnf":
        found = driver_state.from_rpm(output(module, "rpm", "--query", "--all", "--queryformat", RPM_FORMAT))
        return {"installed": found.installed, "held": found.held, "unfinished": []}
    found = driver_state.from_dpkg(output(module, "dpkg-query", "--show", f"--showformat={DPKG_FORMAT}"))
    # A journal that dpkg did not merge means the same as a package that it names.
    journal = [f"dpkg's journal {path.name}" for path in (ROOT / "var/lib/dpkg/updates").glob("*")]
    unfinished = driver_state.unfinished(output(module, "dpkg", "--audit")) + journal
    return {"installed": found.installed, "held": found.held, "unfinished": unfinished}


def offered(module: AnsibleModule) -> dict[str, bool | None]:
    """Whether each package that was asked for is installed or in a repository."""
    names = module.params["packages"]
    if module.params["manager"] == "dnf":
        return {name: _in_dnf(module, name) for name in names}
    if not names:
        return {}
    found = driver_state.candidates(output(module, "apt-cache", "policy", *names))
    listed = any((ROOT / "var/lib/apt/lists").glob("*_Packages*"))
    return {name: True if name in found else False if listed else None for name in names}


def _in_dnf(module: AnsibleModule, name: str) -> bool | None:
    program = module.get_bin_path("dnf", required=True)
    code, _, error = module.run_command([program, "--cacheonly", "--quiet", "list", name])
    return True if code == 0 else False if "No matching Packages" in error else None


def gpu_containers(module: AnsibleModule) -> list[str]:
    """Running containers that use GPUs; none where Docker does not answer."""
    running = output(module, "docker", "ps", "--quiet", "--no-trunc").split()
    return driver_state.gpu_containers(output(module, "docker", "inspect", *running)) if running else []


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "manager": {"type": "str", "choices": ["apt", "dnf"], "required": True},
            "pin_file": {"type": "path", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8"}
    pins = read(module.params["pin_file"].lstrip("/"))
    module.exit_json(
        changed=False,
        failed=False,
        **packages(module),
        managed_version=driver_state.pinned_version(pins, module.params["manager"]),
        offered=offered(module),
        runfile=(ROOT / "usr/bin/nvidia-uninstall").exists(),
        gpu_containers=gpu_containers(module),
    )


if __name__ == "__main__":
    main()
