"""State of a virtual machine after role nvidia_driver and its reboot: kernel, initramfs and loaded modules."""

from __future__ import annotations

import pytest

VERSION = "580.95.05"
#: ID of the current boot.
BOOT = "/proc/sys/kernel/random/boot_id"
#: Module alias of an H100.
GPU = "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i00"


@pytest.fixture(scope="module")
def kernel(host):
    return host.check_output("uname -r")


@pytest.fixture(scope="module")
def initramfs(host, kernel):
    """Folder of the unpacked initramfs."""
    host.check_output("rm -rf /tmp/initramfs && unmkinitramfs /boot/initrd.img-%s /tmp/initramfs", kernel)
    return "/tmp/initramfs"


@pytest.mark.parametrize("name", ["nouveau", "nova_core", "nova_drm"])
def test_the_running_kernels_initramfs_blacklists(host, initramfs, name):
    settings = host.check_output(f"modprobe --config {initramfs}/etc/modprobe.d --showconfig").splitlines()
    assert f"blacklist {name}" in settings


def test_the_machine_booted_with_that_initramfs(host, kernel):
    made = int(host.check_output("stat --format %%Y /boot/initrd.img-%s", kernel))
    booted = int(host.check_output("sed -n 's/^btime //p' /proc/stat"))
    assert made < booted


def test_the_role_rebooted_it(host):
    before, now = (host.file(path).content_string.strip() for path in ("/root/former-boot", BOOT))
    assert before != now


def test_nouveau_was_requested_at_boot_and_not_loaded(host):
    assert host.file("/etc/modules-load.d/gpu.conf").content_string.split() == ["nouveau", "nvidia"]
    assert host.check_output("systemctl is-active systemd-modules-load") == "active"
    assert host.file("/sys/module/nvidia").exists
    assert not host.file("/sys/module/nouveau").exists


def test_a_gpu_on_the_bus_would_not_load_nouveau(host):
    resolve = f"modprobe --dry-run --show-depends --use-blacklist {GPU}"
    assert "nouveau.ko" in host.check_output(f"{resolve} --config $(mktemp --directory)")
    assert "nouveau.ko" not in host.run(resolve).stdout


def test_kernel_nvml_and_packages_agree(host):
    assert host.file("/sys/module/nvidia/version").content_string.strip() == VERSION
    assert f"  {VERSION}  " in host.file("/proc/driver/nvidia/version").content_string
    assert f"<driver_version>{VERSION}<" in host.check_output("nvidia-smi -q -x")
    assert host.package("libcuda1").version == f"{VERSION}-1"


def test_persistence_daemon_runs(host):
    service = host.service("nvidia-persistenced")
    assert service.is_enabled
    assert service.is_running


def test_the_driver_is_still_held(host):
    assert {"libcuda1", "nvidia-kernel-open-dkms"} <= set(host.check_output("apt-mark showhold").split())
