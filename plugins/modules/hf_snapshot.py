#!/usr/bin/python
"""Module: fetch and verify the files of one commit of a model."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hf_snapshot
short_description: Fetch a model from a Hugging Face hub and verify every byte
version_added: 0.1.0
description:
  - Makes C(<root>/<org>/<name>/<commit>/) contain exactly the wanted files of one commit of a model repository.
  - A revision is resolved to its commit once. Files are fetched into another folder, verified by size and SHA-256
    (small files by Git's blob id until their SHA-256 is recorded) and moved by one rename, so that the folder is never
    incomplete. After an interruption the next run continues; finished bytes are not fetched again.
  - Later runs compare size, times and inode of each file with those at its verification, read the files that differ,
    and fetch only damaged ones. Unexpected files in the folder are removed.
  - With a lock, or with a commit as O(revision), a complete folder needs no network.
  - Sources are used in this order, until one has the correct file. Other commits of the repository on this host,
    O(folders), O(peers), O(mirrors), O(endpoint). The module does not change a source with a wrong file.
  - Concurrent runs on the same repository wait for each other.
  - An action plugin shows the progress. If the play ends first, the download continues on the host.
requirements:
  - huggingface_hub >= 2.0 in the Python that runs the module
options:
  repository:
    description: Name of the model repository, C(<org>/<name>).
    type: str
    required: true
  revision:
    description:
      - Branch, tag or commit.
      - A branch is resolved at each run. If the hub cannot answer, the commit of the last run is used, with a warning.
    type: str
    default: main
  root:
    description: Absolute path of the folder of all models; created if missing.
    type: path
    required: true
  refresh:
    description:
      - Resolve a branch at the hub. V(false) uses the commit that the last run recorded for it, and fails if there is
        none, or if O(lock) has another one.
    type: bool
    default: true
  folders:
    description:
      - Absolute paths on the host of folders that may have the files, such as a mounted disk. Supported layouts are a
        copy of another host's O(root), a cache of huggingface_hub, and a folder with the files of this model.
      - Without O(lock), a C(lock.json) in one of them defines the files, and no hub is used.
    type: list
    elements: path
    default: []
  peers:
    description:
      - Addresses of the servers (C(peer.py) of role model_weights) of all hosts that share their files, including this
        one, in the same order for all. They are used after O(folders) and before O(mirrors).
      - A hub is used only for files that no other host has, and only if no host before this one in the list is active.
        A host that is dead or slow, or sends wrong content, is no longer used, with a warning.
    type: list
    elements: str
    default: []
  peer_self:
    description: The address of this host, as in O(peers).
    type: str
    default: ''
  peer_token:
    description: The secret that the servers in O(peers) were started with.
    type: str
  peer_patience:
    description:
      - Seconds without progress after which a host in O(peers) counts as inactive, and after which one that sends less
        than 1 MB/s, or than its share of O(max_bytes_per_second), counts as slow.
    type: float
    default: 30
  mirrors:
    description: Addresses of hubs to use before O(endpoint), in this order. The token is not sent to them.
    type: list
    elements: str
    default: []
  endpoint:
    description: Address of the hub; empty for the default of huggingface_hub.
    type: str
    default: ''
  lock:
    description:
      - The accepted files, as the content of a C(lock.json) or its path on the host.
      - Without it, the hub's files are accepted and recorded in C(<root>/<org>/<name>/lock.json).
    type: raw
  lock_only:
    description:
      - Only return the lock of the hub's current files, as RV(lock). Writes nothing on the host; reads small files, for
        which the hub has no SHA-256.
    type: bool
    default: false
  allow_patterns:
    description: Shell patterns of the files to include; empty for all.
    type: list
    elements: str
    default: []
  ignore_patterns:
    description: Shell patterns of files to exclude.
    type: list
    elements: str
    default: []
  allow_pickle:
    description: Also accept formats that can run code when they are loaded (pickles), which are refused by default.
    type: bool
    default: false
  token:
    description: The token, from a vault; instead of O(token_file).
    type: str
  token_file:
    description:
      - Path on the host of a file, readable by its owner only, that holds a token of O(token_endpoint).
      - The module ignores tokens in the environment and in the home folder.
    type: path
  token_endpoint:
    description: The hub that the token belongs to. The token is sent to this scheme, host and port only.
    type: str
    default: https://huggingface.co
  verify:
    description: V(quick) reads only files with changed attributes; V(full) reads every byte.
    type: str
    choices: [quick, full]
    default: quick
  keep:
    description:
      - Number of commits of the repository to keep on disk, including this one, newest first; V(0) keeps all.
      - Unfinished downloads of other commits are also removed.
    type: int
    default: 0
  in_use:
    description:
      - Path of the manifest of the release in use. Its commit is always kept. If the manifest cannot be read, no commit
        is removed.
    type: path
  owner:
    description: Numeric owner of the files; by default the user of the task. The files are readable by all.
    type: int
  group:
    description: Numeric group of the files; by default the group of the task's user.
    type: int
  max_workers:
    description: Number of concurrent downloads.
    type: int
    default: 4
  max_bytes_per_second:
    description: Limit for all sources together; V(0) for no limit.
    type: int
    default: 0
  progress_interval:
    description:
      - Seconds between two progress lines in the play's output, with bytes, rate and time left. V(0) prints none; the
        module then runs within one connection, and ends with it.
    type: float
    default: 5
  timeout:
    description: Seconds without a byte after which a connection is closed.
    type: float
    default: 30
  retries:
    description: Number of consecutive retries without a new byte.
    type: int
    default: 5
  retry_delay:
    description: Seconds before the first retry; doubled for each further one, at most 60.
    type: float
    default: 1
  lock_timeout:
    description: Seconds to wait for another run on the same repository.
    type: float
    default: 3600
author:
  - The project's contributors (!UNKNOWN)
attributes:
  check_mode:
    description: Contacts the hub and reads the disk; fetches and writes nothing.
    support: full
  diff_mode:
    description: Shows the files that are fetched, removed or corrected.
    support: full
"""

