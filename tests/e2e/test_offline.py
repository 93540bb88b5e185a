"""The whole chain on a host without a network: deploy from a bundle, with the real engine.

Slow: `make test-slow` runs it. The host is this machine in separate namespaces: its only interface is loopback, and its
Docker engine, which the chain starts, has no image.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import HOME, ROOT, play

pytestmark = pytest.mark.slow

FOLDER = ROOT / ".cache" / "e2e-offline"
BUNDLE = FOLDER / "bundle"
# A new /run hides the socket of this machine's Docker engine.
NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
# PID 1 must not be a shell: Ansible would then conclude from the files on the disk that systemd runs.
NAMESPACES += ["timeout", "3600"]
ENTER = """
set -e
ip link set lo up
[ "$(ip -o link show | wc -l)" = 1 ] && [ -z "$(ip route)" ]
mount -t tmpfs tmpfs /run
mount --bind "$1/docker" /var/lib/docker
mkdir -p /var/lib/containerd
mount --bind "$1/containerd" /var/lib/containerd
cd "$2"
shift 2
[ -z "$(docker ps --all --quiet 2>/dev/null)" ]
"$@"
"$@"
"""


@pytest.fixture(scope="module")
def bundle() -> Iterator[Path]:
    """Bundle that playbooks/bundle.yml writes with a network. The deployment is removed before and after."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("bundle", "docker", "containerd"):
        (FOLDER / name).mkdir(parents=True)
    given: dict[str, Any] = {"teardown_remove_data": True, "teardown_stop_docker": False}
    play("playbooks/teardown.yml", **given)
    for playbook in ("playbooks/provision.yml", "playbooks/weights.yml", "playbooks/bundle.yml"):
        run = play(playbook, bundle_folder=str(BUNDLE))
        assert run.rc == 0, run.text
    play("playbooks/teardown.yml", **given)
    assert not HOME.exists()
    yield BUNDLE
    play("playbooks/teardown.yml", **given)
    shutil.rmtree(FOLDER, ignore_errors=True)


def test_a_host_without_a_network_is_deployed_from_a_bundle(bundle: Path) -> None:
    """Twice; the second run changes nothing."""
    log = FOLDER / "dockerd.log"
    more = {"local_hub_models": [], "docker_engine_logfile": str(log), "bundle_folder": str(bundle)}
    deploy = [str(Path(sys.executable).with_name("ansible-playbook")), "deploy.yml", "-i", "inventories/embedded"]
    deploy += ["-e", f"@{bundle}/vars.yml", "-e", json.dumps(more)]
    done = subprocess.run(
        [*NAMESPACES, "sh", "-c", ENTER, "enter", str(FOLDER), str(ROOT), *deploy],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    recaps = [line for line in done.stdout.splitlines() if line.startswith("demo ") and "failed=" in line]
    assert len(recaps) == 2
    assert "changed=0 " not in recaps[0]
    assert "changed=0 " in recaps[1]
    (report,) = (HOME / "reports").iterdir()
    verdict = json.loads((report / "verdict.json").read_text())
    assert (verdict["ok"], verdict["release"]) == (True, (HOME / "current").resolve().name)
    assert json.loads((HOME / "image.json").read_text())["source"] == "load"
