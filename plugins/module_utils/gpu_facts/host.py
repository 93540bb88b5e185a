"""Facts about GPUs and their driver from /proc and /sys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import Missing, pci_bus_id

_NVIDIA = "0x10de"
_DISPLAY, _BRIDGE = "0x03", "0x0680"
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# Where distributions and NVIDIA's installer put the libraries of the driver.
_LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
)
_FOREIGN = ("nouveau", "nova_core")
# The kernel cuts a process's name to 15 characters.
_FABRIC_MANAGER = "nv-fabricmanager"[:15]


def pci_gpus(root: Path) -> list[dict[str, Any]]:
    """NVIDIA's display controllers: ``pci_bus_id``, ``pci_device``; without those given to virtual machines."""
    return [
        {"pci_bus_id": bus, "pci_device": device}
        for bus, kind, device, driver in _nvidia_devices(root)
        if kind.startswith(_DISPLAY) and driver != "vfio-pci"
    ]


def facts(root: Path) -> dict[str, Any]:
    """Versions, modules, NVSwitch, fabric manager and Secure Boot, as values by path."""
    kernel, kind = _kernel_module(root)
    userspace = _userspace(root)
    known = isinstance(kernel, str) and isinstance(userspace, str)
    loaded = _loaded(root)
    return {
        "kernel_module.version": kernel,
        "kernel_module.kind": kind,
        "userspace_version": userspace,
        "versions_agree": kernel == userspace if known else Missing("version_unknown"),
        "modules.nvidia": loaded if isinstance(loaded, Missing) else "nvidia" in loaded,
        "modules.nvidia_uvm": loaded if isinstance(loaded, Missing) else "nvidia_uvm" in loaded,
        "modules.nouveau": loaded if isinstance(loaded, Missing) else "nouveau" in loaded,
        "modules.nova_core": loaded if isinstance(loaded, Missing) else "nova_core" in loaded,
        "nvswitches": sum(kind.startswith(_BRIDGE) for _, kind, _, _ in _nvidia_devices(root)),
        "fabric_manager_running": _running(root, _FABRIC_MANAGER),
        "secure_boot": _secure_boot(root),
    }


def foreign_drivers(host: dict[str, Any]) -> list[str]:
    """Loaded modules that use the GPUs instead of the NVIDIA driver."""
    return [name for name in _FOREIGN if host[f"modules.{name}"] is True]


def parse_driver_version(text: str) -> tuple[str, str] | None:
    """Version and kind (``open`` or ``proprietary``) of /proc/driver/nvidia/version, or None."""
    match = re.search(r"^NVRM version:(.*?)Kernel Module(?: for \S+)?\s+([0-9]+(?:\.[0-9]+)+)", text, re.MULTILINE)
    return (match[2], "open" if " Open " in match[1] else "proprietary") if match else None


def _kernel_module(root: Path) -> tuple[Any, Any]:
    text = _text(root / "proc/driver/nvidia/version")
    if text is None:
        return Missing("module_not_loaded"), Missing("module_not_loaded")
    return parse_driver_version(text) or (Missing("unreadable"), Missing("unreadable"))


def _userspace(root: Path) -> Any:
    """The version that the file behind libnvidia-ml.so.1 is named after."""
    for folder in _LIBRARIES:
        link = root / folder / "libnvidia-ml.so.1"
        try:
            match = re.fullmatch(r"libnvidia-ml\.so\.([0-9]+(?:\.[0-9]+)+)", link.resolve().name)
        except (OSError, RuntimeError):
            continue
        if match and link.exists():
            return match[1]
    return Missing("library_not_found")


def _loaded(root: Path) -> Any:
    text = _text(root / "proc/modules")
    if text is None:
        return Missing("proc_modules_unreadable")
    return {line.split(" ", 1)[0] for line in text.splitlines()}


def _running(root: Path, name: str) -> bool:
    return any((_text(path) or "").strip() == name for path in root.glob("proc/[0-9]*/comm"))


def _secure_boot(root: Path) -> Any:
    """Without EFI there is no Secure Boot; with EFI the variable's last byte says."""
    if not (root / "sys/firmware/efi").is_dir():
        return False
    try:
        value = (root / _SECURE_BOOT).read_bytes()
    except PermissionError:
        return Missing("no_permission")
    except OSError:
        return Missing("efi_variable_not_found")
    return value[-1] == 1 if value else Missing("unreadable")


def _nvidia_devices(root: Path) -> list[tuple[str, str, str, str]]:
    """Address, class, device and bound driver of NVIDIA's PCI devices."""
    found = []
    for folder in sorted(root.glob("sys/bus/pci/devices/*")):
        vendor, kind, device = (_text(folder / name) for name in ("vendor", "class", "device"))
        try:
            bus = pci_bus_id(folder.name)
        except ValueError:
            continue
        if vendor and kind and device and vendor.strip() == _NVIDIA:
            driver = folder / "driver"
            bound = driver.readlink().name if driver.is_symlink() else ""
            found.append((bus, kind.strip(), device.strip().removeprefix("0x").lower(), bound))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
