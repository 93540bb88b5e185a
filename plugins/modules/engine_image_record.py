#!/usr/bin/python
"""Module: write down which image the engine runs from."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_image_record
short_description: Write down which image the engine runs from
description:
  - Writes C(image.json), the one place where later steps read the image's reference, identifier and version.
  - Asks the engine for all that its settings do not say. A pulled tag is written down by the digest that it had.
options:
  path:
    description: File that receives the record.
    type: path
    required: true
  reference:
    description: What RV(inference.vllm.engine_image_request#module:reference) says.
    type: str
    required: true
  source:
    description: Where the image came from.
    type: str
    choices: [pull, load, build]
    required: true
  vllm_version:
    description: vLLM's version in the image.
    type: str
    required: true
attributes:
  check_mode:
    description: Says whether the file would change. The image need not be there yet.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write down the image
  inference.vllm.engine_image_record:
    path: /opt/vllm/image.json
    reference: localhost/vllm-cpu:0.32.0-0123456789ab
    source: build
    vllm_version: 0.32.0
"""

RETURN = r"""
image:
  description: >-
    The record, with C(reference), C(id), C(digest), C(source) and C(vllm_version); of an image with extra packages also
    C(base), C(base_id) and C(packages).
  returned: success
  type: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.files import FOLDER_MODE, write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.image.settings import ask, record


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "reference": {"type": "str", "required": True},
            "source": {"type": "str", "required": True, "choices": ["pull", "load", "build"]},
            "vllm_version": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    seen, why_not = ask(module.run_command, module.get_bin_path("docker"), given["reference"])
    if not seen and not module.check_mode:
        module.fail_json(msg=f"The Docker engine has no image {given['reference']}: {why_not}. Nothing was written.")
    image = record(given["reference"], given["source"], given["vllm_version"], seen)
    path, after = Path(given["path"]), image.to_json()
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        if before != after and not module.check_mode:
            write_atomic(path, after, mode=0o644, folder_mode=FOLDER_MODE)
    except OSError as error:
        module.fail_json(msg=f"{path} could not be written: {error.strerror}. The old record, if any, is unchanged.")
    module.exit_json(
        changed=before != after,
        image=image.as_dict(),
        diff={"before": before, "after": after, "before_header": str(path), "after_header": str(path)},
    )


if __name__ == "__main__":
    main()
