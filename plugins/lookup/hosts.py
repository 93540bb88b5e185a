"""Lookup of the hosts of a play, which refuses a controller that cannot work and a play without hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: hosts
short_description: Hosts of a play, or why it cannot run
version_added: 0.1.0
description:
  - Gives the keyword C(hosts) of a play its value. Ansible resolves it before the play touches a host.
  - Fails where ansible-core or a collection that this one needs is missing or too old, and where the play would have
    no host. Without it, Ansible skips a play that has no hosts and ends with success.
  - Does not fail with C(--syntax-check), C(--list-hosts), C(--list-tasks) and C(--list-tags).
options:
  group:
    description:
      - Group of the hosts. Ansible resolves C(hosts) before it reads the variables of the inventory, so that
        O(group) comes from the command line or from C(vars) of C(import_playbook).
      - V(localhost) needs no inventory.
    type: str
    default: vllm
    vars:
      - name: vllm_group
  first:
    description: Only the first of the hosts that C(--limit) leaves.
    type: bool
    default: false
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Show the API's address
  hosts: "{{ lookup('inference.vllm.hosts') }}"
  tasks: []

- name: Deploy the hosts of group gpu_servers
  ansible.builtin.import_playbook: inference.vllm.deploy
  vars:
    vllm_group: gpu_servers
"""

RETURN = r"""
_raw:
  description: The group, or the name of its first host.
  type: list
  elements: str
"""

from typing import Any

from ansible import context
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.release import __version__ as ansible_version

from ansible_collections.inference.vllm.plugins.module_utils import collection, controller
from ansible_collections.inference.vllm.plugins.module_utils.refusal import join

LISTINGS = ("syntax", "listhosts", "listtasks", "listtags")


class LookupModule(LookupBase):
    """Checks the controller and the inventory with `controller`."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return one name for keyword ``hosts``; raises AnsibleLookupError with the refusals as its text."""
        self.set_options(var_options=variables, direct=kwargs)
        group = str(self._templar.template(self.get_option("group")))
        groups, left = (variables or {}).get("groups", {}), (variables or {}).get("ansible_play_hosts_all", [])
        if not any(context.CLIARGS.get(listing) for listing in LISTINGS):
            refusals = controller.refusals(collection.read(), ansible_version, collection.version_of)
            none = None if group == "localhost" else controller.no_hosts(group, groups, left)
            if refusals or none:
                raise AnsibleLookupError(join([*refusals, *filter(None, [none])]))
        if self.get_option("first"):
            return [host for host in groups.get(group, []) if host in left][:1] or [group]
        return [group]
