#!/usr/bin/python
"""Module: merge keys into Docker's daemon.json."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Merge keys into Docker's daemon.json
description:
  - Sets or removes keys of daemon.json and keeps all others, whoever wrote them. It does not touch Docker; notify a
    handler with M(inference.vllm.docker_daemon_apply) for that.
  - The new file is checked by C(dockerd --validate) where there is a dockerd that can (23.0 or newer), else as JSON.
    What is refused is not written. The file is written in one step and keeps its mode and owner.
  - A file that is no valid JSON is refused with line and column, and left as it is.
  - What Docker ran with before the change is kept as C(daemon.json.last-good) until
    M(inference.vllm.docker_daemon_apply) has seen Docker run with the new file, then as C(daemon.json.bak).
options:
  path:
    description: The file.
    type: path
    default: /etc/docker/daemon.json
  state:
    description:
      - V(present) merges O(config) into the file.
      - V(absent) takes O(keys) out of it.
    type: str
    choices: [present, absent]
    default: present
  config:
    description:
      - Keys with their values. Objects are merged at every depth, so that an entry of C(runtimes) leaves the others
        alone; lists and plain values are replaced. C(log-opts) are replaced whole when C(log-driver) changes.
      - Required for V(present).
    type: dict
  keys:
    description: Keys to remove; C(runtimes/nvidia) is one entry of C(runtimes). Required for V(absent).
    type: list
    elements: str
attributes:
  check_mode:
    description: Says what would change, and has it checked.
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

- name: Forget a runtime
  inference.vllm.docker_daemon_config:
    state: absent
    keys: [runtimes/nvidia]
  notify: Apply Docker's configuration
"""

RETURN = r"""
changed_keys:
  description: Outermost keys whose value changes.
  returned: success
  type: list
  elements: str
action:
  description: What it takes that Docker runs with the file, V(none), V(reload) or V(restart).
  returned: success
  type: str
backup:
  description: Copy of the file that Docker last ran with; null where nothing is pending.
  returned: success
  type: str
validated_by:
  description: Who checked the new file, V(dockerd) or V(json); null where it stays as it is.
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
    """Have dockerd check the file where it can.

    Returns:
        ``dockerd``, or ``json`` where there is none or one that is too old.

    Raises:
        RefusalError: ``daemon_config_refused`` with what dockerd says.
    """
    dockerd = module.get_bin_path("dockerd")
    if dockerd is None:
        return "json"
    with tempfile.NamedTemporaryFile("w", dir=module.tmpdir, suffix=".json", encoding="utf-8") as candidate:
        candidate.write(text)
        candidate.flush()
        code, out, err = module.run_command([dockerd, "--validate", "--config-file", candidate.name])
        said = (err or out).strip().replace(candidate.name, str(module.params["path"]))
    if code and "unknown flag: --validate" in said:
        return "json"
    if code:
        raise RefusalError(
            Refusal(
                "daemon_config_refused",
                f"dockerd refuses what {module.params['path']} would be: {said}. The file was not touched.",
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
            msg=f"[daemon_json_not_written] {file.path}: {error}. The file is as it was. "
            "Fix: free space or correct the permissions there, then run again.",
            failed=True,
        )
    module.exit_json(
        # A change that Docker has not been told yet, because a run was interrupted, is still one to tell.
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
