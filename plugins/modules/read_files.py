#!/usr/bin/python
"""Module: read the text of several files of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: read_files
short_description: Read the text of several files in one task
version_added: 0.1.0
description:
  - Reads small text files of the host in one task. A file that does not exist is no failure; its text is null.
  - M(ansible.builtin.slurp) reads one file per task and fails if it is missing.
options:
  paths:
    description: Absolute paths of the files.
    type: list
    elements: path
    required: true
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
- name: Read plan.json and image.json
  inference.vllm.read_files:
    paths:
      - /opt/vllm/plan.json
      - /opt/vllm/image.json
  register: written
"""

RETURN = r"""
files:
  description: One entry for each of O(paths), in their order.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Path of the file.
      type: str
    text:
      description: Its text, with U+FFFD for bytes that are not UTF-8. Null where the file does not exist.
      type: str
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def read(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Each path with its text; None if the file does not exist.

    Raises:
        OSError: A file exists but cannot be read.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            text: str | None = Path(path).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            text = None
        found.append({"path": path, "text": text})
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "required": True}}, supports_check_mode=True
    )
    try:
        files = read(module.params["paths"])
    except OSError as error:
        module.fail_json(
            msg=f"[unreadable_file] {error.filename} exists but cannot be read: {error.strerror}. "
            "Fix: make it a file that the user of the task may read."
        )
    module.exit_json(changed=False, files=files)


if __name__ == "__main__":
    main()
