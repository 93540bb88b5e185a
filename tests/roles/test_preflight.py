"""Role preflight changes nothing on the host; tests/e2e/test_refusals.py tests its refusals."""

from __future__ import annotations


def test_no_file_was_created(host):
    assert not host.file("/opt/vllm").exists


def test_no_package_was_installed(host):
    assert not host.package("docker.io").is_installed
