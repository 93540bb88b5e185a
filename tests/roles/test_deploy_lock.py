"""Role deploy_lock writes a lock file that identifies the run and that only root can read."""

from __future__ import annotations

import json


def test_lock_names_the_run(host):
    lock = host.file("/run/vllm.deploy-lock")
    assert (lock.user, lock.group, lock.mode) == ("root", "root", 0o600)
    owner = json.loads(lock.content_string)["owner"]
    assert owner["play"] == "Converge"
    assert owner["pid"] > 1
    assert owner["started"]