EXAMPLES = r"""
- name: Fetch a model at a reviewed lock
  inference.vllm.hf_snapshot:
    repository: Qwen/Qwen3-VL-32B-Instruct-FP8
    root: /opt/vllm/models
    lock: "{{ lookup('ansible.builtin.file', 'catalogue/locks/qwen3-vl-32b-instruct-fp8.json') | from_json }}"

- name: Fetch through a mirror, without PyTorch's pickles
  inference.vllm.hf_snapshot:
    repository: example/model
    root: /opt/vllm/models
    endpoint: https://mirror.example.com
    ignore_patterns: ['*.bin', '*.pt', '*.pth']

- name: Fetch from a disk or an internal mirror, at most 50 MB/s, and keep two commits
  inference.vllm.hf_snapshot:
    repository: example/model
    root: /opt/vllm/models
    lock: /opt/vllm/locks/model.json
    folders: [/mnt/usb/models]
    mirrors: [http://hub.lan:8080]
    max_bytes_per_second: 50000000
    keep: 2
    in_use: /opt/vllm/current/manifest.json

- name: Fetch once for all hosts of the play
  inference.vllm.hf_snapshot:
    repository: example/model
    root: /opt/vllm/models
    lock: "{{ lookup('ansible.builtin.file', 'locks/model.json') | from_json }}"
    peers: [http://10.0.0.1:18081, http://10.0.0.2:18081, http://10.0.0.3:18081]
    peer_self: "http://{{ ansible_facts.default_ipv4.address }}:18081"
    peer_token: "{{ secret_of_this_run }}"

- name: Read every byte again
  inference.vllm.hf_snapshot:
    repository: example/model
    revision: 2b3d1f0c9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c
    root: /opt/vllm/models
    verify: full
"""

