#!/usr/bin/python
"""Check a host against what a deployment needs, and change nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Check a host against what a deployment needs
version_added: 0.1.0
description:
  - Looks at memory, free disk space and the TCP ports that will be used, and fails by name when something is in the
    way.
  - Says what is on the host already. Changes nothing.
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
options:
  path:
    description: Folder that will hold all state; its nearest existing parent is measured.
    type: path
    required: true
  min_free_gib:
    description: Free disk space that must be there, in GiB (2^30 bytes).
    type: float
    default: 0
  min_memory_gib:
    description: Memory that the host must have, in GiB (2^30 bytes).
    type: float
    default: 0
  listen:
    description: Ports that will be used.
    type: list
    elements: dict
    default: []
    suboptions:
      variable:
        description: The variable that sets the port, for the message.
        type: str
        required: true
      address:
        description: Address to listen on.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        required: true
      project:
        description: A port held by a container of this Compose project counts as free.
        type: str
        default: ""
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Host | Check disk and port
  inference.vllm.host_check:
    path: /opt/vllm
    min_free_gib: 120
    listen:
      - {variable: vllm_port, address: 127.0.0.1, port: 8000, project: vllm}
"""

RETURN = r"""
free_gib:
  description: Free disk space in GiB.
  type: float
  returned: always
found:
  description:
    - What is there already. C(memory_gib), C(gpus) (names), C(driver), C(docker), C(toolkit) (versions) and C(release),
      the current one; null for what is not there.
  type: dict
  returned: always
refusals:
  description: What is in the way.
  type: list
  elements: dict
  returned: always
"""

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import this_machine
from ansible_collections.inference.vllm.plugins.module_utils.host.survey import survey
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, join

GIB = 2**30


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of the nearest existing parent of `path`."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def port_taken(address: str, port: int) -> bool:
    """Whether something listens on the port already.

    Raises:
        OSError: the address does not belong to this host.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def held_by_project(module: AnsibleModule, project: str, port: int) -> bool:
    """Whether a container of the Compose project publishes the port."""
    docker = module.get_bin_path("docker")
    if not docker:
        return False
    code, output, _ = module.run_command(
        [
            docker,
            "ps",
            "--quiet",
            "--filter",
            f"label=com.docker.compose.project={project}",
            "--filter",
            f"publish={port}",
        ]
    )
    return code == 0 and bool(output.strip())


def check_port(module: AnsibleModule, entry: dict[str, object]) -> Refusal | None:
    """Why a port cannot be used, or None."""
    variable, address, port = str(entry["variable"]), str(entry["address"]), int(str(entry["port"]))
    try:
        taken = port_taken(address, port)
    except OSError as error:
        return Refusal(
            "address_unusable",
            f"{variable} is {port}, but nothing can listen on {address}:{port}: {error.strerror}.",
            "Choose an address of this host.",
        )
    if not taken or (entry["project"] and held_by_project(module, str(entry["project"]), port)):
        return None
    return Refusal(
        "port_taken",
        f"{variable} is {port}, but another program listens on {address}:{port}.",
        f"Stop that program, or set {variable} to a free port.",
    )


def ask(module: AnsibleModule, argv: Sequence[str]) -> str | None:
    """What a program prints; None where it is not there or fails."""
    if not module.get_bin_path(argv[0]):
        return None
    code, output, _ = module.run_command(list(argv))
    return output if code == 0 else None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "min_free_gib": {"type": "float", "default": 0},
            "min_memory_gib": {"type": "float", "default": 0},
            "listen": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "variable": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "project": {"type": "str", "default": ""},
                },
            },
        },
        supports_check_mode=True,
    )
    params = module.params
    refusals = [refusal for entry in params["listen"] if (refusal := check_port(module, entry))]
    free = free_bytes(Path(params["path"])) / GIB
    if free < params["min_free_gib"]:
        refusals.append(
            Refusal(
                "disk_too_small",
                f"{free:.1f} GiB are free for vllm_home ({params['path']});"
                f" preflight_min_free_gib asks for {params['min_free_gib']:.1f} GiB.",
                "Free some space, or set vllm_home to a folder on a larger disk.",
            )
        )
    found = survey(Path(params["path"]), lambda argv: ask(module, argv), this_machine())
    if found["memory_gib"] < params["min_memory_gib"]:
        refusals.append(
            Refusal(
                "memory_too_small",
                f"The host has {found['memory_gib']} GiB of memory;"
                f" preflight_min_memory_gib asks for {params['min_memory_gib']:.1f} GiB.",
                "Add memory, or lower preflight_min_memory_gib and vllm_service_memory_limit for a smaller model.",
            )
        )
    result = {
        "changed": False,
        "free_gib": round(free, 1),
        "found": found,
        "refusals": [r.as_dict() for r in refusals],
    }
    if refusals:
        module.fail_json(msg=join(refusals), **result)
    module.exit_json(failed=False, **result)


if __name__ == "__main__":
    main()
