"""State of a host after role nvidia_driver changed the driver version."""

from __future__ import annotations

import pytest

VERSION = "580.95.05"
PACKAGES = ["nvidia-driver-cuda", "libcuda1", "libnvidia-ml1", "nvidia-kernel-open-dkms", "nvidia-persistenced"]


@pytest.fixture(scope="module")
def loaded(host):
    """Whether the kernel module is loaded, as molecule.yml describes both hosts; without it the host needs a reboot."""
    expected = host.check_output("hostname") == "nvidia-driver-bookworm"
    assert host.file("/proc/driver/nvidia/version").exists == expected
    return expected


def lines(host, command):
    return host.check_output(command).splitlines()


@pytest.mark.parametrize("name", PACKAGES)
def test_package_has_the_version(host, name):
    assert host.package(name).version == f"{VERSION}-1"


def test_everything_of_the_driver_is_held_and_nothing_else(host):
    installed = lines(host, "dpkg-query -W -f '${Package} ${Version}\\n'")
    expected = {name for name, version in map(str.split, installed) if version == f"{VERSION}-1"}
    assert set(PACKAGES) < expected
    assert set(lines(host, "apt-mark showhold")) == expected


def test_pin_wins_over_a_newer_branch(host):
    policy = host.check_output("apt-cache policy nvidia-driver-cuda")
    assert f"Candidate: {VERSION}-1" in policy
    assert "590.48.01-1" in policy


def test_an_upgrade_leaves_the_driver_alone(host):
    planned = host.check_output("apt-get --simulate dist-upgrade")
    assert "nvidia" not in "".join(line for line in planned.splitlines() if line.startswith("Inst"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/apt/preferences.d/nvidia-driver",
        "/etc/apt/apt.conf.d/52nvidia-driver",
        "/etc/apt/sources.list.d/nvidia-driver.sources",
        "/etc/modprobe.d/nvidia-driver.conf",
    ],
)
def test_file_is_world_readable_and_owned_by_root(host, path):
    file = host.file(path)
    assert (file.user, file.group, oct(file.mode)) == ("root", "root", "0o644")


def test_unattended_upgrades_read_the_blacklist(host):
    listed = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"^nvidia-kernel";' in listed
    assert '"^libcuda1$";' in listed


def test_repository_trusts_its_own_key_only(host):
    sources = host.file("/etc/apt/sources.list.d/nvidia-driver.sources").content_string
    assert "Signed-By: /etc/apt/keyrings/nvidia-driver" in sources
    assert not host.run("ls -A /etc/apt/trusted.gpg.d | grep -i nvidia").stdout


def test_other_drivers_are_blacklisted_also_in_the_initramfs(host):
    blacklist = host.file("/etc/modprobe.d/nvidia-driver.conf").content_string
    assert {"blacklist nouveau", "options nouveau modeset=0", "blacklist nova_core"} <= set(blacklist.splitlines())
    assert "etc/modprobe.d/nvidia-driver.conf" in host.check_output("lsinitramfs /boot/initrd.img-6.1.0-test")


def test_persistence_daemon(host, loaded):
    service = host.service("nvidia-persistenced")
    assert service.is_enabled
    assert service.is_running == loaded


def test_fabric_manager_only_if_requested(host, loaded):
    package = host.package("nvidia-fabricmanager")
    assert package.is_installed == loaded
    if loaded:
        assert package.version == f"{VERSION}-1"
        assert host.service("nvidia-fabricmanager").is_enabled


def test_no_display_software(host):
    assert not host.package("nvidia-driver").is_installed


def test_kernel_and_nvml_agree(host, loaded):
    answer = host.run("nvidia-smi -q -x")
    assert (answer.rc == 0) == loaded
    assert (f"<driver_version>{VERSION}<" in answer.stdout) == loaded
