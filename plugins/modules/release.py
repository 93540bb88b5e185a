#!/usr/bin/python
"""Module: write, choose and remove releases."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Write, choose and remove releases of a service
description:
  - A release is a folder O(home)C(/releases/<id>/) that is written once and never edited. Its id is O(prefix) and a
    hash of its files, so that the same files give the same release.
  - The module refuses a folder that was edited by hand, and names the file.
  - An interrupted run leaves no incomplete release. The next run removes its temporary folders.
options:
  home:
    description: Absolute path of the folder that holds C(releases/) and the link C(current).
    type: path
    required: true
  state:
    description:
      - V(prepared) writes the release that O(files) describes, unless it exists.
      - V(current) makes the link C(current) point to O(id), atomically.
      - V(absent) removes release O(id), unless it is the current one.
      - V(pruned) removes all releases except the O(keep) newest, the current one and O(id).
    type: str
    choices: [prepared, current, absent, pruned]
    default: prepared
  id:
    description: Release to choose, to remove or to keep. Required for V(current) and V(absent).
    type: str
  prefix:
    description: Readable beginning of the id, in lower case letters, digits, dots and dashes. Required for V(prepared).
    type: str
  files:
    description: Text of each file by its name. C(@RELEASE_ID@) in a text becomes the id. Required for V(prepared).
    type: dict
  modes:
    description: Octal modes of files that do not have V(0644), as texts.
    type: dict
    default: {}
  manifest:
    description: Content of C(manifest.json) in addition to the id and the files' hashes. It is not part of the id.
    type: dict
    default: {}
  keep:
    description: Number of releases that V(pruned) keeps in addition to the current one.
    type: int
    default: 3
attributes:
  check_mode:
    description: Reports what would change, and the resulting id.
    support: full
  diff_mode:
    description: Compares the new release's files with those of the current one.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write a release
  inference.vllm.release:
    home: /opt/vllm
    prefix: qwen3-vl-32b-instruct-fp8-v0.33.0
    files:
      compose.yaml: "{{ lookup('ansible.builtin.template', 'compose.yaml.j2') }}"
    manifest:
      model: qwen3-vl-32b-instruct-fp8
  register: prepared

- name: Make it the current one
  inference.vllm.release:
    home: /opt/vllm
    state: current
    id: "{{ prepared.id }}"
"""

RETURN = r"""
id:
  description: The release, or null with O(state=pruned).
  returned: always
  type: str
path:
  description: Its folder.
  returned: when a release is named
  type: str
current:
  description: The release that C(current) pointed to before; null if the link did not exist.
  returned: always
  type: str
releases:
  description: All releases after the run, newest first.
  returned: always
  type: list
  elements: str
removed:
  description: Releases and temporary folders that were removed.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import (
    MANIFEST,
    Store,
    design,
    manifest_text,
    parse_modes,
)


def prepared(module: AnsibleModule, store: Store) -> dict[str, Any]:
    """Write the release that the parameters describe."""
    params = module.params
    files = {name: str(text) for name, text in params["files"].items()}
    release = design(params["prefix"], files, parse_modes(params["modes"]), params["manifest"])
    before = store.files(store.current())
    if module.check_mode:
        exists = store.path(release.id).exists()
        if exists:
            store.check(release.id)
        result = {"changed": not exists, "removed": []}
    else:
        with store.lock():
            removed = store.tidy()
            result = {"changed": store.write(release) or bool(removed), "removed": removed}
    after = {**release.files, MANIFEST: manifest_text(release)}
    result.update(id=release.id, path=str(store.path(release.id)))
    if module._diff and result["changed"]:
        result["diff"] = [
            {
                "before_header": f"{store.current() or 'none'}/{name}",
                "after_header": f"{release.id}/{name}",
                "before": before.get(name, ""),
                "after": after.get(name, ""),
            }
            for name in sorted(before.keys() | after.keys())
            if before.get(name, "") != after.get(name, "")
        ]
    return result


def current(module: AnsibleModule, store: Store) -> dict[str, Any]:
    """Make a release the current one."""
    wanted, before = module.params["id"], store.current()
    # In check mode a release that the run would write does not exist.
    if not module.check_mode or store.path(wanted).exists():
        store.check(wanted)
    changed = before != wanted
    if changed and not module.check_mode:
        with store.lock():
            changed = store.point(wanted)
    result = {"changed": changed, "removed": [], "id": wanted, "path": str(store.path(wanted))}
    if module._diff and changed:
        result["diff"] = [{"before": f"current -> {before}\n", "after": f"current -> {wanted}\n"}]
    return result


def remove(module: AnsibleModule, store: Store) -> dict[str, Any]:
    """Remove one release, or the surplus ones."""
    wanted = module.params["id"]
    if module.params["state"] == "absent":
        names = [wanted] if store.removable(wanted) else []
    else:
        names = store.surplus(module.params["keep"], (wanted,) if wanted else ())
    if names and not module.check_mode:
        with store.lock():
            for name in names:
                store.remove(name)
    result: dict[str, Any] = {"changed": bool(names), "removed": names, "id": wanted}
    if module._diff and names:
        result["diff"] = [{"before": "".join(f"releases/{name}\n" for name in names), "after": ""}]
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "home": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["prepared", "current", "absent", "pruned"], "default": "prepared"},
            "id": {"type": "str"},
            "prefix": {"type": "str"},
            "files": {"type": "dict"},
            "modes": {"type": "dict", "default": {}},
            "manifest": {"type": "dict", "default": {}},
            "keep": {"type": "int", "default": 3},
        },
        required_if=[
            ("state", "prepared", ("prefix", "files")),
            ("state", "current", ("id",)),
            ("state", "absent", ("id",)),
        ],
        supports_check_mode=True,
    )
    home = Path(module.params["home"])
    if not home.is_absolute():
        module.fail_json(msg=f"home is {str(home)!r}, but must be an absolute path.", failed=True)
    if module.params["keep"] < 0:
        module.fail_json(msg=f"keep is {module.params['keep']}, but must be at least 0.", failed=True)
    store = Store(home)
    before = store.current()
    act = {"prepared": prepared, "current": current}.get(module.params["state"], remove)
    try:
        result = act(module, store)
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), refusals=refusals, failed=True)
    except OSError as error:
        module.fail_json(
            msg=f"[release_not_written] {store.folder}: {error}. Nothing is left half-written. "
            "Fix: free space or correct the permissions there, then run again.",
            failed=True,
        )
    module.exit_json(**{**result, "current": before, "releases": store.ids(), "failed": False})


if __name__ == "__main__":
    main()
