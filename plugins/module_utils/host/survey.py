"""What a host has before a deployment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import host
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import nest
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import Machine, read_gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner import gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.cpu import memory_of_host

#: Runs a program; gives its output, or None where it is not there or fails.
Ask = Callable[[Sequence[str]], str | None]


def survey(home: Path, ask: Ask, machine: Machine) -> dict[str, Any]:
    """What is there: memory, GPUs by name, versions of driver, Docker and toolkit, the current release."""
    current = home / "current"
    return {
        "memory_gib": round(memory_of_host((machine.root / "proc/meminfo").read_text(encoding="utf-8")), 1),
        "gpus": [name_of(gpu) for gpu in read_gpus(machine)],
        "driver": nest(host.facts(machine.root))["kernel_module"]["version"],
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


def _version(text: str | None) -> str | None:
    match = re.search(r"\d+(?:\.\d+)+", text or "")
    return match[0] if match else None
