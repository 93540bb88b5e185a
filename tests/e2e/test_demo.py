"""The whole chain on this machine: deploy, inspect, break, repair and remove the demo.

The tests run in the order of the file. Each leaves a working deployment.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import openai
import pytest
import testinfra

from ansible_collections.inference.vllm.plugins.module_utils.service import lock as deploy_lock
from e2e.conftest import HOME, PORT, PROJECT, ROOT, Run

TINY_MODEL = ROOT / "tests" / "tiny_model"


@pytest.fixture(scope="module")
def host(demo: Run) -> Any:
    """This machine, as a testinfra host."""
    return testinfra.get_host("local://")


def test_first_deploy_is_proven(demo: Run, verdict: Callable[[], dict[str, Any]]) -> None:
    assert demo.rc == 0, demo.text
    proof = verdict()
    assert proof["ok"] is True
    assert len(proof["checks"]) >= 15
    assert {"vram_under_load", "stability_requests"} <= {check["code"] for check in proof["checks"]}
    assert all(check["ok"] for check in proof["checks"])


def test_second_deploy_changes_nothing_and_keeps_the_proof(
    demo: Run, playbook: Callable[..., Run], verdict: Callable[[], dict[str, Any]]
) -> None:
    proven = verdict()
    run = playbook("deploy.yml")
    assert run.rc == 0, run.text
    assert run.changed == 0
    assert verdict() == proven


LOCK = Path("/run") / f"{PROJECT}.deploy-lock"


def test_deploy_released_its_lock(demo: Run) -> None:
    assert LOCK.read_text(encoding="utf-8") == ""


def test_service_at_a_url_can_be_verified(demo: Run, playbook: Callable[..., Run], tmp_path: Path) -> None:
    """Verify a service by its URL and key only, like a service that this project did not deploy."""
    run = playbook(
        "playbooks/verify.yml",
        cmdline="--tags smoke",
        verify_url=f"http://127.0.0.1:{PORT}/v1",
        verify_api_key_file=str(HOME / "secrets" / "api_key"),
        verify_dir=str(tmp_path),
        verify_name="seen",
        smoke_test_extent="short",
    )
    assert run.rc == 0, run.text
    proof = json.loads((tmp_path / "reports" / "seen" / "verdict.json").read_text())
    assert proof["ok"] is True
    assert {check["code"].split("_")[0] for check in proof["checks"]}.isdisjoint({"vram", "stability"})


def test_concurrent_run_is_refused_and_names_the_lock_owner(demo: Run, playbook: Callable[..., Run]) -> None:
    first = deploy_lock.this_run(os.getpid(), "Rollback")
    assert deploy_lock.hold(LOCK, first, deploy_lock.this_moment()) is None
    run = playbook("deploy.yml")
    deploy_lock.release(LOCK, first)
    assert run.rc != 0
    assert run.changed == 0
    assert "[deploy_locked]" in run.text
    assert f"process {os.getpid()}, Rollback" in run.text


def test_lock_of_a_killed_run_is_ignored_and_a_restart_is_fully_proven(
    demo: Run, playbook: Callable[..., Run], container: Any, verdict: Callable[[], dict[str, Any]]
) -> None:
    proven, started = verdict(), container.attrs["State"]["StartedAt"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as killed:
        assert deploy_lock.hold(LOCK, deploy_lock.this_run(killed.pid), deploy_lock.this_moment()) is None
        killed.kill()
    run = playbook("playbooks/restart.yml")
    assert run.rc == 0, run.text
    assert LOCK.read_text(encoding="utf-8") == ""
    container.reload()
    assert container.attrs["State"]["StartedAt"] > started
    assert verdict()["started"] > proven["finished"]
    assert {check["code"] for check in verdict()["checks"]} == {check["code"] for check in proven["checks"]}


def test_service_is_on_loopback_only(host: Any, container: Any) -> None:
    assert host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
    bindings = [b for port in container.attrs["HostConfig"]["PortBindings"].values() for b in port]
    assert [b["HostIp"] for b in bindings] == ["127.0.0.1"]


def test_container_is_hardened(container: Any) -> None:
    config = container.attrs["HostConfig"]
    assert config["ReadonlyRootfs"] is True
    assert config["CapDrop"] == ["ALL"]
    assert any(option.startswith("no-new-privileges") for option in config["SecurityOpt"])
    assert config["PidsLimit"] > 0
    assert config["Memory"] > 0
    assert container.attrs["Config"]["User"].split(":")[0] not in ("", "0", "root")
    assert config["RestartPolicy"]["Name"] == "unless-stopped"


def test_key_is_secret(host: Any, container: Any) -> None:
    path = HOME / "secrets" / "api_key"
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    key = path.read_text().strip()
    assert len(key) >= 32
    assert key not in json.dumps(container.attrs)
    assert key not in host.check_output("ps -eww -o args")
    assert key not in container.logs().decode(errors="replace")
    for report in (HOME / "reports").rglob("*"):
        assert report.is_dir() or key.encode() not in report.read_bytes()


def test_current_release_is_the_proven_one(verdict: Callable[[], dict[str, Any]]) -> None:
    current = HOME / "current"
    assert current.is_symlink()
    assert current.resolve().name == verdict()["release"]
    manifest = json.loads((current / "manifest.json").read_text())
    assert {"image", "model", "flags"} <= set(manifest)


@pytest.fixture
def client(demo: Run) -> openai.OpenAI:
    """Client of the deployed service."""
    key = (HOME / "secrets" / "api_key").read_text().strip()
    return openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=key)


def test_answer_depends_on_the_image(client: openai.OpenAI) -> None:
    sys.path.insert(0, str(ROOT / "collections"))
    from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import images as smoke_images

    def ask(name: str) -> str:
        answer = client.chat.completions.create(
            model="tiny-qwen3-vl",
            temperature=0,
            max_tokens=8,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": smoke_images.data_url(name)}},
                        {"type": "text", "text": "What colour is the shape in this image? Answer with one word."},
                    ],
                }
            ],
        )
        return str(answer.choices[0].message.content)

    names = sorted(n for n in smoke_images.IMAGES if "red" in n or "blue" in n)[:12]
    answers = {name: ask(name).lower() for name in names}
    assert any("red" in a for n, a in answers.items() if "red" in n)
    assert any("blue" in a for n, a in answers.items() if "blue" in n)


def test_logprobs_are_returned_and_the_engine_survives(client: openai.OpenAI) -> None:
    for _ in range(2):
        answer = client.chat.completions.create(
            model="tiny-qwen3-vl",
            max_tokens=4,
            logprobs=True,
            top_logprobs=2,
            messages=[{"role": "user", "content": "Say hello. Answer with one word."}],
        )
        given = answer.choices[0].logprobs
        assert given is not None
        assert given.content
        assert all(token.logprob <= 0 for token in given.content)


def test_report_is_one_self_contained_file(verdict: Callable[[], dict[str, Any]]) -> None:
    page = (HOME / "reports" / verdict()["release"] / "report.html").read_text()
    assert verdict()["release"] in page
    assert "http://" not in page.replace(f"http://127.0.0.1:{PORT}", "").replace("http://www.w3.org", "")
    assert "<script src" not in page


def test_check_mode_changes_nothing(demo: Run, playbook: Callable[..., Run]) -> None:
    run = playbook("deploy.yml", cmdline="--check --diff")
    assert run.rc == 0, run.text
    assert run.changed == 0


def test_killed_container_is_started_again_and_proven_by_the_next_run(
    container: Any, playbook: Callable[..., Run], verdict: Callable[[], dict[str, Any]]
) -> None:
    container.kill()
    before = verdict()["finished"]
    healed = playbook("playbooks/verify.yml")
    assert healed.rc == 0, healed.text
    assert healed.changed > 0
    assert verdict()["ok"] is True
    assert verdict()["finished"] != before


def test_rollback_returns_to_the_previous_proven_release(
    playbook: Callable[..., Run], verdict: Callable[[], dict[str, Any]]
) -> None:
    former = (HOME / "current").resolve().name
    changed = playbook("deploy.yml", vllm_service_extra_flags={"max-logprobs": 5})
    assert changed.rc == 0, changed.text
    assert (HOME / "current").resolve().name != former
    back = playbook("playbooks/rollback.yml")
    assert back.rc == 0, back.text
    assert (HOME / "current").resolve().name == former
    assert (verdict()["release"], verdict()["ok"]) == (former, True)
    assert playbook("playbooks/status.yml").changed == 0


def test_corrupt_vision_weights_are_noticed(
    tmp_path: Path, playbook: Callable[..., Run], verdict: Callable[[], dict[str, Any]]
) -> None:
    """A release with a model that answers text but ignores images must not become current."""
    blind = tmp_path / "model"
    shutil.copytree(TINY_MODEL / "model", blind)
    subprocess.run([sys.executable, TINY_MODEL / "corrupt.py", blind], check=True)
    proven = (HOME / "current").resolve().name
    models = [{"repository": "demo/tiny-qwen3-vl", "path": str(blind)}]
    run = playbook("deploy.yml", local_hub_models=models, model_weights_lock="")
    assert run.rc != 0
    proof = verdict()
    assert proof["ok"] is False
    failing = {check["code"] for check in proof["checks"] if not check["ok"]}
    assert any(code.startswith(("colour", "shape", "ocr")) for code in failing)
    assert proof["release"] != proven
    assert (HOME / "current").resolve().name == proven
    healed = playbook("deploy.yml")
    assert healed.rc == 0, healed.text
    assert verdict()["ok"] is True


def test_unreachable_revision_is_a_clear_error(playbook: Callable[..., Run]) -> None:
    before = sorted((HOME / "releases").iterdir())
    run = playbook("deploy.yml", model_weights_revision="no-such-revision")
    assert run.rc != 0
    assert "no-such-revision" in run.text
    assert sorted((HOME / "releases").iterdir()) == before
    assert playbook("deploy.yml").rc == 0


def test_interrupted_release_is_ignored(playbook: Callable[..., Run]) -> None:
    left_over = HOME / "releases" / ".tmp-interrupted"
    left_over.mkdir()
    (left_over / "compose.yaml").write_text("half")
    run = playbook("deploy.yml")
    assert run.rc == 0, run.text
    assert all((path / "manifest.json").exists() for path in (HOME / "releases").iterdir() if path.is_dir())


def test_teardown_removes_only_the_deployment(
    engine: docker.DockerClient, host: Any, playbook: Callable[..., Run]
) -> None:
    bystander = engine.volumes.create("bystander-of-the-demo")
    try:
        # Like `make demo-down`: values from the command line are strings.
        run = playbook("playbooks/teardown.yml", cmdline="-e teardown_remove_data=true -e teardown_stop_docker=false")
        assert run.rc == 0, run.text
        assert engine.volumes.get(bystander.name)
        assert engine.containers.list(all=True, filters={"label": f"com.docker.compose.project={PROJECT}"}) == []
        assert not [v.name for v in engine.volumes.list() if v.name.startswith(PROJECT)]
        assert not [n.name for n in engine.networks.list() if n.name.startswith(PROJECT)]
        assert not HOME.exists()
        assert not host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
        assert not host.socket("tcp://127.0.0.1:18080").is_listening
    finally:
        bystander.remove()
