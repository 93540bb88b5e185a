"""Role deploy_lock writes a lock file that identifies the run and that only root can read; the run releases it."""

from __future__ import annotations

import json


def test_lock_names_the_run(host):
    lock = host.file("/root/deploy-lock.json")
    assert (lock.user, lock.group, lock.mode) == ("root", "root", 0o600)
    held = json.loads(lock.content_string)
    owner = held["owner"]
    assert owner["play"] == "Converge"
    assert owner["pid"] > 1
    assert owner["started"]
    assert owner["namespace"].startswith("pid:")
    assert held["boot"] == host.file("/proc/sys/kernel/random/boot_id").content_string.strip()
    assert held["max_age"] == 300


def test_lock_is_released_at_the_end_of_the_run(host):
    lock = host.file("/run/vllm.deploy-lock")
    assert (lock.user, lock.group, lock.mode) == ("root", "root", 0o600)
    assert lock.size == 0
