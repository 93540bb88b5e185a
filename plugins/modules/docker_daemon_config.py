#!/usr/bin/python
"""Module: merge keys into Docker's daemon.json."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Merge keys into Docker's daemon.json
description:
  - Sets or removes keys of daemon.json and keeps all others. It does not reload or restart Docker; for that, notify a
    handler with M(inference.vllm.docker_daemon_apply).
  - The new file is checked by C(dockerd --validate) if there is a dockerd of version 23.0 or newer, otherwise as JSON.
    A refused file is not written. The file is replaced atomically and keeps its mode and owner.
  - A file that is not valid JSON is refused with line and column, and not changed.
  - The former file is kept as C(daemon.json.last-good) until M(inference.vllm.docker_daemon_apply) has verified that
    Docker runs with the new file, then as C(daemon.json.bak).
options:
  path:
    description: The file.
    type: path
    default: /etc/docker/daemon.json
  state:
    description:
      - V(present) merges O(config) into the file.
      - V(absent) removes O(keys) from it.
    type: str
    choices: [present, absent]
    default: present
  config:
    description:
      - Keys with their values. Objects are merged at every depth, so that other entries of C(runtimes) are kept; lists
        and plain values are replaced. C(log-opts) are replaced completely if C(log-driver) changes.
      - Required for V(present).
    type: dict
  keys:
    description: Keys to remove; C(runtimes/nvidia) is one entry of C(runtimes). Required for V(absent).
    type: list
    elements: str
attributes:
  check_mode:
    description: Reports what would change, and checks it.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Keep containers running while Docker restarts
  inference.vllm.docker_daemon_config:
    config:
      live-restore: true
  notify: Apply Docker's configuration

- name: Remove a runtime
  inference.vllm.docker_daemon_config:
    state: absent
    keys: [runtimes/nvidia]
  notify: Apply Docker's configuration
"""

RETURN = r"""
changed_keys:
  description: Top-level keys whose value changes.
  returned: success
  type: list
  elements: str
action:
  description: Action that makes Docker use the file, V(none), V(reload) or V(restart).
  returned: success
  type: str
backup:
  description: Copy of the file that Docker last ran with; null if no change is pending.
  returned: success
  type: str
validated_by:
  description: The check of the new file, V(dockerd) or V(json); null if the file does not change.
  returned: success
  type: str
refusals:
  description: Why nothing was written, with C(code), C(message) and C(fix).
  returned: failure
  type: list
  elements: dict
"""

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.host.docker_daemon import (
    ConfigFile,
    action,
    as_text,
    changed_keys,
    merge,
    without,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError


def validate(module: AnsibleModule, text: str) -> str:
    """Check the file with dockerd, if it can.

    Returns:
        ``dockerd``, or ``json`` if there is none or it is too old.

    Raises:
        RefusalError: ``daemon_config_refused`` with the output of dockerd.
    """
    dockerd = module.get_bin_path("dockerd")
    if dockerd is None:
        return "json"
    with tempfile.NamedTemporaryFile("w", dir=module.tmpdir, suffix=".json", encoding="utf-8") as candidate:
        candidate.write(text)
        candidate.flush()
        code, out, err = module.run_command([dockerd, "--validate", "--config-file", candidate.name])
        output = (err or out).strip().replace(candidate.name, str(module.params["path"]))
    if code and "unknown flag: --validate" in output:
        return "json"
    if code:
        raise RefusalError(
            Refusal(
                "daemon_config_refused",
                f"dockerd refuses the new {module.params['path']}: {output}. The file was not changed.",
                "Correct the variable that sets this key, or remove the key from the file.",
            )
        )
    return "dockerd"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "config": {"type": "dict"},
            "keys": {"type": "list", "elements": "str", "no_log": False},
        },
        required_if=[("state", "present", ("config",)), ("state", "absent", ("keys",))],
        supports_check_mode=True,
    )
    given = module.params
    file = ConfigFile(Path(given["path"]))
    try:
        current, text = file.read(), file.text()
        after = merge(current, given["config"]) if given["state"] == "present" else without(current, given["keys"])
        keys = changed_keys(current, after)
        new = as_text(after) if keys else text
        validated_by = validate(module, new) if keys else None
        todo = action(file.proven(), after)
        pending = file.pending()
        if keys and not module.check_mode:
            file.write(new, module.preserved_copy, module.atomic_move)
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), refusals=refusals, failed=True)
    except OSError as error:
        module.fail_json(
            msg=f"[daemon_json_not_written] {file.path}: {error}. The file is unchanged. "
            "Fix: free space or correct the permissions there, then run again.",
            failed=True,
        )
    module.exit_json(
        # A change is still pending if an earlier run was interrupted before Docker used it.
        changed=bool(keys) or pending,
        failed=False,
        changed_keys=keys,
        action=todo,
        backup=str(file.last_good) if file.pending() else None,
        validated_by=validated_by,
        diff={"before": text, "after": new, "before_header": str(file.path), "after_header": str(file.path)},
    )


if __name__ == "__main__":
    main()
