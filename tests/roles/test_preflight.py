"""Role preflight changes nothing, whatever it says; tests/e2e/test_refusals.py has what it refuses."""

from __future__ import annotations


def test_nothing_was_made(host):
    assert not host.file("/opt/vllm").exists


def test_no_package_was_installed(host):
    assert not host.package("docker.io").is_installed