RETURN = r"""
commit:
  description: The commit in the folder.
  type: str
  returned: success
  sample: 2b3d1f0c9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c
path:
  description: The folder with the files.
  type: str
  returned: success
  sample: /opt/vllm/models/example/model/2b3d1f0c9e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c
files:
  description: All files of the folder, by path. In check mode the hash is null if only a download can determine it.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: Name below RV(path).
      type: str
    size:
      description: In bytes.
      type: int
    sha256:
      description: Of the content, as hex.
      type: str
lock_file:
  description: The record of these files, in the form of O(lock).
  type: str
  returned: success
bytes_total:
  description: Size of all files together.
  type: int
  returned: success
bytes_to_fetch:
  description: Bytes that were missing on disk before.
  type: int
  returned: success
bytes_fetched:
  description: Bytes received; 0 in check mode.
  type: int
  returned: success
sources:
  description: Received bytes by source, a folder or an address.
  type: dict
  returned: success
fetched:
  description: Files that were fetched, or would be in check mode.
  type: list
  elements: str
  returned: success
removed:
  description: Unexpected files that were removed from the folder.
  type: list
  elements: str
  returned: success
fixed:
  description: Files and folders whose owner or mode was corrected.
  type: list
  elements: str
  returned: success
pruned:
  description: Old commits that were removed, or would be in check mode.
  type: list
  elements: str
  returned: success
lock:
  description: The lock that O(lock_only) requests, in the form of O(lock).
  type: dict
  returned: when O(lock_only) is true
verified:
  description: Whether every file is verified; false in check mode if any file is to be fetched.
  type: bool
  returned: success
locked:
  description: Whether the files were compared with O(lock).
  type: bool
  returned: success
error:
  description: Why it failed.
  type: dict
  returned: failure
  contains:
    code:
      description: Stable name of the failure, such as V(gated), V(lock_mismatch) or V(disk_full).
      type: str
    message:
      description: Description of the failure.
      type: str
    fix:
      description: Suggested action.
      type: str
"""

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError, join
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Retry
from ansible_collections.inference.vllm.plugins.module_utils.weights.peers import Fleet
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import Lock, parse_lock, refuse
from ansible_collections.inference.vllm.plugins.module_utils.weights.snapshot import Outcome, Want, ensure, write_lock
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import read_lock

LEAST = {
    "max_workers": 1,
    "timeout": 0.001,
    "retries": 0,
    "retry_delay": 0,
    "lock_timeout": 0,
    "keep": 0,
    "max_bytes_per_second": 0,
    "progress_interval": 0,
    "peer_patience": 0.001,
}


def read_token(path: str | None, given: str | None = None) -> str | None:
    """The configured token, or the one in a file that only its owner can read.

    Raises:
        RefusalError: The file or the token is not fit. The text never holds the token.
    """
    token, where = given, "token"
    if path:
        token, where = _token_in(path), f"token_file {path}"
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        refuse("token_malformed", f"{where} does not hold one token.", "Write the token alone on one line.")
    return token


