"""What a user of role docker_engine would check on the host."""

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


def test_engine_starts_by_itself_where_there_is_systemd(host, systemd):
    if systemd:
        service = host.service("docker")
        assert service.is_running
        assert service.is_enabled
    else:
        pid = int(host.file("/run/vllm-dockerd.pid").content_string)
        assert host.process.get(pid=pid).comm == "dockerd"


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
