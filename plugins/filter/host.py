"""Filters that the host roles use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError


def pip_arguments(base: str, index_url: str, wheels: str) -> str:
    """Arguments of pip for an index of one's own, or for a folder of wheels without any network.

    Args:
        base: Arguments to begin with.
        index_url: Package index; empty leaves pip's own settings alone.
        wheels: Folder of wheels; when set, no index is asked and index_url is not used.

    Returns:
        One string of arguments, as ansible.builtin.pip's ``extra_args`` takes it.
    """
    if wheels:
        return f"{base} --no-index --find-links={wheels}".lstrip()
    if index_url:
        return f"{base} --index-url={index_url}".lstrip()
    return base


def for_system(table: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a table says for a host's system: the entries of its family, distribution and version, in this order.

    Args:
        table: Settings by ``os_family``, ``distribution`` or ``distribution_majorversion``, such as ``Debian_12``;
            mappings inside are merged, later entries win.
        facts: The host's ``ansible_facts``.

    Raises:
        AnsibleFilterError: ``unknown_system``.
    """
    name = str(facts["distribution"])
    names = [str(facts["os_family"]), name, f"{name}_{facts['distribution_major_version']}"]
    entries = [table[key] for key in dict.fromkeys(names) if key in table]
    if not entries:
        raise AnsibleFilterError(
            f"[unknown_system] This host runs {names[-1]}; known are {', '.join(table)}. "
            "Fix: use one of these, or add an entry to the table in the role's vars/main.yml."
        )
    result: dict[str, Any] = {}
    for entry in entries:
        for key, value in entry.items():
            inner = result.get(key)
            result[key] = (
                {**(inner if isinstance(inner, Mapping) else {}), **value} if isinstance(value, Mapping) else value
            )
    return result


def package_specs(packages: Sequence[str], version: str, versioned: Collection[str], manager: str) -> list[str]:
    """Packages as a package manager takes them, those in `versioned` with their version.

    Args:
        packages: Names.
        version: As the package manager writes it, ``*`` for any rest; empty leaves the choice to it.
        versioned: Names that carry that version.
        manager: ``apt``, or one of the dnf family.
    """
    sign = "=" if manager == "apt" else "-"
    return [f"{name}{sign}{version}" if version and name in versioned else name for name in packages]


def key_fingerprints(listing: str) -> list[str]:
    """Fingerprints of the primary keys that ``gpg --show-keys --with-colons`` lists."""
    found, primary = [], False
    for line in listing.splitlines():
        fields = line.split(":")
        if fields[0] in ("pub", "sub"):
            primary = fields[0] == "pub"
        elif fields[0] == "fpr" and primary:
            found.append(fields[9])
            primary = False
    return found


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {
            "for_system": for_system,
            "key_fingerprints": key_fingerprints,
            "package_specs": package_specs,
            "pip_arguments": pip_arguments,
        }
