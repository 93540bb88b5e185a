"""After role teardown nothing of ours is left, and all of others' is."""

from __future__ import annotations


def test_no_container_network_or_volume_of_the_project(host):
    for kind in ("ps --all", "network ls", "volume ls"):
        listed = host.check_output(f"docker {kind} --quiet --filter label=com.docker.compose.project=vllm")
        assert listed == "", kind


def test_data_is_gone_as_asked(host):
    assert not host.file("/opt/vllm").exists


def test_what_others_own_stays(host):
    assert "bystander" in host.check_output("docker volume ls --quiet")
    assert host.run("docker info").rc == 0
