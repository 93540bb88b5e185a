#!/usr/bin/python
"""Module: does the proof of a release still stand for the container that runs?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: proof_record
short_description: Tell whether the proof of a release still stands for the container that runs, or record a proof
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - A full proof loads the engine. As long as its container was not started again and the same is asked, proving it
    again would tell nothing new.
  - With O(state=read), says whether that is so, which takes a good verdict of the current release, a record of its full
    proof, the very start of the container that was proven, the same O(settings), and one token that is decoded now, for
    the release's own C(healthcheck.py). What cannot be seen is a reason for a full proof, and no failure.
  - With O(state=recorded), records that the release was proven in full, if its container is still at its start
    O(started).
options:
  state:
    description: Whether to look or to record.
    type: str
    choices: [read, recorded]
    default: read
  home:
    description: Absolute path of the folder that holds C(releases/), C(reports/) and the link C(current).
    type: path
    required: true
  release:
    description: Identifier of the release that runs.
    type: str
    required: true
  container:
    description: Name of its container.
    type: str
    required: true
  settings:
    description: Digest of what is asked of it; see the lookup P(inference.vllm.proof_settings#lookup).
    type: str
    required: true
  wanted:
    description: Whether a proof on record is enough. With V(false) none is.
    type: bool
    default: true
  started:
    description: The start of the container before the checks, RV(started) of O(state=read); empty for none.
    type: str
    default: ""
  address:
    description: Address on which the service is published.
    type: str
    default: 127.0.0.1
  port:
    description: Port on which the service is published.
    type: int
    default: 8000
  api_key_file:
    description: File that holds the API key. Needed for O(state=read).
    type: path
  model:
    description: Served name of the model.
    type: str
    default: ""
  timeout:
    description: Longest time for the token, in seconds.
    type: int
    default: 30
attributes:
  check_mode:
    description: Looks as ever, and records nothing.
    support: full
  diff_mode:
    description: The record is no state of the host.
    support: none
"""

EXAMPLES = r"""
- name: See whether this start of the release was proven
  inference.vllm.proof_record:
    home: /opt/vllm
    release: 20260101-4f2c
    container: vllm-vllm-1
    settings: "{{ lookup('inference.vllm.proof_settings', 'roles') }}"
    api_key_file: /opt/vllm/secrets/api_key
    model: qwen3-vl-32b
  register: standing

- name: Record a full proof
  inference.vllm.proof_record:
    state: recorded
    home: /opt/vllm
    release: 20260101-4f2c
    container: vllm-vllm-1
    settings: "{{ lookup('inference.vllm.proof_settings', 'roles') }}"
    started: "{{ standing.started }}"
"""

RETURN = r"""
stands:
  description: Whether the proof on record stands for the container as it runs now.
  returned: with O(state=read)
  type: bool
why:
  description: Why it does not stand; empty where it does.
  returned: with O(state=read)
  type: str
started:
  description: When the container was started, as Docker writes it; empty where there is none.
  returned: always
  type: str
recorded:
  description: Whether the record now names this start.
  returned: with O(state=recorded)
  type: bool
"""

import json
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.checks import proof_record
from ansible_collections.inference.vllm.plugins.module_utils.checks.container import State, state_of
from ansible_collections.inference.vllm.plugins.module_utils.checks.proof_record import Record
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import Store

ARGUMENTS: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["read", "recorded"], "default": "read"},
    "home": {"type": "path", "required": True},
    "release": {"type": "str", "required": True},
    "container": {"type": "str", "required": True},
    "settings": {"type": "str", "required": True},
    "wanted": {"type": "bool", "default": True},
    "started": {"type": "str", "default": ""},
    "address": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int", "default": 8000},
    "api_key_file": {"type": "path", "no_log": False},
    "model": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 30},
}


def container_now(module: AnsibleModule) -> State | None:
    """The container as Docker's client shows it; None where there is no such container, or no Docker."""
    try:
        rc, out, _ = module.run_command(
            ["docker", "container", "inspect", module.params["container"]], handle_exceptions=False
        )
        return state_of(json.loads(out)[0]) if rc == 0 else None
    except (OSError, ValueError, LookupError):
        return None


def token(module: AnsibleModule) -> tuple[bool, str]:
    """Whether the service gives a token now, and what is to be said of it."""
    params = module.params
    program = Path(params["home"]) / "releases" / params["release"] / "healthcheck.py"
    named = {"--host": params["address"], "--key-file": params["api_key_file"], "--model": params["model"]}
    numbers = {"--port": params["port"], "--timeout": params["timeout"]}
    options = [str(part) for pair in (named | numbers).items() for part in pair]
    rc, out, err = module.run_command([sys.executable, "-I", str(program), *options])
    return rc == 0, (out or err).strip().rpartition("\n")[2]


def look(module: AnsibleModule, folder: Path, wanted: Record, state: State | None) -> dict[str, Any]:
    """Whether the proof on record stands."""
    record, verdict = proof_record.stored(folder)
    if not module.params["wanted"]:
        why = "a full proof is asked for"
    elif state is None:
        why = "its container cannot be seen"
    elif Store(Path(module.params["home"])).current() != wanted.release:
        why = "it is not the current release"
    else:
        why = proof_record.doubt(record, verdict, wanted, state)
    said = ""
    if not why:
        given, said = token(module)
        why = "" if given else f"it gives no token: {said}"
    if why or record is None or verdict is None:
        return {"stands": False, "why": why, "msg": f"Release {wanted.release} is proven in full: {why}."}
    count = sum(check.decides for check in verdict.checks)
    lines = (
        f"PROVEN at {record.finished}, and not again now: release {wanted.release}, {count} checks.",
        f"Its container is the one that was proven, started at {record.started}; just now it gave {said}.",
        f"Service  http://{module.params['address']}:{module.params['port']}/v1",
        f"Report   {folder}/report.html",
        "To prove it in full: -e verify_always=true",
    )
    return {"stands": True, "why": "", "msg": "\n".join(lines)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    params = module.params
    folder = Path(params["home"]) / "reports" / params["release"]
    state = container_now(module)
    started = state.started if state else ""
    wanted = Record(params["release"], params["container"], started, params["settings"], "")
    if params["state"] == "read":
        module.exit_json(changed=False, failed=False, started=started, **look(module, folder, wanted, state))
    _, verdict = proof_record.stored(folder)
    good = verdict is not None and verdict.ok and verdict.release == params["release"]
    # A start in the midst of the checks was proven by none of them in full.
    same = bool(started) and started == params["started"]
    if verdict is not None and good and same and not module.check_mode:
        record = Record(params["release"], params["container"], started, params["settings"], verdict.finished)
        try:
            proof_record.keep(folder, record)
        except OSError as error:
            module.fail_json(f"cannot write {folder / proof_record.RECORD}: {error.strerror}")
    module.exit_json(changed=False, failed=False, started=started, recorded=good and same)


if __name__ == "__main__":
    main()