def _token_in(path: str) -> str:
    try:
        mode = Path(path).stat().st_mode
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        refuse("token_unreadable", f"token_file {path} cannot be read: {error}.", "Write the token there, mode 0600.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        refuse("token_exposed", f"token_file {path} has mode {stat.S_IMODE(mode):04o}.", f"Run: chmod 0600 {path}")
    return token


def given_lock(value: Any) -> Lock | None:
    """The lock from the option: data, or the path of a file."""
    if not value:
        return None
    if not isinstance(value, str):
        return parse_lock(value, "given as lock")
    return read_lock(Path(value)) or refuse("bad_lock", f"lock {value} does not exist.", "Give an existing file.")


def fleet_of(params: dict[str, Any]) -> Fleet:
    """The hosts that share what they hold, from the options."""
    fleet = Fleet(params["peer_self"], params["peers"], params["peer_token"] or "", params["peer_patience"])
    if params["max_bytes_per_second"]:  # a host is not slow because this one holds back
        share = params["max_bytes_per_second"] / params["max_workers"] / 2
        fleet = replace(fleet, least_rate=min(fleet.least_rate, share))
    return fleet


def check_numbers(params: dict[str, Any]) -> None:
    """Refuse numbers that cannot be meant, by name."""
    for name, least in LEAST.items():
        if params[name] < least:
            refuse("out_of_range", f"{name} is {params[name]}; at least {least} is allowed.", f"Set {name} higher.")


def result_of(outcome: Outcome, want: Want, check_mode: bool) -> dict[str, Any]:
    """The module's return values."""
    gone = [*outcome.removed, *(f"../{commit}" for commit in outcome.pruned)]
    marks = [(paths, mark) for mark, paths in (("+", outcome.fetched), ("-", gone), ("~", outcome.fixed))]
    lines = [f"{mark} {path}\n" for paths, mark in marks for path in paths]
    total = sum(spec.size for spec in outcome.files)
    state = "to fetch" if check_mode else "fetched"
    lock = "Each byte is as the lock says."
    if want.lock is None:
        lock = "There is no lock: what the source gave is recorded in lock.json."
    return {
        "changed": outcome.changed,
        "msg": (
            f"{want.repository} {want.revision} is commit {outcome.commit}: {len(outcome.files)} files, "
            f"{total:,} bytes, {len(outcome.fetched)} files {state}. {lock}"
        ),
        "commit": outcome.commit,
        "path": str(outcome.path),
        "files": [spec.as_dict() for spec in outcome.files],
        "lock_file": str(outcome.path.parent / "lock.json"),
        "bytes_total": total,
        "bytes_to_fetch": outcome.bytes_to_fetch,
        "bytes_fetched": outcome.bytes_fetched,
        "sources": outcome.sources,
        "fetched": list(outcome.fetched),
        "removed": list(outcome.removed),
        "fixed": list(outcome.fixed),
        "pruned": list(outcome.pruned),
        "verified": not (check_mode and outcome.fetched),
        "locked": want.lock is not None,
        "diff": {
            "before_header": str(outcome.path),
            "after_header": str(outcome.path),
            "prepared": "".join(lines),
        },
    }


def lock_result(lock: Lock) -> dict[str, Any]:
    """The return values where only a lock was asked for."""
    total = sum(spec.size for spec in lock.files)
    return {
        "changed": False,
        "msg": f"{lock.repo} {lock.revision} is commit {lock.commit}: {len(lock.files)} files, {total:,} bytes.",
        "commit": lock.commit,
        "lock": lock.file().as_dict(),
    }


def main() -> None:
    """Read the options, do the work, report."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "root": {"type": "path", "required": True},
            "refresh": {"type": "bool", "default": True},
            "folders": {"type": "list", "elements": "path", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
            "peer_self": {"type": "str", "default": ""},
            "peer_token": {"type": "str", "no_log": True},
            "peer_patience": {"type": "float", "default": 30},
            "mirrors": {"type": "list", "elements": "str", "default": []},
            "endpoint": {"type": "str", "default": ""},
            "lock": {"type": "raw"},
            "lock_only": {"type": "bool", "default": False},
            "allow_patterns": {"type": "list", "elements": "str", "default": []},
            "ignore_patterns": {"type": "list", "elements": "str", "default": []},
            "allow_pickle": {"type": "bool", "default": False},
            "token": {"type": "str", "no_log": True},
            "token_file": {"type": "path", "no_log": False},
            "token_endpoint": {"type": "str", "default": "https://huggingface.co", "no_log": False},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "keep": {"type": "int", "default": 0},
            "in_use": {"type": "path"},
            "owner": {"type": "int"},
            "group": {"type": "int"},
            "max_workers": {"type": "int", "default": 4},
            "max_bytes_per_second": {"type": "int", "default": 0},
            "progress_interval": {"type": "float", "default": 5},
            "timeout": {"type": "float", "default": 30},
            "retries": {"type": "int", "default": 5},
            "retry_delay": {"type": "float", "default": 1},
            "lock_timeout": {"type": "float", "default": 3600},
        },
        mutually_exclusive=[("token", "token_file")],
        supports_check_mode=True,
    )
    params = module.params
    try:
        check_numbers(params)
        token = read_token(params["token_file"], params["token"])
        if token:
            module.no_log_values.add(token)  # whatever a library may put into a message
        want = Want(
            repository=params["repository"],
            root=Path(params["root"]),
            revision=params["revision"],
            lock=given_lock(params["lock"]),
            refresh=params["refresh"],
            folders=[Path(folder) for folder in params["folders"]],
            fleet=fleet_of(params),
            mirrors=params["mirrors"],
            endpoint=params["endpoint"],
            token=token,
            token_endpoint=params["token_endpoint"],
            allow=params["allow_patterns"],
            ignore=params["ignore_patterns"],
            allow_pickle=params["allow_pickle"],
            full_check=params["verify"] == "full",
            owner=-1 if params["owner"] is None else params["owner"],
            group=-1 if params["group"] is None else params["group"],
            workers=params["max_workers"],
            bytes_per_second=params["max_bytes_per_second"],
            timeout=params["timeout"],
            retry=Retry(params["retries"], params["retry_delay"]),
            lock_timeout=params["lock_timeout"],
            keep=params["keep"],
            in_use=Path(params["in_use"]) if params["in_use"] else None,
            # The other hosts see by the figures that this one is at work.
            show_progress=params["progress_interval"] > 0 or bool(params["peers"]),
        )
        if params["lock_only"]:
            lock, warnings = write_lock(want)
            result = lock_result(lock)
        else:
            outcome = ensure(want, dry_run=module.check_mode)
            warnings, result = outcome.warnings, result_of(outcome, want, module.check_mode)
    except RefusalError as error:
        module.fail_json(msg=join(error.refusals), error=error.refusals[0].as_dict())
    for warning in warnings:
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
