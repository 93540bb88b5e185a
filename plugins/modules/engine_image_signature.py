#!/usr/bin/python
"""Module: see that an image in a registry is signed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_image_signature
short_description: See that an image in a registry is signed
description:
  - Runs cosign, and records the success. The same image with the same signer is not verified again, so that a
    registry that is down stops no deployment that needs nothing from it.
options:
  reference:
    description: The image, C(repository@digest).
    type: str
    required: true
  key:
    description: Public key that must have signed it, as PEM text, or what else C(cosign verify --key) takes.
    type: str
    default: ""
  identity:
    description: Identity in the certificate of a keyless signature, with O(issuer).
    type: str
    default: ""
  issuer:
    description: Who issued that identity, as a URL.
    type: str
    default: ""
  without_transparency_log:
    description: Accept a signature that is in no transparency log.
    type: bool
    default: false
  registry_ca:
    description: File with certificates for the registry's own. Empty is the system's.
    type: str
    default: ""
  tool:
    description: The program, by name or path.
    type: str
    default: cosign
  record:
    description: File that records the verified image and its signer.
    type: path
    required: true
requirements:
  - cosign
attributes:
  check_mode:
    description: Checks the signature and writes nothing.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: See that our own registry's image is signed
  inference.vllm.engine_image_signature:
    reference: registry.example.org/vllm@{{ reviewed_digest }}
    key: "{{ lookup('ansible.builtin.file', 'cosign.pub') }}"
    without_transparency_log: true
    record: /opt/vllm/image-signature.json
"""

RETURN = r"""
signer:
  description: Who signed it.
  returned: success
  type: str
asked:
  description: Whether the registry was asked now.
  returned: success
  type: bool
refusals:
  description: Why the image is not used, with C(code), C(message) and C(fix).
  returned: always
  type: list
  elements: dict
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.files import FOLDER_MODE, write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.image.signature import Signer, command, judge


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "reference": {"type": "str", "required": True},
            "key": {"type": "str", "default": "", "no_log": False},
            "identity": {"type": "str", "default": ""},
            "issuer": {"type": "str", "default": ""},
            "without_transparency_log": {"type": "bool", "default": False},
            "registry_ca": {"type": "str", "default": ""},
            "tool": {"type": "str", "default": "cosign"},
            "record": {"type": "path", "required": True},
        },
        required_one_of=[("key", "identity")],
        required_together=[("identity", "issuer")],
        supports_check_mode=True,
    )
    given = module.params
    names = ("key", "identity", "issuer", "without_transparency_log", "registry_ca")
    signer = Signer(*(given[name] for name in names))
    record, reference = Path(given["record"]), given["reference"]
    after = json.dumps({"reference": reference, "signer": signer.name}, indent=2, sort_keys=True) + "\n"
    before = record.read_text(encoding="utf-8") if record.is_file() else ""
    if before != after:
        argv, environment = command(module.get_bin_path(given["tool"], required=True), signer, reference)
        rc, _, output = module.run_command(argv, environ_update=environment)
        if refusal := judge(rc, output, signer, reference):
            module.fail_json(msg=str(refusal), refusals=[refusal.as_dict()])
        if not module.check_mode:
            write_atomic(record, after, mode=0o644, folder_mode=FOLDER_MODE)
    module.exit_json(
        changed=before != after,
        asked=before != after,
        signer=signer.name,
        refusals=[],
        diff={"before": before, "after": after, "before_header": str(record), "after_header": str(record)},
    )


if __name__ == "__main__":
    main()
