#!/usr/bin/python
"""Module: the engine's API key on a host, and its rotation."""

from __future__ import annotations

DOCUMENTATION = r"""
module: api_key
short_description: Keep the engine's API key in a file, and rotate it with both keys valid for a time
description:
  - C(api_key) in O(path) is the key in use. C(former_api_key) in the same folder is empty, except during a rotation.
  - The output never contains a key.
options:
  path:
    description: Folder of the keys. It is created if it is missing, with access for the user of the task only.
    type: path
    required: true
  state:
    description:
      - V(present) writes O(key), or generates a random key if there is none.
      - V(rotated) writes O(key) or a random key, and keeps the previous one as the former key. During a rotation it
        changes nothing.
      - V(finished) removes the former key.
    type: str
    choices: [present, rotated, finished]
    default: present
  key:
    description: The key. If it is empty and a key is needed, a random one is generated.
    type: str
    default: ""
  owner:
    description: Numeric user that may read the keys.
    type: int
    required: true
  group:
    description: Numeric group of the files.
    type: int
    required: true
attributes:
  check_mode:
    description: Reports whether a key would change.
    support: full
  diff_mode:
    description: A secret is not shown.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Ensure that a key exists
  inference.vllm.api_key:
    path: /opt/vllm/secrets
    owner: 2000
    group: 0

- name: Start a rotation
  inference.vllm.api_key:
    path: /opt/vllm/secrets
    state: rotated
    owner: 2000
    group: 0
"""

RETURN = r"""
overlap:
  description: Whether two keys are valid after the run.
  returned: success
  type: bool
keys_changed:
  description: Whether a key changed, so that the engine must read them again; owner and mode do not count.
  returned: success
  type: bool
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import api_keys

#: Permission bits of a key: only its owner, the engine, reads it.
MODE = 0o400


def read(folder: Path) -> api_keys.Keys:
    """Read the existing keys."""
    texts = {}
    for name in (api_keys.CURRENT, api_keys.FORMER):
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            texts[name] = ""
    return api_keys.Keys(texts[api_keys.CURRENT], texts[api_keys.FORMER])


def write(module: AnsibleModule, path: Path, text: str) -> bool:
    """Write one file with its owner and mode, atomically; returns whether anything changed."""
    same = path.exists() and path.read_text(encoding="utf-8").strip() == text
    if not same and not module.check_mode:
        write_atomic(path, text, MODE)
    if not path.exists():
        return True
    changed = module.set_owner_if_different(str(path), module.params["owner"], not same)
    changed = module.set_group_if_different(str(path), module.params["group"], changed)
    return bool(module.set_mode_if_different(str(path), MODE, changed))


def close(module: AnsibleModule, folder: Path) -> bool:
    """Create the folder with access for its owner only; returns whether anything changed."""
    missing = not folder.exists()
    if missing and module.check_mode:
        return True
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    changed = module.set_owner_if_different(str(folder), os.geteuid(), missing)
    changed = module.set_group_if_different(str(folder), os.getegid(), changed)
    return bool(module.set_mode_if_different(str(folder), "0700", changed))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "rotated", "finished"], "default": "present"},
            "key": {"type": "str", "default": "", "no_log": True},
            "owner": {"type": "int", "required": True},
            "group": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    folder, state, requested = (module.params[name] for name in ("path", "state", "key"))
    folder = Path(folder)
    try:
        before = read(folder)
        after = {
            "present": lambda: api_keys.present(before, requested),
            "rotated": lambda: api_keys.rotated(before, requested),
            "finished": lambda: api_keys.finished(before),
        }[state]()
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), refusals=refusals, failed=True)
    # The former key first, so that an interrupted run loses no key.
    changed = [
        close(module, folder),
        write(module, folder / api_keys.FORMER, after.former),
        write(module, folder / api_keys.CURRENT, after.current),
    ]
    module.exit_json(changed=any(changed), keys_changed=before != after, overlap=after.overlap, failed=False)


if __name__ == "__main__":
    main()
