"""What role nvidia_driver makes of Debian's own driver: one version of libraries and modules, built by DKMS."""

from __future__ import annotations

import re

import pytest

#: Modules that the driver consists of, by the names that Debian gives them.
MODULES = ["current-open", "current-open-modeset", "current-open-drm", "current-open-uvm", "current-open-peermem"]


@pytest.fixture(scope="module")
def version(host):
    return host.package("nvidia-open-kernel-dkms").version.partition("-")[0]


@pytest.fixture(scope="module")
def kernel(host):
    """The one that the headers are for."""
    (name,) = host.check_output("ls /lib/modules").split()
    return name


def test_libraries_and_module_have_one_version(host, version):
    for name in ("nvidia-smi", "libcuda1", "libnvidia-ml1", "nvidia-driver-bin"):
        assert host.package(name).version.partition("-")[0] == version


def test_it_is_not_the_newest_where_that_has_no_module(host, version):
    newest = host.check_output("apt-cache madison nvidia-smi").splitlines()[0].split("|")[1].strip()
    modules = host.check_output("apt-cache madison nvidia-open-kernel-dkms")
    assert newest.startswith(version) or newest not in modules


def test_dkms_says_that_it_is_installed(host, version, kernel):
    said = host.check_output("dkms status")
    assert re.search(rf"nvidia-current-open.*{re.escape(version)}.*{re.escape(kernel)}.*: installed", said), said


@pytest.mark.parametrize("name", MODULES)
def test_module_is_built_for_that_kernel(host, version, kernel, name):
    file = f"/lib/modules/{kernel}/updates/dkms/nvidia-{name}.ko"
    assert host.check_output("modinfo --field version %s", file) == version
    assert host.check_output("modinfo --field vermagic %s", file).split()[0] == kernel


def test_module_is_the_open_one(host, kernel):
    file = f"/lib/modules/{kernel}/updates/dkms/nvidia-current-open.ko"
    assert host.check_output("modinfo --field license %s", file) == "Dual MIT/GPL"


def test_modprobe_of_nvidia_takes_it(host, kernel):
    # By Debian's settings of modprobe; role and driver ask for "nvidia".
    assert "nvidia-current-open" in host.check_output("modprobe --set-version %s --show-depends nvidia", kernel)


def test_everything_is_held(host):
    held = set(host.check_output("apt-mark showhold").split())
    assert {"nvidia-smi", "libcuda1", "nvidia-open-kernel-dkms", "firmware-nvidia-gsp"} <= held


def test_an_upgrade_leaves_the_driver_alone(host):
    planned = host.check_output("apt-get --simulate dist-upgrade").splitlines()
    assert not [line for line in planned if line.startswith("Inst") and "nvidia" in line]


def test_persistence_daemon_starts_with_the_next_boot(host):
    assert host.service("nvidia-persistenced").is_enabled
