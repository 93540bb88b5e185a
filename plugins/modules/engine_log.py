#!/usr/bin/python
"""Module: keep an engine's log, and find in it why the engine ended."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_log
short_description: Keep an engine's log, and find in it why the engine ended
version_added: 0.1.0
description:
  - Reads the log of a Compose project's containers, and writes it to a file, for the containers may be gone soon.
  - Finds the lines that tell the reason. They stand far from the end, where one process after the other says that the
    one before it failed.
  - Never fails, as it is asked where something else has failed. Where there is no log it says so in RV(text).
options:
  project:
    description: Name of the Compose project.
    type: str
    required: true
  path:
    description: File to write the log to, mode 0640. Its folder is made where it is missing.
    type: path
    required: true
  lines:
    description: So many lines of the log's end are shown in RV(text).
    type: int
    default: 15
attributes:
  check_mode:
    description: Reads the log, and writes no file.
    support: full
  diff_mode:
    description: The file is a copy of what Docker has, and no state of the host.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: See why the engine ended
  inference.vllm.engine_log:
    project: vllm
    path: /opt/vllm/reports/20260101-4f2c/engine.log
  register: engine

- name: Say it
  ansible.builtin.fail:
    msg: "{{ engine.text }}"
"""

RETURN = r"""
reasons:
  description: The lines that tell why it ended, the first cause first. Empty where none does.
  returned: always
  type: list
  elements: str
text:
  description: The reasons, the last lines, and where the whole log is, for a message.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.checks.engine_log import last_lines, plain, reasons
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic

#: Lines of a container's log that are kept; one start is about 400.
_KEPT = 10_000


def told(log: str, lines: int, path: str) -> str:
    """The reasons, the last lines and the place of a log, as a text."""
    if not log.strip():
        return "There is no log of it."
    why = reasons(log) or ["No line of it tells one."]
    return "\n".join(
        [
            "What its log gives as the reason, the first cause first:",
            *(f"  {line}" for line in why),
            "Its last lines:",
            *(f"  {line}" for line in last_lines(log, lines)),
            f"The whole log: {path}",
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
        # A byte that is no text must not end what tells of another failure.
        code, log, error = module.run_command(
            [*command, "--no-log-prefix", f"--tail={_KEPT}"], handle_exceptions=False, errors="replace"
        )
        log = plain(log)
        text = told(log, lines, path) if code == 0 else f"Its log cannot be read: {error.strip()}"
        if code == 0 and log.strip() and not module.check_mode:
            keep(Path(path), log)
    except OSError as failure:
        log, text = "", f"Its log cannot be kept: {failure}"
    module.exit_json(changed=False, reasons=reasons(log), text=text)


if __name__ == "__main__":
    main()
