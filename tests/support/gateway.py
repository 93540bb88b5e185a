"""A real HAProxy on this machine, with the configuration that role gateway would write."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ansible_collections.inference.vllm.plugins.module_utils.gateway import design as gateway
from ansible_collections.inference.vllm.plugins.module_utils.gateway import store as gateway_store
from support.plain_engine import PATIENCE, Engine

ROOT = Path(__file__).parents[2]
#: HAProxy under test; the environment variable selects another version.
PROGRAM = os.environ.get("HAPROXY", "/usr/sbin/haproxy")
CHECK = [PROGRAM, "-c", "-f", gateway_store.CONFIG_PLACEHOLDER]

ALICE = "sk-alice-0123456789abcdefghijklmnop"
BOB = "sk-bob-9876543210zyxwvutsrqponmlkj"
KEYS = [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB}]


def defaults(role: str) -> dict[str, Any]:
    """Defaults of a role, not templated."""
    return dict(yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text()))


def settings(**given: Any) -> dict[str, Any]:
    """Settings that role gateway passes to the filter, with its defaults."""
    computed = {
        "metrics": True,
        "gateway_tls_names": ["gpu1.example.org", "192.0.2.10"],
        "gateway_backends": [{"name": "engine", "address": "127.0.0.1", "port": 8000}],
        "gateway_keys": KEYS,
    }
    return {**defaults("vllm"), **defaults("gateway"), **computed, **given}


def rendered(values: Mapping[str, Any]) -> str:
    """Render haproxy.cfg."""
    # Same settings as in Ansible.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("haproxy.cfg.j2").render(values)


def free_ports(count: int) -> list[int]:
    """Free ports on 127.0.0.1."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Gateway:
    """HAProxy in front of engines; a context manager."""

    def __init__(self, folder: Path, *engines: Engine, **given: Any) -> None:
        """Choose ports and settings without starting HAProxy."""
        self.port, self.metrics_port = free_ports(2)
        self.folder = folder
        self.socket = folder / "run" / "admin.sock"
        self.log_file = folder / "log"
        self.engine_key = engines[0].key
        self.given = {
            "gateway_bind_address": "127.0.0.1",
            "gateway_tls": "disabled",
            "gateway_port": self.port,
            "gateway_metrics_port": self.metrics_port,
            "gateway_run_dir": str(self.socket.parent),
            "gateway_health_interval": 1,
            # One test sends more requests than the default allows.
            "gateway_requests_per_minute": 10**6,
            "gateway_backends": [{"name": e.name, "address": "127.0.0.1", "port": e.port} for e in engines],
            **given,
        }
        self.store = gateway_store.Store(folder / "etc")
        self.certificate = self.private_key = ""
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, **given: Any) -> None:
        """Write the configuration, optionally with other settings."""
        self.given |= given
        design = gateway.design(settings(**self.given))
        parts = (rendered(design["config"]), design["keys_map"], self.engine_key, self.certificate, self.private_key)
        self.store.write(gateway_store.assemble(*parts), CHECK)

    def __enter__(self) -> Gateway:
        """Start HAProxy and wait until it listens."""
        self.socket.parent.mkdir(mode=0o700)
        self.configure()
        with self.log_file.open("wb") as log:
            command = [PROGRAM, "-W", "-db", "-f", str(self.store.link / gateway.CONFIG_FILE)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.until(self._listens, "HAProxy listens")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process and its children."""
        assert self._process
        self._process.terminate()
        self._process.wait(PATIENCE)

    def until(self, done: Any, what: str) -> None:
        """Wait until ``done`` returns true; fail with the log after a timeout."""
        end = time.monotonic() + PATIENCE
        while not done():
            assert self._process
            ended = self._process.poll()
            if ended is not None or time.monotonic() > end:
                raise AssertionError(f"never seen: {what}; exit status {ended}\n{self.log()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return self.socket.exists() and probe.connect_ex(("127.0.0.1", self.port)) == 0

    def reload(self, **given: Any) -> None:
        """Write another configuration and reload HAProxy."""
        self.configure(**given)
        before = self.pids()
        assert self._process
        self._process.send_signal(signal.SIGUSR2)
        self.until(lambda: self.pids() - before, "a new worker")
        # The old worker closes the sockets when the new one is ready.
        self.until(lambda: self.log().count("Loading success") == len(self._reloads()) + 1, "the new worker is ready")

    def _reloads(self) -> list[str]:
        return re.findall(r"Reloading HAProxy", self.log())

    def pids(self) -> set[int]:
        """PIDs of the workers, including old ones."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    @property
    def master(self) -> int:
        """PID of the master process."""
        assert self._process
        return self._process.pid

    def log(self) -> str:
        """Output of HAProxy."""
        return self.log_file.read_text(errors="replace")

    def access(self) -> list[dict[str, Any]]:
        """Entries of the access log."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def files(self) -> list[Path]:
        """Files that the store has written."""
        return [Path(folder) / name for folder, _, names in os.walk(self.folder / "etc") for name in names]
