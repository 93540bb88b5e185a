#!/usr/bin/python
"""Module: write the gateway's configuration, if HAProxy accepts it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_config
short_description: Write the gateway's configuration, if HAProxy accepts it
description:
  - Writes C(haproxy.cfg), the digests of the keys, the engine's key and the certificate into a new folder below
    O(path), has it checked by O(check), and only then points O(path)C(/current) to it. What is refused changes nothing.
  - All files are readable by O(owner) alone. The engine's key and the private key are read on the host and stay there.
options:
  path:
    description: Absolute path of the gateway's folder.
    type: path
    required: true
  config:
    description: Text of C(haproxy.cfg). Holds no secret.
    type: str
    required: true
  keys_map:
    description: Lines of a key's SHA-256 and the name of who has the key.
    type: str
    required: true
  engine_key_file:
    description: File on the host with the key that the engine wants.
    type: path
    required: true
  certificate:
    description: File on the host with the certificate and its chain in PEM. Without it there is no TLS.
    type: path
  private_key:
    description: File on the host with the certificate's private key in PEM, without a passphrase.
    type: path
  check:
    description: Command that succeeds if C(@CONFIG@), which becomes the path of the new file, is good.
    type: list
    elements: str
    required: true
  socket:
    description:
      - Admin socket of the gateway. Where one answers that runs with another set than the current one, the result is
        changed, so that a reload that an interrupted run owes is made up for.
    type: path
  owner:
    description: Numeric user that reads the files.
    type: int
    default: 0
  group:
    description: Numeric group of the files.
    type: int
    default: 0
attributes:
  check_mode:
    description: Says what would change. A new configuration is not checked, and a file that is missing is not refused,
      for the steps before may be what would make them good.
    support: full
  diff_mode:
    description: Shows the configuration as text, and secrets by the first digits of their digest.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the configuration
  inference.vllm.gateway_config:
    path: /etc/vllm-gateway
    config: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
    keys_map: "{{ design.keys_map }}"
    engine_key_file: /opt/vllm/secrets/api_key
    certificate: /etc/ssl/vllm.pem
    private_key: /etc/ssl/private/vllm.key
    check: [/usr/sbin/haproxy, -c, -f, "@CONFIG@"]
    socket: /run/vllm-gateway/admin.sock
  notify: Reload the gateway
"""

RETURN = r"""
config:
  description: Path of the file that HAProxy reads.
  returned: always
  type: str
names:
  description: Names that have a key, sorted.
  returned: always
  type: list
  elements: str
fingerprint:
  description: SHA-256 of the certificate, empty without TLS.
  returned: always
  type: str
"""

from collections.abc import Mapping
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.gateway import design as gateway
from ansible_collections.inference.vllm.plugins.module_utils.gateway.runtime import Runtime
from ansible_collections.inference.vllm.plugins.module_utils.gateway.store import Store, assemble, fingerprint, shown
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError


def _read(module: AnsibleModule, option: str) -> str | None:
    """Text of the file that an option names, None where in check mode it does not exist yet."""
    path = Path(module.params[option])
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if module.check_mode:
            return None
        message = f"{option}: {path} does not exist on the host."
        fix = "Run role vllm_service first." if option == "engine_key_file" else "Put it there."
        raise RefusalError(Refusal("missing_input", message, fix)) from error
    except UnicodeDecodeError as error:
        raise RefusalError(Refusal("bad_input", f"{option}: {path} is no text.", "Give it in PEM.")) from error


def _is_outdated(module: AnsibleModule, files: Mapping[str, str]) -> bool:
    """Whether a gateway runs, and with something else."""
    if not module.params["socket"]:
        return False
    running = Runtime(Path(module.params["socket"])).description()
    return running is not None and f"description {running}\n" not in files[gateway.CONFIG_FILE]


def _write(module: AnsibleModule, store: Store) -> dict[str, object]:
    params = module.params
    names = ["engine_key_file"] + (["certificate", "private_key"] if params["certificate"] else [])
    texts = {name: _read(module, name) for name in names}
    result = {"config": str(store.link / gateway.CONFIG_FILE), "fingerprint": ""}
    if texts.get("certificate"):
        result["fingerprint"] = fingerprint(str(texts["certificate"]))
    if None in texts.values():
        return {**result, "changed": True}
    files = assemble(
        params["config"],
        params["keys_map"],
        str(texts["engine_key_file"]),
        *(str(texts.get(name, "")) for name in ("certificate", "private_key")),
    )
    changed = not store.holds(files) or _is_outdated(module, files)
    before, after = shown(store.files()), shown(files)
    if not module.check_mode and not store.holds(files):
        store.write(files, params["check"])
    if module._diff and changed:
        result["diff"] = [  # type: ignore[assignment]
            {
                "before_header": f"current/{name}",
                "after_header": f"new/{name}",
                "before": before.get(name, ""),
                "after": after.get(name, ""),
            }
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
    return {**result, "changed": changed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "config": {"type": "str", "required": True},
            "keys_map": {"type": "str", "required": True, "no_log": False},
            "engine_key_file": {"type": "path", "required": True, "no_log": False},
            "certificate": {"type": "path"},
            "private_key": {"type": "path", "no_log": False},
            "check": {"type": "list", "elements": "str", "required": True},
            "socket": {"type": "path"},
            "owner": {"type": "int", "default": 0},
            "group": {"type": "int", "default": 0},
        },
        required_together=[("certificate", "private_key")],
        supports_check_mode=True,
    )
    params = module.params
    store = Store(Path(params["path"]), params["owner"], params["group"])
    try:
        result = _write(module, store)
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), refusals=refusals, failed=True)
    except OSError as error:
        module.fail_json(
            msg=f"[gateway_not_written] {params['path']}: {error}. The old configuration stays. "
            "Fix: free space or correct the permissions there, then run again.",
            failed=True,
        )
    names = sorted(set(gateway.names_in(params["keys_map"]).values()))
    module.exit_json(**{**result, "names": names, "failed": False})


if __name__ == "__main__":
    main()
