"""State of a host after role docker_engine."""

from __future__ import annotations

import json

import pytest

EMPTY_IMAGE = "test/true:1"


@pytest.fixture(scope="module")
def systemd(host):
    return host.file("/run/systemd/system").is_directory


def test_engine_answers(host):
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert info["ServerVersion"]
    assert not info.get("ServerErrors")


def test_engine_is_enabled_with_systemd_and_runs_without(host, systemd):
    if systemd:
        service = host.service("docker")
        assert service.is_running
        assert service.is_enabled
    else:
        pid = int(host.file("/run/vllm-dockerd.pid").content_string)
        assert host.process.get(pid=pid).comm == "dockerd"


def test_daemon_json_has_the_variables_and_the_previous_keys(host):
    file = host.file("/etc/docker/daemon.json")
    assert json.loads(file.content_string) == {
        "labels": ["site=lab"],
        "runtimes": {"kata": {"path": "/opt/kata/bin/kata-runtime"}},
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "7m", "max-file": "2"},
        "default-address-pools": [{"base": "10.211.0.0/16", "size": 24}],
    }
    assert (file.user, oct(file.mode)) == ("root", "0o640")
    assert not host.file("/etc/docker/daemon.json.last-good").exists
    assert "registry-mirrors" in json.loads(host.file("/etc/docker/daemon.json.bak").content_string)


def test_engine_runs_with_daemon_json(host):
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert info["LiveRestoreEnabled"] is True
    assert info["LoggingDriver"] == "json-file"
    assert "site=lab" in info["Labels"]
    assert "kata" in info["Runtimes"]
    assert info["DockerRootDir"] == "/var/lib/docker"
    host.run("docker network create pooled")
    assert '"Subnet":"10.211.' in host.check_output("docker network inspect pooled --format '{{json .IPAM.Config}}'")


def test_container_kept_running_through_every_restart(host):
    state = json.loads(host.check_output("docker inspect bystander --format '{{json .State}}'"))
    assert state["Running"] is True


def test_engine_has_the_proxy(host, systemd):
    # Exactly one process: earlier daemons were reaped, even if PID 1 of the container does not reap children.
    (engine,) = host.process.filter(comm="dockerd")
    environment = host.file(f"/proc/{engine.pid}/environ").content_string.split("\0")
    assert "HTTP_PROXY=http://user:s%40ap@proxy.example:3128" in environment
    assert "NO_PROXY=localhost,127.0.0.1" in environment
    if systemd:
        file = host.file("/etc/systemd/system/docker.service.d/ansible-proxy.conf")
        assert (file.user, oct(file.mode)) == ("root", "0o600")


def test_engine_is_held_at_its_version(host):
    assert "docker.io" in host.check_output("apt-mark showhold").split()


def test_mirror_is_signed_by_its_own_key(host):
    source = host.file("/etc/apt/sources.list.d/docker.sources")
    lines = dict(line.split(": ", 1) for line in source.content_string.splitlines() if ": " in line)
    release = host.check_output(". /etc/os-release && echo $VERSION_CODENAME")
    assert lines["Signed-By"] == "/etc/apt/keyrings/docker.asc"
    assert (lines["Types"], lines["URIs"], lines["Suites"]) == ("deb", "http://127.0.0.1:9/docker", release)
    assert oct(source.mode) == oct(host.file("/etc/apt/keyrings/docker.asc").mode) == "0o644"


def test_compose_is_version_two(host):
    assert host.check_output("docker compose version --short").lstrip("v").startswith("2.")


def test_a_container_runs(host):
    host.check_output(
        "tar -C / -c usr/bin/true lib lib64 usr/lib/x86_64-linux-gnu/libc.so.6 "
        f"usr/lib64/ld-linux-x86-64.so.2 usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 | docker import - {EMPTY_IMAGE}"
    )
    assert host.run(f"docker run --rm --network none {EMPTY_IMAGE} /usr/bin/true").rc == 0


def test_compose_runs_a_service(host):
    host.run("mkdir -p /tmp/project")
    host.check_output(
        "printf 'services: {one: {image: \"%s\", command: /usr/bin/true, network_mode: none, pull_policy: never}}' "
        f"{EMPTY_IMAGE} > /tmp/project/compose.yaml"
    )
    assert host.run("docker compose --project-directory /tmp/project run --rm one").rc == 0
