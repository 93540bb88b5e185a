"""Decisions of role nvidia_container_toolkit, and the tasks that it would run on systems that cannot be had here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, FileSystemLoader

from ansible_collections.inference.vllm.plugins.filter.driver import repository_refused
from ansible_collections.inference.vllm.plugins.module_utils.host import container_toolkit
from ansible_collections.inference.vllm.plugins.module_utils.host.docker_daemon import merge
from support.role_paths import ROOT, paths

ROLE = ROOT / "roles" / "nvidia_container_toolkit"
VARS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
PACKAGES = VARS["__nvidia_container_toolkit_packages"]
VERSION = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())["nvidia_container_toolkit_version"]
FIRST, SECOND = (f"GPU-f15ae561-21b1-6003-c768-861fc285203{end}" for end in "bc")
#: As nvidia-smi -L prints two GPUs, one of them in MIG mode.
LISTED = f"""GPU 0: NVIDIA A10 (UUID: {FIRST})
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {SECOND})
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
"""
#: What Docker prints where the toolkit's hook is not there, or came after Docker was started.
NO_HOOK = 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].'
SYSTEMS = {
    "Debian 12": ("Debian", "12", "Debian", "x86_64"),
    "Debian 13": ("Debian", "13", "Debian", "x86_64"),
    "Ubuntu 22": ("Ubuntu", "22", "Debian", "x86_64"),
    "Ubuntu 24": ("Ubuntu", "24", "Debian", "aarch64"),
    "RedHat 9": ("Rocky", "9", "RedHat", "x86_64"),
    "RedHat 10": ("AlmaLinux", "10", "RedHat", "x86_64"),
}
APT = [name for name, row in VARS["__nvidia_container_toolkit_systems"].items() if row["manager"] == "apt"]
DNF = [name for name, row in VARS["__nvidia_container_toolkit_systems"].items() if row["manager"] == "dnf"]


def test_packages_of_another_version_are_wrong() -> None:
    installed = {"a": "1.19.1-1", "b": "1.19.10-1", "c": "0:1.19.1-1.el9", "d": "1:1.19.1-1"}
    assert container_toolkit.wrong_packages("abcde", installed, "1.19.1-1") == ["b", "d", "e"]


def test_daemon_config_names_the_runtime_only() -> None:
    assert container_toolkit.daemon_config("", "", False) == {
        "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}
    }


def test_default_runtime_only_when_asked_for() -> None:
    assert container_toolkit.daemon_config("", "cgroupfs", True)["default-runtime"] == "nvidia"
    assert "default-runtime" not in container_toolkit.daemon_config("", "cgroupfs", False)


def test_other_options_of_the_list_stay() -> None:
    text = '{"exec-opts": ["native.umask=normal", "native.cgroupdriver=systemd"]}'
    config = container_toolkit.daemon_config(text, "cgroupfs", False)
    assert config["exec-opts"] == ["native.umask=normal", "native.cgroupdriver=cgroupfs"]


def test_a_file_that_is_no_json_is_left_to_the_module_that_refuses_it() -> None:
    assert container_toolkit.daemon_config("{oops", "cgroupfs", False)["exec-opts"] == ["native.cgroupdriver=cgroupfs"]


@given(st.dictionaries(st.sampled_from(["labels", "hosts", "exec-opts"]), st.lists(st.text(max_size=5))))
def test_a_second_time_changes_nothing(there: dict[str, Any]) -> None:
    once = merge(there, container_toolkit.daemon_config(json.dumps(there), "cgroupfs", False))
    assert merge(once, container_toolkit.daemon_config(json.dumps(once), "cgroupfs", False)) == once
    assert {key: once[key] for key in there if key != "exec-opts"} == {
        key: value for key, value in there.items() if key != "exec-opts"
    }


def test_listed_gpus() -> None:
    assert container_toolkit.listed_gpus(LISTED) == [FIRST, SECOND]
    assert container_toolkit.listed_gpus("No devices found.\n") == []


def test_a_container_with_all_gpus_is_no_refusal() -> None:
    assert not container_toolkit.refusals({"rc": 0, "stdout": LISTED}, [SECOND, FIRST], "x")


@pytest.mark.parametrize(
    ("proof", "named"),
    [
        ({"rc": 0, "stdout": LISTED.splitlines()[0]}, f"lists {FIRST}: GPU 0"),
        ({"rc": 6, "stdout": "No devices found.\n", "stderr": ""}, "lists none: No devices found."),
        ({"rc": 125, "stdout": "", "stderr": NO_HOOK}, "could not select device driver"),
        ({"rc": 255, "stdout": LISTED, "stderr": "Failed to initialize NVML: Unknown Error"}, "Unknown Error"),
        ({}, "no message"),
    ],
)
def test_a_container_without_all_gpus_is_refused(proof: dict[str, Any], named: str) -> None:
    (refusal,) = container_toolkit.refusals(proof, [FIRST, SECOND], "image:1")
    assert refusal.code == "gpu_missing_in_container"
    assert named in refusal.message
    assert "image:1" in refusal.message


def test_a_host_without_gpus_proves_nothing() -> None:
    (refusal,) = container_toolkit.refusals({"rc": 0, "stdout": ""}, [], "x")
    assert refusal.code == "no_gpu_on_host"


def case(name: str, installed: Mapping[str, str] | None = None, **given_variables: Any) -> dict[str, Any]:
    distribution, major, family, machine = SYSTEMS.get(name, (name, "1", name, "x86_64"))
    variables = {
        "ansible_facts": {
            "distribution": distribution,
            "distribution_major_version": major,
            "os_family": family,
            "pkg_mgr": "apt" if family == "Debian" else "dnf",
            "architecture": machine,
        },
        "__nvidia_container_toolkit_before": {"installed": installed or {}, "held": sorted(installed or {})},
        "__nvidia_container_toolkit_host": {"gpus": [{"uuid": FIRST}, {"uuid": None}]},
        "_nvidia_repository_python_debian": {"changed": True},
        "__nvidia_container_toolkit_daemon_json": {"content": "eyJsYWJlbHMiOiBbImEiXX0="},
        "__nvidia_container_toolkit_cdi": {"stdout": "cdiVersion: 0.5.0"},
        "__nvidia_container_toolkit_proof": {"rc": 0, "stdout": LISTED.splitlines()[0], "stderr": ""},
        **given_variables,
    }
    return {"role": "nvidia_container_toolkit", "tasks": "main.yml", "variables": variables}


@pytest.fixture(scope="module")
def done() -> dict[str, Any]:
    """What the role would do, by system and a word for the case."""
    there, former = dict.fromkeys(PACKAGES, VERSION), dict.fromkeys(PACKAGES, "1.18.0-1")
    mirror = {f"nvidia_container_toolkit_repository_{part}": f"http://mirror.example/{part}" for part in ("url", "key")}
    cases = {"Archlinux": case("Archlinux"), "no GPU": case("Debian 12", __nvidia_container_toolkit_host={"gpus": []})}
    cases["unproven"] = case(
        "Debian 12", __nvidia_container_toolkit_host={"gpus": []}, nvidia_container_toolkit_prove="false"
    )
    for name in SYSTEMS:
        cases[name] = case(name)
        cases[f"{name}, present"] = case(name, there)
        cases[f"{name}, former"] = case(name, former)
        cases[f"{name}, distribution"] = case(name, nvidia_container_toolkit_source="distribution")
        cases[f"{name}, mirror"] = case(name, None, **mirror)
    return paths(cases)


def arguments(steps: list[tuple[str, dict[str, Any]]], module: str) -> list[Any]:
    return [given for name, given in steps if name.rpartition(".")[2] == module]


def test_every_system_of_the_table_is_rendered() -> None:
    assert set(SYSTEMS) == set(VARS["__nvidia_container_toolkit_systems"])


@pytest.mark.parametrize("name", APT)
def test_apt(done: dict[str, Any], name: str) -> None:
    steps = done[name]
    architecture = "arm64" if SYSTEMS[name][3] == "aarch64" else "amd64"
    assert arguments(steps, "deb822_repository") == [
        {
            "name": "nvidia-container-toolkit",
            "types": "deb",
            "uris": f"https://nvidia.github.io/libnvidia-container/stable/deb/{architecture}",
            "suites": "/",
            "signed_by": "https://nvidia.github.io/libnvidia-container/gpgkey",
        }
    ]
    install = arguments(steps, "apt")[-1]
    assert install["name"] == [f"{package}={VERSION}" for package in PACKAGES]
    assert (install["allow_change_held_packages"], install["allow_downgrade"]) == (True, True)
    assert {"argv": ["apt-mark", "hold", *PACKAGES]} in arguments(steps, "command")
    assert [given["src"] for given in arguments(steps, "template")] == ["preferences.j2", "unattended-upgrades.j2"]
    assert not arguments(steps, "dnf")


@pytest.mark.parametrize("name", DNF)
def test_dnf(done: dict[str, Any], name: str) -> None:
    steps = done[name]
    repository = arguments(steps, "yum_repository")[0]
    assert repository["baseurl"] == "https://nvidia.github.io/libnvidia-container/stable/rpm/$basearch"
    assert (repository["gpgcheck"], repository["repo_gpgcheck"]) == (False, True)
    asked = ["dnf", "--quiet", "--assumeyes", "makecache", "--refresh", "--repo=nvidia-container-toolkit"]
    assert {"argv": asked} in arguments(steps, "command")
    install = arguments(steps, "dnf")[-1]
    assert install["name"] == [f"{package}-{VERSION}" for package in PACKAGES]
    locked = {"name": [f"{package}-*:{VERSION}.*" for package in PACKAGES], "state": "present", "raw": True}
    assert arguments(steps, "dnf_versionlock") == [locked]
    former = arguments(done[f"{name}, former"], "dnf_versionlock")
    assert [given["state"] for given in former] == ["absent", "present"]
    assert former[0]["name"] == [f"{package}-*" for package in PACKAGES]
    assert not arguments(steps, "apt")


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_in_place_needs_no_repository(done: dict[str, Any], name: str) -> None:
    steps = done[f"{name}, present"]
    assert not arguments(steps, "apt")
    assert not arguments(steps, "deb822_repository")
    assert not arguments(steps, "yum_repository")
    assert not any("nvidia-container-toolkit" in str(given["name"]) for given in arguments(steps, "dnf"))
    assert not any(given["argv"][0] == "apt-mark" for given in arguments(steps, "command"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_mirror_and_distribution(done: dict[str, Any], name: str) -> None:
    module, url, key = (
        ("deb822_repository", "uris", "signed_by") if name in APT else ("yum_repository", "baseurl", "gpgkey")
    )
    mirror = arguments(done[f"{name}, mirror"], module)[0]
    assert (mirror[url], mirror[key]) == ("http://mirror.example/url", "http://mirror.example/key")
    assert not arguments(done[f"{name}, distribution"], module)


@pytest.mark.parametrize("name", SYSTEMS)
def test_docker_devices_and_proof_are_the_same_everywhere(done: dict[str, Any], name: str) -> None:
    steps = done[name]
    assert arguments(steps, "docker_daemon_config") == [
        {
            "config": {
                "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}},
                "exec-opts": ["native.cgroupdriver=cgroupfs"],
            }
        }
    ]
    commands = [given["argv"] for given in arguments(steps, "command")]
    assert commands[-3:-1] == [
        ["nvidia-ctk", "system", "create-dev-char-symlinks", "--create-all"],
        ["nvidia-ctk", "cdi", "generate"],
    ]
    assert commands[-1][:2] == ["docker", "run"]
    assert commands[-1][-4:] == ["--entrypoint", "nvidia-smi", "docker.io/library/ubuntu:24.04", "-L"]
    assert arguments(steps, "copy")[-1]["content"] == "cdiVersion: 0.5.0\n"


def test_refusals(done: dict[str, Any]) -> None:
    assert done["Archlinux"].startswith(
        "[unsupported_system] This host runs Archlinux 1; supported systems are Debian 12,"
    )
    assert done["no GPU"].startswith("[no_gpu_on_host]")
    assert not any("nvidia-ctk" in str(given) for given in arguments(done["unproven"], "command"))


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("W: GPG error: http://m InRelease: NO_PUBKEY DDCAE044F796ECB0", "[repository_key] nvidia_container_toolkit_"),
        ("E: Could not connect to m:80", "set nvidia_container_toolkit_repository_url to a mirror"),
    ],
)
def test_a_refused_repository_is_named_by_this_roles_variables(message: str, named: str) -> None:
    text = repository_refused({"stderr": message}, "http://m", "http://m/key", "nvidia_container_toolkit")
    assert named in text
    assert "nvidia_driver" not in text


def test_apt_files() -> None:
    environment = Environment(loader=FileSystemLoader(ROLE / "templates"), keep_trailing_newline=True, trim_blocks=True)
    values = {"__nvidia_container_toolkit_packages": ["a", "b"], "nvidia_container_toolkit_version": "1-1"}
    preferences = environment.get_template("preferences.j2").render(values).splitlines()
    assert preferences[1:] == ["Package: a b", "Pin: version 1-1", "Pin-Priority: 1001"]
    assert '    "^a$";\n    "^b$";\n};\n' in environment.get_template("unattended-upgrades.j2").render(values)
