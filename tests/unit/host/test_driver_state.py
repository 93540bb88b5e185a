"""Readers of what dpkg, rpm, apt and Docker print, on captured output, and module driver_state on a folder as root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.host import driver_state
from ansible_collections.inference.vllm.plugins.modules import driver_info as module
from support.modules import run_module

DPKG = """\
installed install adduser 3.134
installed hold nvidia-driver-cuda 580.126.20-1
half-configured install nvidia-modprobe 580.126.20-1
installed install libcuda1 580.126.20-1
config-files deinstall nvidia-smi 535.261.03-1~deb12u1
not-installed unknown nvidia-kernel-dkms
"""
AUDIT = """\
The following packages have been unpacked but not yet configured.
They must be configured using dpkg --configure or the configure
menu option in dselect for them to work:
 nvidia-modprobe      utility to load NVIDIA kernel modules and create device
 libc6:amd64          GNU C Library: Shared libraries

"""
RPM = """\
bash (none):5.1.8-9.el9
nvidia-driver-cuda 3:580.126.20-1.el9
nvidia-container-toolkit (none):1.18.1-1
"""
PREFERENCES = """\
# Written by Ansible, role nvidia_driver: kernel module, libraries and tools of the driver must have the same version.
Package: nvidia-driver* libcuda1
Pin: version 580.126.20*
Pin-Priority: 1001
"""
LOCKS = """\
# Added lock on Tue Nov 25 10:00:00 2026
kernel-core-0:5.14.0-611.5.1.el9_7.*
nvidia-driver-cuda-*:580.126.20-*
"""


def test_dpkg() -> None:
    found = driver_state.from_dpkg(DPKG)
    assert found.installed == {
        "nvidia-driver-cuda": "580.126.20-1",
        "nvidia-modprobe": "580.126.20-1",
        "libcuda1": "580.126.20-1",
    }
    assert found.held == ["nvidia-driver-cuda"]


def test_rpm() -> None:
    assert driver_state.from_rpm(RPM).installed == {
        "nvidia-driver-cuda": "3:580.126.20-1.el9",
        "nvidia-container-toolkit": "1.18.1-1",
    }


def test_audit_names_what_is_unfinished() -> None:
    assert driver_state.unfinished(AUDIT) == ["libc6:amd64", "nvidia-modprobe"]
    assert driver_state.unfinished("") == []


def test_what_apt_could_install() -> None:
    policy = """\
linux-headers-6.1.0-41-amd64:
  Installed: (none)
  Candidate: 6.1.158-1
  Version table:
     6.1.158-1 500
linux-headers-6.1.0-9-amd64:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
    assert driver_state.candidates(policy) == {"linux-headers-6.1.0-41-amd64"}
    assert driver_state.candidates("") == set()


def test_pins() -> None:
    assert driver_state.pinned_version(PREFERENCES, "apt") == "580.126.20"
    assert driver_state.pinned_version(LOCKS, "dnf") == "580.126.20"
    assert driver_state.pinned_version(LOCKS, "apt") == ""
    assert driver_state.pinned_version("", "dnf") == ""


def container(name: str, **config: Any) -> dict[str, Any]:
    return {"Name": f"/{name}", "HostConfig": config}


