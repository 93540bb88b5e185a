"""Xid errors: what the NVIDIA driver writes to the kernel log when a GPU misbehaves."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import pci_bus_id

# Tried in this order; either may be missing, or closed to the user.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("journalctl", "--dmesg", "--boot", "--output=short-iso", "--no-pager", "--quiet"),
    ("dmesg", "--time-format=iso"),
)

# What the usual numbers mean, and for most of them whom to suspect.
MEANINGS = {
    8: "the GPU stopped processing: application or hardware",
    13: "exception in the graphics engine, often an index out of bounds: application, seldom hardware",
    31: "memory access to an invalid address: application, or the driver",
    32: "invalid or corrupted command stream: driver, PCIe or hardware",
    38: "driver firmware error: driver",
    43: "a program's channel was stopped after a fault of its own: application",
    45: "a program's channels were cleaned up, after an earlier Xid or because it was killed",
    48: "double-bit memory error that ECC cannot correct: hardware; reset the GPU",
    56: "display engine error: driver or hardware",
    57: "error in programming the video memory interface: hardware or driver",
    61: "internal breakpoint of the microcontroller: driver; reset the GPU",
    62: "internal halt of the microcontroller: hardware, driver or heat; reset the GPU",
    63: "a memory page or row is marked for replacement: reset the GPU at the next chance",
    64: "marking a memory page or row for replacement failed: hardware; reset the GPU",
    68: "exception in the video decoder: application or driver",
    69: "exception in the graphics engine's class: application or driver",
    74: "NVLink error: a bridge, cable, switch or GPU",
    79: "the GPU has fallen off the PCI bus: power, heat, seating, PCIe or hardware; power the host off and on",
    92: "many single-bit memory errors: hardware",
    94: "memory error that ECC cannot correct, contained to one program: restart it, reset the GPU at the next chance",
    95: "memory error that ECC cannot correct and that was not contained: reset the GPU before any further use",
    109: "time-out of a context switch: application or driver",
    119: "the GPU's system processor (GSP) does not answer: driver firmware; reset the GPU, or power the host off",
    120: "error of the GPU's system processor (GSP): driver firmware; reset the GPU, or power the host off",
    121: "error of the chip-to-chip link (C2C): watch it",
    122: "reading the SPI flash failed: hardware",
    123: "error of the SPI power-management unit: reset the GPU",
    136: "training an NVLink failed: hardware of the link",
    137: "NVLink fault because a peer GPU failed",
    140: "memory error that ECC cannot correct, not recovered: reset the GPU",
    143: "the GPU did not initialise: reset it, else power the host off and on",
    144: "NVLink error, SAW unit",
    145: "NVLink error, RLW unit",
    149: "NVLink error, NETIR unit",
    154: "the driver recommends a recovery action; its text says which",
}
_FALLEN = 79
_MOST = 20
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{5,16})\): ([0-9]{1,5}),?\s*(.*)")
_GPU = re.compile(r"NVRM: The NVIDIA GPU ([0-9a-fA-F:.]{5,16})")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T\S+")
_UPTIME = re.compile(r"\[\s*([0-9]+\.[0-9]+)\]")


def parse(text: str) -> list[dict[str, Any]]:
    """Xid errors of a kernel log, oldest first.

    A GPU that is lost already when the driver starts is logged without a number over three lines; it counts as 79.
    ``time`` is as logged: ISO 8601, or seconds since the boot; null where the line has neither.
    """
    found = []
    suspect = ""
    for line in text.splitlines():
        if match := _XID.search(line):
            found.append(_xid(line, match[1], int(match[2]), match[3]))
        elif match := _GPU.search(line):
            suspect = match[1]
        elif suspect and "fallen off the bus" in line:
            found.append(_xid(line, suspect, _FALLEN, "GPU has fallen off the bus before the driver started"))
            suspect = ""
    return [xid for xid in found if xid["pci_bus_id"]]


def latest(xids: list[dict[str, Any]], bus: str | None) -> list[dict[str, Any]]:
    """The last few of the GPU at that address."""
    return [xid for xid in xids if xid["pci_bus_id"] == bus][-_MOST:]


def _xid(line: str, address: str, number: int, text: str) -> dict[str, Any]:
    try:
        bus = pci_bus_id(address)
    except ValueError:
        bus = None
    if time := _ISO.match(line.strip()):
        at: str | None = time[0]
    else:
        at = uptime[1] if (uptime := _UPTIME.match(line.strip())) else None
    return {"code": number, "meaning": MEANINGS.get(number), "pci_bus_id": bus, "time": at, "text": text.strip()[:300]}
