"""The shape of one GPU's facts: the same keys from every source, with a named reason where there is no value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Missing:
    """Placeholder for a value that could not be read.

    Attributes:
        reason: Reason in snake_case, for example ``not_supported`` (by the GPU), ``not_reported`` (by the source),
            ``no_permission``, ``gpu_lost``, ``program_missing``.
    """

    reason: str


# Every value of a GPU by its path; lists (peers, processes, xids) have their own shape.
LEAVES = (
    "index",
    "name",
    "uuid",
    "pci_bus_id",
    "pci_device",
    "memory.total_mib",
    "memory.reserved_mib",
    "memory.used_mib",
    "memory.free_mib",
    "compute_capability",
    "driver_version",
    "cuda_version",
    "pcie.generation",
    "pcie.generation_max",
    "pcie.width",
    "pcie.width_max",
    "nvlink.present",
    "nvlink.links",
    "peers",
    "ecc.mode",
    "ecc.uncorrected_volatile",
    "ecc.uncorrected_aggregate",
    "mig.mode",
    "mig.instances",
    "persistence_mode",
    "fabric_state",
    "processes",
    "xids",
)
_MIB = "_mib"


def gpu_facts(known: Mapping[str, Any], otherwise: str = "not_reported") -> dict[str, Any]:
    """One GPU from values by path; every missing path is null with the reason ``otherwise``.

    Memory is added in GiB (2^30 bytes, two decimals) in addition to the MiB that the source reports.
    """
    return nest({leaf: known.get(leaf, Missing(otherwise)) for leaf in LEAVES})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path as nested data, ``missing`` naming the reason for each null."""
    nested: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        if isinstance(value, Missing):
            missing[path] = value.reason
        place[name] = None if isinstance(value, Missing) else value
        if name.endswith(_MIB):
            place[name.removesuffix(_MIB) + "_gib"] = None if place[name] is None else round(place[name] / 1024, 2)
    return nested | {"missing": missing}


def pci_bus_id(text: str) -> str:
    """A bus address in the kernel's form, such as ``0000:01:00.0``, from any form that drivers and logs use.

    Raises ValueError. Logs leave the function out: it is 0 then.
    """
    match = re.fullmatch(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?", text.strip().lower())
    if not match:
        raise ValueError(text)
    domain, bus, device = (int(part or "0", 16) for part in match.groups()[:3])
    return f"{domain:04x}:{bus:02x}:{device:02x}.{match[4] or 0}"
