"""Role docker_engine on systems that cannot be had here: what it would install, from where, and how hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from jinja2 import Environment, StrictUndefined

from ansible_collections.inference.vllm.plugins.filter.host import (
    for_system,
    key_fingerprints,
    package_specs,
)
from support.role_paths import ROOT, paths

ROLE = ROOT / "roles" / "docker_engine"
Facts = Mapping[str, Any]


def system(distribution: str, major: str, release: str, family: str = "Debian", machine: str = "x86_64") -> Facts:
    return {
        "distribution": distribution,
        "distribution_major_version": major,
        "distribution_release": release,
        "os_family": family,
        "pkg_mgr": "apt" if family == "Debian" else "dnf",
        "architecture": machine,
        "service_mgr": "systemd",
        "python": {"version": {"major": 3, "minor": 12}},
    }


SYSTEMS = {
    "Debian 12": system("Debian", "12", "bookworm"),
    "Debian 13": system("Debian", "13", "trixie"),
    "Ubuntu 22.04": system("Ubuntu", "22", "jammy"),
    "Ubuntu 24.04": system("Ubuntu", "24", "noble", machine="aarch64"),
    "RHEL 9": system("RedHat", "9", "Plow", "RedHat"),
    "Rocky 9": system("Rocky", "9", "Blue Onyx", "RedHat"),
    "AlmaLinux 10": system("AlmaLinux", "10", "Purple Lion", "RedHat"),
}
UPSTREAM = ["docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin"]
DEB_KEY = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
RPM_KEY = "060A61C51B558A7F742B77AAC52FEB6B621E9F35"

#: system -> packages of the distribution, its Compose.
FROM_DISTRIBUTION = {
    "Debian 12": (["docker.io", "iptables"], []),
    "Debian 13": (["docker.io", "docker-cli", "iptables"], ["docker-compose"]),
    "Ubuntu 22.04": (["docker.io", "iptables"], ["docker-compose-v2"]),
    "Ubuntu 24.04": (["docker.io", "iptables"], ["docker-compose-v2"]),
}
#: system -> address of Docker's repository, suite, architecture.
APT = {
    "Debian 12": ("https://download.docker.com/linux/debian", "bookworm", "amd64"),
    "Debian 13": ("https://download.docker.com/linux/debian", "trixie", "amd64"),
    "Ubuntu 22.04": ("https://download.docker.com/linux/ubuntu", "jammy", "amd64"),
    "Ubuntu 24.04": ("https://download.docker.com/linux/ubuntu", "noble", "arm64"),
}
#: system -> address of Docker's repository.
DNF = {
    "RHEL 9": "https://download.docker.com/linux/rhel/9/$basearch/stable",
    "Rocky 9": "https://download.docker.com/linux/rhel/9/$basearch/stable",
    "AlmaLinux 10": "https://download.docker.com/linux/rhel/10/$basearch/stable",
}


MIRROR = {
    "docker_engine_source": "upstream",
    "docker_engine_repository_url": "http://mirror.example/docker",
    "docker_engine_repository_key_fingerprint": "A" * 40,
}


def case(
    name: str,
    given: Mapping[str, str],
    key: str = DEB_KEY,
    file: str = "install.yml",
    *,
    broken: bool = False,
    there: int = 0,
) -> dict[str, Any]:
    registered = {
        "__docker_engine": {"answers": False, "present": False, "owned": True},
        "__docker_engine_installed": {"stdout_lines": ["installed"] * there},
        "__docker_engine_key_listing": {"stdout": f"pub:-:4096:1:8D81803C0EBFCD88:1:::-:\nfpr:::::::::{key}:\n"},
        "__docker_engine_lists": {"rc": int(broken), "stderr": "E: no answer"},
    }
    variables = {"ansible_facts": SYSTEMS[name], **given, **registered}
    return {"role": "docker_engine", "tasks": file, "variables": variables}


@pytest.fixture(scope="module")
def done() -> dict[str, Any]:
    """What the role would do, by system and a word for the case."""
    cases = {}
    for name in SYSTEMS:
        upstream = {} if name in DNF else {"docker_engine_source": "upstream"}
        cases[f"{name}, distribution"] = case(name, {"docker_engine_source": "distribution"})
        cases[f"{name}, default"] = case(name, {})
        cases[f"{name}, default Compose"] = case(name, {}, file="compose_package.yml")
        cases[f"{name}, upstream"] = case(name, upstream)
        cases[f"{name}, upstream Compose"] = case(name, upstream, file="compose_package.yml")
        cases[f"{name}, mirror"] = case(name, MIRROR, "A" * 40)
        cases[f"{name}, wrong key"] = case(name, MIRROR)
        cases[f"{name}, down"] = case(name, MIRROR, "A" * 40, broken=True)
        cases[f"{name}, one there"] = case(name, {}, there=1)
        count = len(FROM_DISTRIBUTION.get(name, ((), ()))[0])
        cases[f"{name}, all there"] = case(name, {"docker_engine_source": "distribution"}, there=count)
        version = "3:28.5.*" if name in DNF else "5:28.5.*"
        cases[f"{name}, pinned"] = case(name, {"docker_engine_version": version, **upstream})
    return paths(cases)


def arguments(steps: list[tuple[str, dict[str, Any]]], module: str) -> list[dict[str, Any]]:
    return [given for name, given in steps if name.rpartition(".")[2] == module]


@pytest.mark.parametrize("name", FROM_DISTRIBUTION)
def test_distribution(done: dict[str, Any], name: str) -> None:
    packages, compose = FROM_DISTRIBUTION[name]
    steps = done[f"{name}, default"]
    assert [given["name"] for given in arguments(steps, "apt")] == [packages]
    assert not {module.rpartition(".")[2] for module, _ in steps} & {"get_url", "deb822_repository", "dpkg_selections"}
    assert [given["name"] for given in arguments(done[f"{name}, default Compose"], "apt")] == [compose] * bool(compose)


@pytest.mark.parametrize("name", APT)
def test_packages_that_are_all_there_are_not_asked_for(done: dict[str, Any], name: str) -> None:
    assert arguments(done[f"{name}, all there"], "apt") == []
    assert len(arguments(done[f"{name}, one there"], "apt")) == 1


@pytest.mark.parametrize("name", APT)
def test_dockers_apt_repository(done: dict[str, Any], name: str) -> None:
    address, suite, architecture = APT[name]
    steps = done[f"{name}, upstream"]
    assert arguments(steps, "get_url")[0]["url"] == f"{address}/gpg"
    assert arguments(steps, "deb822_repository") == [
        {
            "name": "docker",
            "types": "deb",
            "uris": address,
            "suites": suite,
            "components": "stable",
            "architectures": architecture,
            "signed_by": "/etc/apt/keyrings/docker.asc",
        }
    ]
    assert arguments(steps, "apt")[-1] == {
        "name": UPSTREAM,
        "update_cache": True,
        "cache_valid_time": 3600,
        "allow_change_held_packages": False,
        "allow_downgrade": False,
    }
    assert arguments(done[f"{name}, upstream Compose"], "apt")[0]["name"] == ["docker-compose-plugin"]


@pytest.mark.parametrize("name", APT)
def test_mirror_with_a_key_of_its_own(done: dict[str, Any], name: str) -> None:
    steps = done[f"{name}, mirror"]
    assert arguments(steps, "get_url")[0]["url"] == "http://mirror.example/docker/gpg"
    assert arguments(steps, "deb822_repository")[0]["uris"] == "http://mirror.example/docker"
    refusal = done[f"{name}, wrong key"]
    assert refusal.startswith("[bad_repository_key] http://mirror.example/docker/gpg has the key " + DEB_KEY)
    assert f"docker_engine_repository_key_fingerprint allows {'A' * 40}." in refusal
    assert "[repository_unusable] docker_engine_repository_url is http://mirror.example" in done[f"{name}, down"]


@pytest.mark.parametrize("name", DNF)
def test_dockers_dnf_repository(done: dict[str, Any], name: str) -> None:
    steps = done[f"{name}, default"]
    key = "https://download.docker.com/linux/rhel/gpg"
    assert arguments(steps, "rpm_key") == [{"key": key, "fingerprint": RPM_KEY}]
    repository = arguments(steps, "yum_repository")[0]
    assert (repository["baseurl"], repository["gpgcheck"], repository["gpgkey"]) == (DNF[name], True, key)
    assert arguments(steps, "dnf") == [{"name": UPSTREAM, "allow_downgrade": False}]
    assert not arguments(steps, "apt")
    assert arguments(done[f"{name}, default Compose"], "dnf")[0]["name"] == ["docker-compose-plugin"]


@pytest.mark.parametrize("name", APT)
def test_a_pinned_version_is_installed_and_held_by_apt(done: dict[str, Any], name: str) -> None:
    steps = done[f"{name}, pinned"]
    last = arguments(steps, "apt")[-1]
    assert last["name"] == ["docker-ce=5:28.5.*", "docker-ce-cli=5:28.5.*", "containerd.io", "docker-buildx-plugin"]
    assert (last["allow_change_held_packages"], last["allow_downgrade"]) == (True, True)
    held = [{"name": package, "selection": "hold"} for package in ("docker-ce", "docker-ce-cli")]
    assert arguments(steps, "dpkg_selections") == held


@pytest.mark.parametrize("name", DNF)
def test_a_pinned_version_is_installed_and_held_by_dnf(done: dict[str, Any], name: str) -> None:
    steps = done[f"{name}, pinned"]
    assert arguments(steps, "dnf")[0]["name"][:2] == ["docker-ce-3:28.5.*", "docker-ce-cli-3:28.5.*"]
    assert arguments(steps, "dnf_versionlock") == [{"name": ["docker-ce", "docker-ce-cli"]}]


@pytest.mark.parametrize("name", DNF)
def test_a_distribution_without_docker_is_refused(done: dict[str, Any], name: str) -> None:
    assert done[f"{name}, distribution"].startswith("[no_such_source] docker_engine_source is distribution; allowed on")


def test_an_unknown_system_is_refused() -> None:
    table = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__docker_engine_table"]
    with pytest.raises(AnsibleFilterError, match=r"unknown_system.*Archlinux_20"):
        for_system(table, system("Archlinux", "20", "", "Archlinux"))


def test_entries_are_merged_the_narrowest_last() -> None:
    table = {"Debian": {"a": 1, "m": {"x": 1, "y": 1}}, "Debian_12": {"a": 2, "m": {"y": 2}}}
    assert for_system(table, SYSTEMS["Debian 12"]) == {"a": 2, "m": {"x": 1, "y": 2}}
    assert for_system(table, SYSTEMS["Ubuntu 22.04"]) == {"a": 1, "m": {"x": 1, "y": 1}}
    assert table["Debian"]["m"] == {"x": 1, "y": 1}


def test_every_system_of_the_documented_table_is_rendered() -> None:
    rendered = {f"{facts['distribution']} {facts['distribution_major_version']}" for facts in SYSTEMS.values()}
    kin = {"Rocky 9": "RedHat 9", "AlmaLinux 10": "RedHat 10"}
    evidence = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__docker_engine_evidence"]
    assert {kin.get(name, name) for name in rendered} == set(evidence)


def test_package_specs() -> None:
    assert package_specs(["a", "b"], "1", ["a"], "apt") == ["a=1", "b"]
    assert package_specs(["a", "b"], "1", ["a"], "dnf") == ["a-1", "b"]
    assert package_specs(["a", "b"], "", ["a"], "apt") == ["a", "b"]


def test_only_primary_keys_have_a_say() -> None:
    listing = "pub:x\nfpr:::::::::AAAA:\nuid:x\nsub:x\nfpr:::::::::BBBB:\npub:y\nfpr:::::::::CCCC:\n"
    assert key_fingerprints(listing) == ["AAAA", "CCCC"]
    assert key_fingerprints("gpg: no valid OpenPGP data found.") == []


def test_percent_signs_of_a_proxy_survive_systemd() -> None:
    environment = {"HTTP_PROXY": "http://u:p%40@h:1", "NO_PROXY": "a,b"}
    template = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True).from_string(
        (ROLE / "templates" / "proxy.conf.j2").read_text()
    )
    text = template.render(ansible_managed="x", __docker_engine_environment=environment)
    assert text.splitlines()[1:] == [
        "[Service]",
        'Environment="HTTP_PROXY=http://u:p%%40@h:1"',
        'Environment="NO_PROXY=a,b"',
    ]
