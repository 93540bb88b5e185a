"""Digest of the settings and the code of the checks that make a proof."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import CHECKS

DOCUMENTATION = r"""
name: proof_settings
short_description: Digest of the settings and the code of the checks for the current host
version_added: 0.1.0
description:
  - Changes when a variable of a check is set in the inventory or on the command line, when a default of a check
    changes, or when the code of the collection changes. A proof with another digest is not valid any more.
options:
  _terms:
    description: Folder that holds the roles.
    required: true
"""

EXAMPLES = r"""
- name: Show the digest
  ansible.builtin.debug:
    msg: "{{ lookup('inference.vllm.proof_settings', '/srv/deploy/roles') }}"
"""

RETURN = r"""
_list:
  description: One digest.
  type: list
  elements: str
"""

#: Roles whose checks make a proof, and the role with the settings that they share.
ROLES = (*(check.role for check in CHECKS), "vllm_check")
PREFIXES = (*(f"{role}_" for role in ROLES), "verify_benchmark")
PLUGINS = Path(__file__).parents[1]


def digest(settings: dict[str, Any], files: Iterable[Path]) -> str:
    """SHA-256 of settings and of the content of files, whatever their order; as hexadecimal digits."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for content in sorted(hashlib.sha256(path.read_bytes()).digest() for path in files):
        total.update(content)
    return total.hexdigest()


def sources(roles: Path) -> list[Path]:
    """The files that define a proof."""
    code = [path for folder in ("modules", "module_utils") for path in (PLUGINS / folder).rglob("*.py")]
    return code + [path for role in (*ROLES, "_verdict") for path in (roles / role).glob("[dvt]*/*.yml")]


class LookupModule(LookupBase):
    """Reads the files, and resolves the variables."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        """Return the digest for the current host."""
        if variables is None or len(terms) != 1 or not Path(terms[0]).is_dir():
            msg = "inference.vllm.proof_settings takes the folder that holds the roles"
            raise AnsibleError(msg)
        given = variables["hostvars"][variables["inventory_hostname"]]
        names = sorted(name for name in given if name.startswith(PREFIXES))
        return [digest({name: self._templar.template(variables[name]) for name in names}, sources(Path(terms[0])))]
