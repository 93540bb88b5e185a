#!/usr/bin/python
"""Module: remove images with extra packages that no release uses any more."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_image_prune
short_description: Remove images with extra packages that no release uses any more
description:
  - Removes only images that role engine_image made for this O(home), and of these none that a container has.
options:
  home:
    description: Folder of the deployment, with C(image.json) and C(releases).
    type: path
    required: true
  all:
    description: Remove those too that C(image.json) and the releases name.
    type: bool
    default: false
attributes:
  check_mode:
    description: Says which would be removed.
    support: full
  diff_mode:
    description: An image is not text.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Remove what no release uses
  inference.vllm.engine_image_prune:
    home: /opt/vllm
"""

RETURN = r"""
removed:
  description: Names of the images that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
kept:
  description: Names of the images that a container has.
  returned: success
  type: list
  elements: str
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.image.settings import in_use, unused

_LIST = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter"]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"home": {"type": "path", "required": True}, "all": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    home = Path(module.params["home"])
    removed: list[str] = []
    kept: list[str] = []
    # Without an engine, or with one that does not run, there is nothing to remove.
    rc, listed, _ = (
        module.run_command([*_LIST, f"label=inference.vllm.home={home}"]) if shutil.which("docker") else (1, "", "")
    )
    for name in unused(listed.splitlines() if rc == 0 else [], [] if module.params["all"] else in_use(home)):
        rc = 0 if module.check_mode else module.run_command(["docker", "image", "rm", name])[0]
        (kept if rc else removed).append(name)
    module.exit_json(changed=bool(removed), removed=removed, kept=kept)


if __name__ == "__main__":
    main()
