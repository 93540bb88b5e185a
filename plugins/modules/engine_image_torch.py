#!/usr/bin/python
"""Module: choose the source of torch for the CPU image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_image_torch
short_description: Choose the source of torch for the CPU image
description:
  - Asks what pip is set up to use on this host, then O(index), for the build for CPUs that the recipe pins. Where
    neither has it, PyPI's build is taken, with the CUDA libraries that it loads.
  - An index that does not answer is queried once, with a timeout of seconds. Nothing is downloaded.
options:
  recipe:
    description: Folder with C(requirements-torch.txt) and C(requirements-torch-pypi.txt).
    type: path
    required: true
  executable:
    description: Python whose pip is asked.
    type: path
    required: true
  target:
    description: Arguments of pip that say what the wheels have to run on.
    type: list
    elements: str
    default: []
  index:
    description: Package index with PyTorch's CPU wheels. Empty asks none.
    type: str
    default: ""
  wheels:
    description: Folder with all wheels. When set, no package index is asked.
    type: str
    default: ""
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
- name: Choose the source of torch
  inference.vllm.engine_image_torch:
    recipe: /opt/vllm/cache/engine-image/build
    executable: /opt/vllm/venv/bin/python
    index: https://download.pytorch.org/whl/cpu
"""

RETURN = r"""
requirements:
  description: File of the recipe that pins what to download.
  returned: success
  type: str
arguments:
  description: Arguments of pip that say where to look.
  returned: success
  type: list
  elements: str
notice:
  description: What the operator has to know before the download. May be empty.
  returned: success
  type: str
refusals:
  description: Why there is no torch, each with C(code), C(message) and C(fix).
  returned: always
  type: list
  elements: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.image.recipe import pinned_version
from ansible_collections.inference.vllm.plugins.module_utils.image.wheels import CPU, PYPI, Offer, ask_pip, find
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "recipe": {"type": "path", "required": True},
            "executable": {"type": "path", "required": True},
            "target": {"type": "list", "elements": "str", "default": []},
            "index": {"type": "str", "default": ""},
            "wheels": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params

    def ask(arguments: list[str], seconds: int) -> Offer:
        return ask_pip(given["executable"], arguments, seconds)

    try:
        cpu, pypi = (
            pinned_version((Path(given["recipe"]) / name).read_text(encoding="utf-8"), "torch") for name in (CPU, PYPI)
        )
        torch = find(ask, cpu, pypi, target=given["target"], index=given["index"], wheels=given["wheels"])
    except RefusalError as error:
        module.fail_json(msg=str(error), refusals=[refusal.as_dict() for refusal in error.refusals])
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"engine_image_torch: {error}", refusals=[])
    module.exit_json(
        changed=False,
        requirements=torch.requirements,
        arguments=torch.arguments,
        notice=torch.notice,
        refusals=[],
    )


if __name__ == "__main__":
    main()
