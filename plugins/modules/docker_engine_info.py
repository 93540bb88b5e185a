#!/usr/bin/python
"""Module: read the state, origin and configuration of a host's Docker engine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_engine_info
short_description: Read the state, origin and configuration of a host's Docker engine
description:
  - Returns whether the engine and Compose v2 answer, whether the role installed the engine, and whether it runs with
    the configuration of M(inference.vllm.docker_daemon_config) and M(inference.vllm.docker_daemon_apply).
  - Changes nothing, and does not fail without Docker.
options:
  owner_file:
    description: File that marks hosts whose engine the role installed.
    type: path
    required: true
  proxy_file:
    description: File of systemd's unit that sets the engine's proxy. RV(proxy_file) is whether it exists.
    type: path
  path:
    description: The engine's configuration.
    type: path
    default: /etc/docker/daemon.json
  config:
    description: Required keys, as O(inference.vllm.docker_daemon_config#module:config).
    type: dict
    default: {}
  config_absent:
    description: Keys that must be absent, as O(inference.vllm.docker_daemon_config#module:keys).
    type: list
    elements: str
    default: []
  environment:
    description: Required variables, as O(inference.vllm.docker_daemon_apply#module:environment).
    type: dict
    default: {}
  pidfile:
    description: File with the process id of an engine without service manager. Without it, systemd is queried.
    type: path
  service:
    description: Name of systemd's unit.
    type: str
    default: docker
attributes:
  check_mode:
    description: Changes nothing, so it answers the same.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Check whether live-restore is set
  inference.vllm.docker_engine_info:
    owner_file: /etc/docker/installed-by-ansible
    config:
      live-restore: true
  register: engine
"""

RETURN = r"""
answers:
  description: Whether the engine answers.
  returned: success
  type: bool
compose:
  description: Whether C(docker compose) answers.
  returned: success
  type: bool
present:
  description: Whether an engine is installed, running or not.
  returned: success
  type: bool
owned:
  description: Whether O(owner_file) exists, or there is no engine yet.
  returned: success
  type: bool
differs:
  description: Differences of O(path) from the required state, as a text; empty if there are none.
  returned: success
  type: str
configured:
  description: Whether O(path) is in the required state, and the engine, if it runs, uses it and O(environment).
  returned: success
  type: bool
proxy_file:
  description: Whether O(proxy_file) exists.
  returned: success
  type: bool
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.host.docker_daemon import (
    ConfigFile,
    changed_keys,
    merge,
    runs_otherwise,
    without,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

#: Paths of the engine from packages and archives.
PROGRAMS = ("/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd")

ARGUMENTS: dict[str, Any] = {
    "owner_file": {"type": "path", "required": True},
    "proxy_file": {"type": "path"},
    "path": {"type": "path", "default": "/etc/docker/daemon.json"},
    "config": {"type": "dict", "default": {}},
    "config_absent": {"type": "list", "elements": "str", "default": []},
    # A proxy's URL may carry a password.
    "environment": {"type": "dict", "default": {}, "no_log": True},
    "pidfile": {"type": "path"},
    "service": {"type": "str", "default": "docker"},
}


def difference(file: ConfigFile, config: dict[str, Any], absent: list[str]) -> str:
    """Differences of the file from the required state; empty if there are none."""
    try:
        current = file.read()
    except RefusalError as error:
        return str(error)
    keys = changed_keys(current, merge(without(current, absent), config))
    return f"{', '.join(keys)} would change" if keys else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    given = module.params
    docker = module.get_bin_path("docker")
    answers, compose = (
        docker is not None and module.run_command([docker, *command])[0] == 0
        for command in (["version"], ["compose", "version"])
    )
    present = answers or any(Path(program).exists() for program in PROGRAMS)
    file = ConfigFile(Path(given["path"]))
    differs = difference(file, given["config"], given["config_absent"])
    otherwise = runs_otherwise(module.run_command, given["environment"], given["pidfile"], given["service"])
    module.exit_json(
        changed=False,
        answers=answers,
        compose=compose,
        present=present,
        owned=not present or Path(given["owner_file"]).exists(),
        differs=differs,
        configured=not (differs or file.pending() or otherwise),
        proxy_file=given["proxy_file"] is not None and Path(given["proxy_file"]).exists(),
    )


if __name__ == "__main__":
    main()
