"""What a host has before a deployment, and the table of what a deployment will do to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.columns import columns
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import read as gpu_facts
from ansible_collections.inference.vllm.plugins.module_utils.planner import gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.cpu import memory_of_host

_MIB_OF_GIB = 1024

#: Runs a program; gives its output, or None where it is not there or fails.
Ask = Callable[[Sequence[str]], str | None]

HEADER = ("HOST", "SYSTEM", "MEMORY", "DISK", "GPUS", "DRIVER", "DOCKER", "TOOLKIT", "MODEL", "SERVICE")


def survey(home: Path, ask: Ask, machine: gpu_facts.Machine) -> dict[str, Any]:
    """What is there: memory, GPUs by name, versions of driver, Docker and toolkit, the current release."""
    found = gpu_facts.read(machine)
    current = home / "current"
    return {
        "memory_gib": round(memory_of_host((machine.root / "proc/meminfo").read_text(encoding="utf-8")), 1),
        "gpus": [name_of(gpu) for gpu in found["gpus"]],
        "driver": found["host"]["kernel_module"]["version"],
        "docker": _version(ask(["docker", "version", "--format", "{{.Server.Version}}"])),
        "toolkit": _version(ask(["nvidia-ctk", "--version"])),
        "release": current.resolve().name if current.is_symlink() else None,
    }


def name_of(gpu: Mapping[str, Any]) -> str:
    """A GPU's name: the driver's, the table's where only the PCI bus shows it, or its PCI device."""
    if gpu["name"]:
        return str(gpu["name"]).removeprefix("NVIDIA ").removeprefix("GeForce ")
    row = gpus.find_pci(gpu["pci_device"] or "")
    return row.name if row else f"PCI {gpu['pci_device']}"


def table(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is on each host and what a deployment will do to it, as lines of text.

    Args:
        hosts: One mapping a host: ``name``, ``system``, ``accelerator`` (``nvidia`` or ``cpu``), ``model``,
            ``weights_gib``, ``free_gib`` and ``found``, what :func:`survey` returns.
    """
    return columns([HEADER, *map(_row, hosts)])


def _row(host: Mapping[str, Any]) -> tuple[str, ...]:
    found = host["found"]
    nvidia = host["accelerator"] == "nvidia"
    return (
        host["name"],
        host["system"],
        f"{found['memory_gib']:.0f} GiB",
        f"{host['free_gib']:.0f} GiB free",
        _gpus(found["gpus"]) if nvidia else "not used",
        _kept(found["driver"]) if nvidia else "-",
        _kept(found["docker"]),
        _kept(found["toolkit"]) if nvidia else "-",
        f"{host['model']}, {_size(host['weights_gib'])}",
        f"replace {found['release']}" if found["release"] else "first release",
    )


def _gpus(names: Sequence[str]) -> str:
    return ", ".join(f"{count}x {name}" for name, count in Counter(names).items()) or "none yet"


def _kept(version: str | None) -> str:
    return f"{version}, checked" if version else "install"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * _MIB_OF_GIB:.0f} MiB"


def _version(text: str | None) -> str | None:
    match = re.search(r"\d+(?:\.\d+)+", text or "")
    return match[0] if match else None
