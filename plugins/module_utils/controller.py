"""Checks of the controller and of the hosts of a play.

Pure functions; lookup ``inference.vllm.hosts`` calls them before the first play connects to a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ansible_collections.inference.vllm.plugins.module_utils.collection import ROOT, Collection
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal


def refusals(this: Collection, ansible_version: str, version_of: Callable[[str], str | None]) -> list[Refusal]:
    """Why this collection cannot run on a controller; empty if it can.

    Args:
        this: This collection.
        ansible_version: Version of ansible-core.
        version_of: Version of an installed collection; None if it is missing, empty if it is unknown.
    """
    found = []
    if not _within(ansible_version, this.requires_ansible):
        found.append(
            Refusal(
                "ansible_unsupported",
                f"ansible-core is {ansible_version}; {this} needs {this.requires_ansible}.",
                f"On the controller: pip install 'ansible-core{this.requires_ansible}'",
            )
        )
    missing = []
    for name, needed in this.dependencies.items():
        version = version_of(name)
        if version is None or (version and not _within(version, needed)):
            missing.append(f"{name} {needed} ({version or 'not installed'})")
    if missing:
        message = f"{this} needs other collections on the controller: {', '.join(missing)}."
        fix = f"ansible-galaxy collection install --upgrade -r {ROOT}/requirements.yml"
        found.append(Refusal("collections_missing", message, fix))
    return found


def no_hosts(group: str, groups: Mapping[str, Sequence[str]], left: Sequence[str]) -> Refusal | None:
    """Why a play has no hosts; None if it has some.

    Args:
        group: Group of the hosts, variable ``vllm_group``.
        groups: The hosts of each group of the inventory.
        left: The hosts within ``--limit``.
    """
    hosts = groups.get(group, ())
    if set(hosts) & set(left):
        return None
    if hosts:
        message = f"--limit excludes all hosts of group {group}: {', '.join(hosts)}."
        return Refusal("no_hosts", message, f"Limit the run to hosts of group {group}.")
    others = [name for name, members in groups.items() if members and name not in ("all", "ungrouped")]
    return Refusal(
        "no_hosts",
        f"The inventory has no host in group {group}" + (f", but in {', '.join(others)}." if others else "."),
        f"Name the inventory with -i. Hosts of another group: -e vllm_group=<group>, or make it a child of {group}.",
    )


def _within(version: str, needed: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(needed).contains(version, prereleases=True)
