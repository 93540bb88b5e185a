"""State of a host after role teardown: only data of the project is removed."""

from __future__ import annotations


def test_no_container_network_or_volume_of_the_project(host):
    for kind in ("ps --all", "network ls", "volume ls"):
        for project in ("vllm", "vllm-spare"):
            listed = host.check_output(f"docker {kind} --quiet --filter label=com.docker.compose.project={project}")
            assert listed == "", (kind, project)


def test_systemd_has_no_unit_of_the_service(host):
    assert not host.file("/etc/systemd/system/vllm.service").exists
    assert host.run("systemctl cat vllm.service").rc != 0
    assert host.check_output("systemctl list-units --all --plain --no-legend 'vllm*'") == ""


def test_data_is_removed(host):
    assert not host.file("/opt/vllm").exists


def test_only_the_project_image_with_extra_packages_is_removed(host):
    listed = host.check_output("docker image ls --format '{{.Repository}}:{{.Tag}}'").split()
    assert "localhost/vllm-extra:vllm" not in listed
    assert {"localhost/vllm-extra:other", "test/sleep:1"} <= set(listed)


def test_unrelated_volumes_and_docker_are_kept(host):
    assert "bystander" in host.check_output("docker volume ls --quiet")
    assert host.run("docker info").rc == 0
