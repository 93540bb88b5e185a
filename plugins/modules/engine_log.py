#!/usr/bin/python
"""Module: keep an engine's log, and find in it why the engine ended."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_log
short_description: Keep an engine's log, and find in it why the engine ended
version_added: 0.1.0
description:
  - Reads the log of a Compose project's containers, and writes it to a file, because the containers may be removed.
  - Finds the lines with the reason. They are far before the end of the log, where each process reports the failure of
    the one before it.
  - Never fails, because it runs after another failure. RV(text) reports a missing log.
options:
  project:
    description: Name of the Compose project.
    type: str
    required: true
  path:
    description: File to write the log to, with mode 0640. Its folder is created if it is missing.
    type: path
    required: true
  lines:
    description: Number of lines from the end of the log in RV(text).
    type: int
    default: 15
attributes:
  check_mode:
    description: Reads the log, and writes no file.
    support: full
  diff_mode:
    description: The file is a copy of Docker's log and does not change the host.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Find out why the engine ended
  inference.vllm.engine_log:
    project: vllm
    path: /opt/vllm/reports/20260101-4f2c/engine.log
  register: engine

- name: Report the reason
  ansible.builtin.fail:
    msg: "{{ engine.text }}"
"""

RETURN = r"""
reasons:
  description: The lines with the reasons, the first cause first; empty if there are none.
  returned: always
  type: list
  elements: str
text:
  description: The reasons, the last lines, and the path of the whole log, for a message.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.checks.engine_log import last_lines, plain, reasons
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic

#: Lines of a container's log that are kept; one start is about 400.
_KEPT = 10_000


def summary(log: str, lines: int, path: str) -> str:
    """The reasons, the last lines and the path of a log, as a text."""
    if not log.strip():
        return "It has no log."
    why = reasons(log) or ["None found."]
    return "\n".join(
        [
            "Reasons in its log, the first cause first:",
            *(f"  {line}" for line in why),
            "Last lines of its log:",
            *(f"  {line}" for line in last_lines(log, lines)),
            f"Complete log: {path}",
        ]
    )


def keep(path: Path, log: str) -> None:
    """Write the log; only its owner and group may read it."""
    write_atomic(path, log, folder_mode=0o750)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "lines": {"type": "int", "default": 15},
        },
        supports_check_mode=True,
    )
    project, path, lines = (module.params[name] for name in ("project", "path", "lines"))
    command = ["docker", "compose", "--ansi=never", f"--project-name={project}", "logs", "--no-color"]
    try:
        # An invalid byte must not hide the original failure.
        code, log, error = module.run_command(
            [*command, "--no-log-prefix", f"--tail={_KEPT}"], handle_exceptions=False, errors="replace"
        )
        log = plain(log)
        text = summary(log, lines, path) if code == 0 else f"Its log cannot be read: {error.strip()}"
        if code == 0 and log.strip() and not module.check_mode:
            keep(Path(path), log)
    except OSError as failure:
        log, text = "", f"Its log cannot be kept: {failure}"
    module.exit_json(changed=False, reasons=reasons(log), text=text)


if __name__ == "__main__":
    main()
