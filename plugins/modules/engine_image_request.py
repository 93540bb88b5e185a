#!/usr/bin/python
"""Module: accept or refuse the settings of the engine's image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_image_request
short_description: Accept or refuse the settings of the engine's image
description:
  - Refuses an image without a digest, a version of vLLM with known holes, an image that this host cannot run, packages
    that are not pinned, and a signature that could not be checked.
  - Returns whether the engine has the image, and whether M(inference.vllm.engine_image_record) recorded it.
  - Changes nothing and asks no registry.
options:
  source:
    description: Where the image comes from, V(pull), V(load) or V(build).
    type: str
    required: true
  accelerator:
    description: What runs the engine, V(nvidia) or V(cpu).
    type: str
    default: nvidia
  repository:
    description: Repository in a registry, with the registry's name, where O(source=pull).
    type: str
    default: ""
  tag:
    description: Tag in that repository.
    type: str
    default: ""
  digest:
    description: Digest of the reviewed image, C(sha256:) and 64 hexadecimal digits.
    type: str
    default: ""
  allow_tag_without_digest:
    description: Accept an empty O(digest).
    type: bool
    default: false
  archive:
    description: Archive of the image, where O(source=load).
    type: str
    default: ""
  archive_reference:
    description: Name and tag that the archive is expected to hold.
    type: str
    default: ""
  archive_sha256:
    description: Hash of the archive. Empty is not checked.
    type: str
    default: ""
  save_archive:
    description: Archive to save the image to. Empty saves nothing.
    type: str
    default: ""
  built_reference:
    description: Name and tag that a build gives, where O(source=build).
    type: str
    default: ""
  built_version:
    description: vLLM's version that a build gives.
    type: str
    default: ""
  vllm_version:
    description: vLLM's version, if the tag does not contain it.
    type: str
    default: ""
  unsafe_allow_old_version:
    description: Accept a version of vLLM with known holes.
    type: bool
    default: false
  extra_packages:
    description: Python packages to lay over the image, each C(name==version).
    type: list
    elements: str
    default: []
  extra_wheels:
    description: Folder on the host with their wheels. Empty asks a package index.
    type: str
    default: ""
  signature_key:
    description: Public key that must have signed the image, as text, or what else C(cosign verify --key) takes.
    type: str
    default: ""
  signature_identity:
    description: Identity in the certificate of a keyless signature.
    type: str
    default: ""
  signature_issuer:
    description: Who issued that identity, as a URL.
    type: str
    default: ""
  signature_tool:
    description: Program that checks it, by name or path.
    type: str
    default: cosign
  record:
    description: File that M(inference.vllm.engine_image_record) writes.
    type: path
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
- name: Ask whether this image may be used
  inference.vllm.engine_image_request:
    source: pull
    repository: docker.io/vllm/vllm-openai
    tag: v0.33.0
    digest: "{{ reviewed_digest }}"
"""

RETURN = r"""
reference:
  description: What an engine is asked for, C(repository@digest) or name and tag.
  returned: success
  type: str
vllm_version:
  description: vLLM's version in the image.
  returned: success
  type: str
present:
  description: Whether the engine has an image of that name.
  returned: success
  type: bool
recorded:
  description: Whether it has, and O(record) says so.
  returned: success
  type: bool
extra_facts:
  description: What of the packages decides the image that is made with them.
  returned: success
  type: list
  elements: str
signed:
  description: Whether a signature is to be checked.
  returned: success
  type: bool
refusals:
  description: Reasons against the settings, each with C(code), C(message) and C(fix).
  returned: always
  type: list
  elements: dict
"""

import hashlib
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.image import packages as extra_packages
from ansible_collections.inference.vllm.plugins.module_utils.image.settings import (
    Wanted,
    ask,
    record,
    recorded,
    reference,
    refusals,
    vllm_version,
)
from ansible_collections.inference.vllm.plugins.module_utils.image.signature import Signer
from ansible_collections.inference.vllm.plugins.module_utils.refusal import join

CPUINFO = Path("/proc/cpuinfo")

ARGUMENTS = {
    "source": {"type": "str", "required": True},
    "accelerator": {"type": "str", "default": "nvidia"},
    "repository": {"type": "str", "default": ""},
    "tag": {"type": "str", "default": ""},
    "digest": {"type": "str", "default": ""},
    "allow_tag_without_digest": {"type": "bool", "default": False},
    "archive": {"type": "str", "default": ""},
    "archive_reference": {"type": "str", "default": ""},
    "archive_sha256": {"type": "str", "default": ""},
    "save_archive": {"type": "str", "default": ""},
    "built_reference": {"type": "str", "default": ""},
    "built_version": {"type": "str", "default": ""},
    "vllm_version": {"type": "str", "default": ""},
    "unsafe_allow_old_version": {"type": "bool", "default": False},
    "extra_packages": {"type": "list", "elements": "str", "default": []},
    "extra_wheels": {"type": "str", "default": ""},
    "signature_key": {"type": "str", "default": "", "no_log": False},
    "signature_identity": {"type": "str", "default": ""},
    "signature_issuer": {"type": "str", "default": ""},
    "signature_tool": {"type": "str", "default": "cosign"},
    "record": {"type": "path"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    given: dict[str, Any] = dict(module.params)
    written = given.pop("record")
    specs, folder = given.pop("extra_packages"), Path(given["extra_wheels"] or "/nonexistent")
    signer = Signer(*(given.pop(f"signature_{name}") for name in ("key", "identity", "issuer")))
    wanted = Wanted(
        **given,
        extra_packages=tuple(specs),
        extra_files=frozenset(path.name for path in folder.glob("*.whl")),
        signer=signer,
        signature_tool_found=shutil.which(given["signature_tool"]) is not None,
        machine=platform.machine(),
        cpu_flags=_cpu_flags(),
    )
    found = refusals(wanted)
    if found:
        module.fail_json(msg=join(found), refusals=[refusal.as_dict() for refusal in found])
    name, version = reference(wanted), vllm_version(wanted)
    image, _ = ask(module.run_command, module.get_bin_path("docker"), name)
    known = recorded(Path(written)) if written else None
    module.exit_json(
        changed=False,
        reference=name,
        vllm_version=version,
        present=bool(image),
        recorded=bool(image) and known == record(name, wanted.source, version, image),
        extra_facts=extra_packages.recipe_facts(specs, _hashes(folder, wanted.extra_files, specs)),
        signed=signer.wanted and wanted.source == "pull",
        refusals=[],
    )


def _hashes(folder: Path, files: Iterable[str], specs: list[str]) -> dict[str, str]:
    """sha256 of the wheels that these packages are in the folder, by file name."""
    packages = [package for package in map(extra_packages.parse, specs) if package]
    wheels = [name for names in extra_packages.wheels_of(packages, set(files)).values() for name in names]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in wheels}


def _cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor; empty where the kernel does not list them."""
    if not CPUINFO.exists():
        return frozenset()
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


if __name__ == "__main__":
    main()
