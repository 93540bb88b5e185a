"""What a host's files and package manager say about its NVIDIA driver: pure readers of their formats."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Names of packages that may belong to a driver.
_RELATED = re.compile(r"nvidia|^libcuda|^cuda-drivers")
_PINNED = re.compile(r"(?<![\d.])(\d{3}\.\d{1,3}(?:\.\d{1,3})?)(?=[-*\s]|$)")


@dataclass(frozen=True)
class Packages:
    """Packages of the driver on a host.

    Attributes:
        installed: Name and version of those that are installed.
        held: Names of those on hold.
    """

    installed: dict[str, str]
    held: list[str]


def from_dpkg(output: str) -> Packages:
    """From ``dpkg-query --show`` with the format ``${db:Status-Status} ${db:Status-Want} ${Package} ${Version}``."""
    installed, held = {}, []
    for line in output.splitlines():
        fields = line.split()
        if len(fields) != len(("status", "want", "name", "version")) or not _RELATED.search(fields[2]):
            continue
        status, want, name, version = fields
        if status not in ("not-installed", "config-files"):
            installed[name] = version
            if want == "hold":
                held.append(name)
    return Packages(installed, sorted(held))


def from_rpm(output: str) -> Packages:
    """From ``rpm --query --all`` with the format ``%{NAME} %{EPOCH}:%{VERSION}-%{RELEASE}``."""
    installed = {}
    for line in output.splitlines():
        name, _, version = line.partition(" ")
        if version and _RELATED.search(name):
            installed[name] = version.removeprefix("(none):")
    return Packages(installed, [])


def candidates(policy: str) -> set[str]:
    """Packages that apt could install or has installed, from what ``apt-cache policy`` printed in English."""
    return set(re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (?!\(none\))", policy, re.MULTILINE))


def unfinished(audit: str) -> list[str]:
    """Packages that ``dpkg --audit`` names as half installed or not configured."""
    return sorted({match[1] for match in re.finditer(r"^ (\S+)", audit, re.MULTILINE)})


def pinned_version(text: str, manager: str) -> str:
    """Driver version in the role's apt preferences, or in dnf's list of version locks; empty where there is none."""
    wanted = "Pin: version" if manager == "apt" else "nvidia-driver-cuda-"
    for line in text.splitlines():
        found = _PINNED.search(line) if wanted in line and not line.startswith("#") else None
        if found:
            return found[1]
    return ""


def gpu_containers(inspected: str) -> list[str]:
    """Names of the containers that use NVIDIA GPUs, from what ``docker inspect`` printed; sorted."""
    return sorted(str(entry["Name"]).lstrip("/") for entry in json.loads(inspected or "[]") if _uses_gpu(entry))


def _uses_gpu(entry: dict[str, Any]) -> bool:
    config = entry.get("HostConfig") or {}
    if config.get("Runtime") == "nvidia":
        return True
    for request in config.get("DeviceRequests") or []:
        capabilities = {name for group in request.get("Capabilities") or [] for name in group}
        devices = " ".join(request.get("DeviceIDs") or [])
        if request.get("Driver") == "nvidia" or "gpu" in capabilities or "nvidia.com/gpu" in devices:
            return True
    paths: Iterable[str] = (str(device.get("PathInContainer", "")) for device in config.get("Devices") or [])
    return any(path.startswith("/dev/nvidia") for path in paths)
