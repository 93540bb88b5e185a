"""Role _nvidia_repository: the repository that works is there, and what could not be used has left nothing."""

from __future__ import annotations

SOURCES = "/etc/apt/sources.list.d"


def test_repository_offers_its_packages(host):
    assert "http://127.0.0.1:8085/libnvidia-container" in host.check_output(
        "apt-cache madison nvidia-container-toolkit"
    )


def test_repository_is_trusted_by_its_own_key_only(host):
    file = host.file(f"{SOURCES}/toolkit.sources")
    assert (file.user, oct(file.mode)) == ("root", "0o644")
    assert "Signed-By: /etc/apt/keyrings/toolkit" in file.content_string
    assert not host.run("ls -A /etc/apt/trusted.gpg.d | grep -i -e nvidia -e toolkit").stdout


def test_repositories_that_could_not_be_used_were_removed(host):
    assert "toolkit.sources" in host.file(SOURCES).listdir()
    assert not {"dead.sources", "foreign.sources"} & set(host.file(SOURCES).listdir())


def test_apt_updates_without_an_error(host):
    assert host.run("apt-get update --option=APT::Update::Error-Mode=any").rc == 0
