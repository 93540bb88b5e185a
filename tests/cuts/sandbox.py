"""A host in a folder: the real playbooks, with stand-ins for Docker's client, the gateway and the checks.

Each flow runs once. After each task that changed anything, the folder is copied: that is the host on which a run was
cut off there. The next run then starts from such a copy.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from support import plans
from support.paths import ROOT

HERE = Path(__file__).parent
GATEWAY_ROLE, CHECK_ROLE = (f"{sys.executable} {HERE / name}" for name in ("gateway_role.py", "check_role.py"))
TINY = yaml.safe_load((ROOT / "catalogue" / "tiny-qwen3-vl.yaml").read_text(encoding="utf-8"))
NOTHING = [{"name": "Nothing", "ansible.builtin.meta": "noop"}]
#: Roles that a cut has nothing to do with; they do nothing.
STUBS = ("preflight", "vram_plan", "model_weights", "engine_image", "benchmark", "deploy_report", "watchdog")
CHECKS = {"smoke_test": "smoke", "vram_check": "vram", "stability": "stability"}
SPARE_PORT = 8001
#: Playbooks and their variables, in order.
Runs = tuple[tuple[str, Mapping[str, object]], ...]


def collection(folder: Path) -> None:
    """The collection with stubs for some roles, all else by links."""
    root = folder / "collections/ansible_collections/inference/vllm"
    (root / "roles").mkdir(parents=True)
    for name in ("plugins", "playbooks", "templates", "catalogue", "meta", "galaxy.yml"):
        (root / name).symlink_to(ROOT / name)
    for role in (ROOT / "roles").iterdir():
        if role.name not in {*STUBS, *CHECKS, "gateway"}:
            (root / "roles" / role.name).symlink_to(role)
    for stub in STUBS:
        for entry in ("main", "check", "compare", "absent", "prune"):
            _write(root / f"roles/{stub}/tasks/{entry}.yml", NOTHING)
    for checker, check in CHECKS.items():
        _write(root / f"roles/{checker}/tasks/main.yml", [_check_task(check)])
        _write(root / f"roles/{checker}/meta/main.yml", {"dependencies": [{"role": "inference.vllm.vllm_check"}]})
    real = ROOT / "roles" / "gateway"
    for part in ("defaults", "vars", "meta"):
        (root / f"roles/gateway/{part}").parent.mkdir(parents=True, exist_ok=True)
        (root / f"roles/gateway/{part}").symlink_to(real / part)
    (root / "roles/gateway/tasks").mkdir()
    (root / "roles/gateway/tasks/shift.yml").symlink_to(real / "tasks/shift.yml")
    _write(
        root / "roles/gateway/tasks/absent.yml",
        [
            {
                "name": "Gateway | Remove it",
                "ansible.builtin.file": {"path": "{{ gateway_run_dir }}/gateway.json", "state": "absent"},
            }
        ],
    )
    _write(
        root / "roles/gateway/tasks/main.yml",
        [
            {
                "name": "Gateway | Apply the settings",
                "ansible.builtin.command": f"{GATEWAY_ROLE} {{{{ vllm_port }}}} {{{{ vllm_home }}}}",
                "changed_when": True,
            }
        ],
    )


def _check_task(check: str) -> dict[str, Any]:
    results = f"{{{{ vllm_check_results['{check}'] | default(['{check}.json']) | join(' ') }}}}"
    release = "{{ smoke_test_release | default(vllm_check_release) }}"
    return {
        "name": f"{check} | Check",
        "ansible.builtin.command": f"{CHECK_ROLE} {check} {{{{ vllm_home }}}} {release} {results}",
        "changed_when": True,
        "environment": {"BAD_CHECKS": "{{ bad_checks | default('') }}", "PYTHONPATH": str(ROOT / "collections")},
    }


def _write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data), encoding="utf-8")


@dataclass
class Host:
    """A host at one moment.

    Attributes:
        folder: Everything that belongs to it: home, Docker's and the gateway's state, lock.
        environment: Where commands find the collection.
    """

    folder: Path
    collections: Path
    log: str = ""
    cuts: list[Path] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """``vllm_home``."""
        return self.folder / "home"

    @property
    def docker(self) -> dict[str, Any]:
        """Docker's state."""
        path = self.folder / "docker.json"
        return json.loads(path.read_text()) if path.exists() else {"containers": [], "down": False}

    def set_docker(self, **values: Any) -> None:
        """Change Docker's state."""
        (self.folder / "docker.json").write_text(json.dumps({**self.docker, **values}))

    def only(self, *releases: str) -> None:
        """No release but these ever becomes healthy."""
        (self.folder / "good_releases").write_text(" ".join(releases))

    @property
    def current(self) -> str:
        """Release that ``current`` names."""
        link = self.home / "current"
        return link.readlink().name if link.is_symlink() else ""

    def play(self, name: str, snapshots: Path | None = None, **variables: Any) -> int:
        """Run a playbook; returns its exit status."""
        self._inventory()
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
            "PATH": f"{self.collections.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SANDBOX": str(self.folder),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callbacks"),
            **({"ANSIBLE_CALLBACKS_ENABLED": "snapshots"} if snapshots else {}),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_GATHERING": "explicit" if name == "status" else "smart",
            "ANSIBLE_INJECT_FACT_VARS": "0",
            "SNAPSHOTS": str(snapshots or ""),
            "PYTHONPATH": str(ROOT / "tests"),
        }
        command: list[str | Path] = [Path(sys.executable).with_name("ansible-playbook"), ROOT / f"playbooks/{name}.yml"]
        command += ["-i", self.folder / "hosts.yml", "-e", json.dumps(variables)]
        with admin_socket(self.folder):
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, cwd=self.folder
            )
        self.log = done.stdout + done.stderr
        if snapshots:
            self.cuts = sorted(snapshots.iterdir())
        return done.returncode

    def load(self, source: Path) -> None:
        """Put the host into the state of a copy. The path stays the same, because releases name it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(source, self.folder, symlinks=True)

    def save(self, target: Path) -> Path:
        """Copy the host."""
        shutil.copytree(self.folder, target, symlinks=True, ignore=shutil.ignore_patterns("admin.sock"))
        return target

    def _inventory(self) -> None:
        values = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "vllm_accelerator": "cpu",
            "vllm_model": "tiny-qwen3-vl",
            "vllm_home": str(self.home),
            "vllm_lock_file": str(self.folder / "run.lock"),
            "gateway_enabled": True,
            "gateway_run_dir": str(self.folder),
        }
        _write(self.folder / "hosts.yml", {"vllm": {"hosts": {"gpu1": values}}})


def deployed(host: Host, runs: Runs, states: dict[str, Path]) -> Path:
    """A copy of a host after some runs; each is made once."""
    key = json.dumps(runs)
    if key not in states:
        if runs:
            host.load(deployed(host, runs[:-1], states))
            name, variables = runs[-1]
            assert host.play(name, None, **variables) == 0, host.log
        states[key] = host.save(host.folder.with_name(f"state{len(states)}"))
    return states[key]


def new_host(folder: Path) -> Host:
    """A host with a plan, an image and weights, and nothing else."""
    (folder / "bin").mkdir(parents=True)
    collection(folder)
    client = folder / "bin" / "docker"
    client.write_text(f"#!{sys.executable}\n" + (HERE / "docker_client.py").read_text(encoding="utf-8"))
    client.chmod(0o755)
    host = Host(folder / "host", folder / "collections")
    weights = host.home / "models" / TINY["repository"]
    weights.mkdir(parents=True)
    (host.home / "plan.json").write_text(plans.cpu_plan().to_json())
    (host.home / "image.json").write_text(plans.built_image().to_json())
    (weights / "lock.json").write_text(plans.lock("tiny-qwen3-vl").to_json())
    return host


class _Gateway(threading.Thread):
    """HAProxy's admin socket: two engines, up when their container gives tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.path = folder / "admin.sock"
        self.path.unlink(missing_ok=True)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(str(self.path))
        self.server.listen()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            with client:
                command = b""
                while not command.endswith(b"\n"):
                    command += client.recv(65536)
                client.sendall(self.answer(command.decode().strip()).encode())

    def answer(self, command: str) -> str:
        file = self.folder / "gateway.json"
        state = json.loads(file.read_text())
        containers = json.loads((self.folder / "docker.json").read_text())["containers"]
        projects = {"engine": "vllm", "spare": "vllm-spare"}
        for part in command.split(";"):
            words = part.split()
            if words[:2] == ["set", "server"] and words[3] == "state":
                state["servers"][words[2].split("/")[1]] = words[4]
                file.write_text(json.dumps(state))
        up = {
            name: any(b["project"] == projects[name] and b["running"] and b["health"] == "healthy" for b in containers)
            for name in state["servers"]
        }
        if command.startswith("show servers state"):
            bits = {"ready": 0, "drain": 8, "maint": 1}
            head = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state"
            rows = [
                f"1 engines {i} {n} 127.0.0.1 {2 if up[n] and s == 'ready' else 0} {bits[s]}"
                for i, (n, s) in enumerate(state["servers"].items(), 1)
            ]
            return "1\n" + head + "\n" + "\n".join(rows) + "\n\n"
        if command.startswith("show stat"):
            return "# svname,scur,qcur\n" + "".join(f"{name},0,0\n" for name in state["servers"])
        return "\n"


@contextmanager
def admin_socket(folder: Path) -> Iterator[None]:
    """The admin socket, where the gateway was set up."""
    if not (folder / "gateway.json").exists():
        yield
        return
    gateway = _Gateway(folder)
    gateway.start()
    try:
        yield
    finally:
        gateway.server.close()
        gateway.path.unlink(missing_ok=True)
