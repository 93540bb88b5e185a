"""Debian's own driver, installed by role nvidia_driver: libraries and DKMS modules of the same version."""

from __future__ import annotations

import re

import pytest

#: Debian's names of the driver's modules.
MODULES = ["current-open", "current-open-modeset", "current-open-drm", "current-open-uvm", "current-open-peermem"]


@pytest.fixture(scope="module")
def version(host):
    return host.package("nvidia-open-kernel-dkms").version.partition("-")[0]


@pytest.fixture(scope="module")
def kernel(host):
    """Release of the kernel that has headers."""
    (name,) = host.check_output("ls /lib/modules").split()
    return name


def test_libraries_and_module_have_one_version(host, version):
    for name in ("nvidia-smi", "libcuda1", "libnvidia-ml1", "nvidia-driver-bin"):
        assert host.package(name).version.partition("-")[0] == version


def test_a_newest_version_without_a_module_is_not_installed(host, version):
    newest = host.check_output("apt-cache madison nvidia-smi").splitlines()[0].split("|")[1].strip()
    modules = host.check_output("apt-cache madison nvidia-open-kernel-dkms")
    assert newest.startswith(version) or newest not in modules


def test_dkms_reports_the_module_as_installed(host, version, kernel):
    status = host.check_output("dkms status")
    assert re.search(rf"nvidia-current-open.*{re.escape(version)}.*{re.escape(kernel)}.*: installed", status), status


@pytest.mark.parametrize("name", MODULES)
def test_module_is_built_for_that_kernel(host, version, kernel, name):
    file = f"/lib/modules/{kernel}/updates/dkms/nvidia-{name}.ko"
    assert host.check_output("modinfo --field version %s", file) == version
    assert host.check_output("modinfo --field vermagic %s", file).split()[0] == kernel


def test_module_is_the_open_one(host, kernel):
    file = f"/lib/modules/{kernel}/updates/dkms/nvidia-current-open.ko"
    assert host.check_output("modinfo --field license %s", file) == "Dual MIT/GPL"


def test_modprobe_nvidia_resolves_to_the_module(host, kernel):
    # Debian's modprobe configuration maps "nvidia", the name that the role and the driver use.
    assert "nvidia-current-open" in host.check_output("modprobe --set-version %s --show-depends nvidia", kernel)


def test_everything_is_held(host):
    held = set(host.check_output("apt-mark showhold").split())
    assert {"nvidia-smi", "libcuda1", "nvidia-open-kernel-dkms", "firmware-nvidia-gsp"} <= held


def test_an_upgrade_leaves_the_driver_alone(host):
    planned = host.check_output("apt-get --simulate dist-upgrade").splitlines()
    assert not [line for line in planned if line.startswith("Inst") and "nvidia" in line]


def test_persistence_daemon_starts_with_the_next_boot(host):
    assert host.service("nvidia-persistenced").is_enabled