def test_containers_that_use_gpus() -> None:
    inspected = [
        container("gpus-all", DeviceRequests=[{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]),
        container("cdi", DeviceRequests=[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"], "Capabilities": None}]),
        container("runtime", Runtime="nvidia"),
        container("device", Devices=[{"PathOnHost": "/dev/nvidia0", "PathInContainer": "/dev/nvidia0"}]),
        container("web", Runtime="runc", DeviceRequests=None, Devices=[{"PathInContainer": "/dev/fuse"}]),
    ]
    assert driver_state.gpu_containers(json.dumps(inspected)) == ["cdi", "device", "gpus-all", "runtime"]
    assert driver_state.gpu_containers("") == []


@given(st.text())
def test_readers_survive_anything_and_find_nothing_that_is_not_there(text: str) -> None:
    packages = [driver_state.from_dpkg(text), driver_state.from_rpm(text)]
    found = [word for part in packages for name, version in part.installed.items() for word in (name, version)]
    found += [*driver_state.unfinished(text), driver_state.pinned_version(text, "apt")]
    assert all(word in text for word in found)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with Debian's tools, two of the driver's packages and one container that uses GPUs."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pins").write_text(PREFERENCES)
    (tmp_path / "var/lib/dpkg/updates").mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir(parents=True)
    inspected = json.dumps([container("engine", Runtime="nvidia")])
    program(tmp_path, "dpkg-query", f"cat <<'X'\n{DPKG}X")
    program(tmp_path, "dpkg", f"cat <<'X'\n{AUDIT}X")
    program(tmp_path, "docker", f"case $1 in ps) echo 1a2b;; inspect) [ $2 = 1a2b ] && echo '{inspected}';; esac")
    return tmp_path


def program(root: Path, name: str, script: str) -> None:
    path = root / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)


def run(capsys: pytest.CaptureFixture[str], manager: str = "apt", **more: Any) -> dict[str, Any]:
    return run_module(module, capsys, {"manager": manager, "pin_file": "/etc/pins", **more})


def test_module_reads_all(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "var/lib/dpkg/updates/0001").touch()
    (root / "usr/bin/nvidia-uninstall").touch()
    found = run(capsys)
    assert (found["changed"], found["failed"], found["runfile"]) == (False, False, True)
    assert found["held"] == ["nvidia-driver-cuda"]
    assert found["unfinished"] == ["libc6:amd64", "nvidia-modprobe", "dpkg's journal 0001"]
    assert (found["managed_version"], found["gpu_containers"]) == ("580.126.20", ["engine"])


def test_module_on_a_bare_host(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "bin").iterdir():
        path.unlink()
    (root / "etc/pins").unlink()
    found = run(capsys)
    assert (found["installed"], found["held"], found["unfinished"], found["gpu_containers"]) == ({}, [], [], [])
    assert (found["managed_version"], found["runfile"]) == ("", False)


def test_module_on_rpm(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(root, "rpm", f"cat <<'X'\n{RPM}X")
    (root / "etc/pins").write_text(LOCKS)
    found = run(capsys, "dnf")
    assert found["installed"]["nvidia-driver-cuda"] == "3:580.126.20-1.el9"
    assert found["managed_version"] == "580.126.20"


@pytest.mark.parametrize("listed", [True, False])
def test_packages_that_apt_offers(root: Path, capsys: pytest.CaptureFixture[str], listed: bool) -> None:
    known = "linux-headers-2:\n  Installed: (none)\n  Candidate: 2-1\n"
    program(
        root,
        "apt-cache",
        f'[ "$LC_ALL" = C.UTF-8 ] && [ "$*" = "policy linux-headers-1 linux-headers-2" ] && printf {known!r}',
    )
    lists = root / "var/lib/apt/lists"
    lists.mkdir(parents=True)
    if listed:
        (lists / "mirror_debian_dists_bookworm_main_binary-amd64_Packages.lz4").touch()
    found = run(capsys, packages=["linux-headers-1", "linux-headers-2"])["offered"]
    assert found == {"linux-headers-1": False if listed else None, "linux-headers-2": True}
    assert run(capsys)["offered"] == {}


def test_packages_that_dnf_offers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """case $4 in
kernel-devel-1) exit 0;;
kernel-devel-2) echo "Error: No matching Packages to list" >&2; exit 1;;
*) echo "Cache-only enabled but no cache for 'baseos'" >&2; exit 1;;
esac"""
    program(root, "dnf", f'[ "$1 $2 $3" = "--cacheonly --quiet list" ] || exit 9\n{script}')
    names = ["kernel-devel-1", "kernel-devel-2", "kernel-devel-3"]
    assert run(capsys, "dnf", packages=names)["offered"] == dict(zip(names, (True, False, None), strict=True))
