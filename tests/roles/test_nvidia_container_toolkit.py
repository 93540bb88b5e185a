"""State of a host after role nvidia_container_toolkit changed the toolkit version, and after a driver change."""

from __future__ import annotations

import json

import pytest

VERSION = "1.18.1-1"
DRIVER = "580.126.20"
GPU = "GPU-00000000-0000-0000-0000-000000000001"
PACKAGES = [
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_have_one_version_and_are_held(host, name):
    assert host.package(name).version == VERSION
    assert name in host.check_output("apt-mark showhold").split()


@pytest.mark.parametrize("name", PACKAGES)
def test_apt_would_install_no_newer_version(host, name):
    assert f"Candidate: {VERSION}" in host.check_output(f"apt-cache policy {name}")
    assert "1.19.1-1" in host.check_output(f"apt-cache madison {name}")


def test_unattended_upgrades_read_the_blacklist(host):
    listed = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    for name in PACKAGES:
        assert f'"^{name}$";' in listed


@pytest.mark.parametrize(
    "path",
    [
        "/etc/apt/preferences.d/nvidia-container-toolkit",
        "/etc/apt/apt.conf.d/52nvidia-container-toolkit",
        "/etc/apt/sources.list.d/nvidia-container-toolkit.sources",
        "/etc/udev/rules.d/71-nvidia-dev-char.rules",
        "/etc/cdi/nvidia.yaml",
    ],
)
def test_files_are_world_readable_and_writable_by_root_only(host, path):
    file = host.file(path)
    assert (file.user, file.group, oct(file.mode)) == ("root", "root", "0o644")


def test_repository_trusts_its_own_key_only(host):
    sources = host.file("/etc/apt/sources.list.d/nvidia-container-toolkit.sources").content_string
    assert "Signed-By: /etc/apt/keyrings/nvidia-container-toolkit" in sources
    assert not host.run("ls -A /etc/apt/trusted.gpg.d | grep -i nvidia").stdout


def test_daemon_json_has_the_runtime_and_the_previous_keys(host):
    file = host.file("/etc/docker/daemon.json")
    config = json.loads(file.content_string)
    assert config["runtimes"] == {
        "kata": {"path": "/opt/kata/bin/kata-runtime"},
        "nvidia": {"path": "nvidia-container-runtime"},
    }
    assert config["labels"] == ["site=lab"]
    assert config["exec-opts"] == ["native.cgroupdriver=cgroupfs"]
    assert "default-runtime" not in config
    assert oct(file.mode) == "0o640"
    assert not host.file("/etc/docker/daemon.json.last-good").exists


def test_docker_runs_with_daemon_json(host):
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert {"nvidia", "kata"} <= set(info["Runtimes"])
    assert info["DefaultRuntime"] == "runc"
    assert info["CgroupDriver"] == "cgroupfs"


def test_a_container_kept_running_through_every_restart(host):
    state = json.loads(host.check_output("docker inspect bystander --format '{{json .State}}'"))
    assert state["Running"] is True


def test_cdi_specification_is_that_of_the_new_driver(host):
    specification = host.file("/etc/cdi/nvidia.yaml").content_string
    assert f"libcuda.so.{DRIVER}" in specification
    assert "580.95.05" not in specification
    assert f"- name: {GPU}" in specification


def test_devices_are_linked_by_number_now_and_at_every_boot(host):
    assert host.file("/dev/char/195:255").is_symlink
    assert (
        "create-dev-char-symlinks --create-all"
        in host.file("/etc/udev/rules.d/71-nvidia-dev-char.rules").content_string
    )


@pytest.mark.parametrize("option", ["--gpus all", "--gpus all --runtime nvidia"])
def test_a_container_lists_the_hosts_gpus(host, option):
    listed = host.check_output(f"docker run --rm --network none {option} --entrypoint nvidia-smi test/sh:1 -L")
    assert GPU in listed
    assert listed == host.check_output("nvidia-smi -L")
