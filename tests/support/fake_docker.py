"""HTTP server that implements the Docker API for one container, for tests with the Docker SDK."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GIB = 2**30
NAME = "vllm-vllm-1"
IMAGE = "sha256:0123"
TOOL = "the-tool"


def requesting(**gpus: Any) -> dict[str, Any]:
    """A compose file whose service requests GPUs, such as ``device_ids=[...]`` or ``count=2``."""
    entry = {"driver": "nvidia", "capabilities": ["gpu"], **gpus}
    return {"services": {"vllm": {"deploy": {"resources": {"reservations": {"devices": [entry]}}}}}}


def device_requests(compose: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What Compose asks of Docker for the GPUs of service ``vllm``; it fills in no IDs where only a count is given."""
    service = (compose.get("services") or {}).get("vllm") or {}
    reservations = ((service.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    return [
        {
            "Driver": entry.get("driver", ""),
            "Count": -1 if entry.get("count") == "all" else int(entry.get("count") or 0),
            "DeviceIDs": list(entry["device_ids"]) if "device_ids" in entry else None,
            "Capabilities": [list(entry["capabilities"])],
            "Options": None,
        }
        for entry in reservations.get("devices") or ()
    ] or None


@dataclass
class FakeTool:
    """Simulated container that runs a benchmark tool in the engine image and writes a result and a log.

    Attributes:
        result: Content of the result file; None for no file.
        code: Exit code; None if the tool never ends.
        image: Whether the image exists.
    """

    result: str | None = "{}"
    code: int | None = 0
    log: str = "done"
    image: bool = True
    made: list[dict[str, Any]] = field(default_factory=list)
    archives: list[bytes] = field(default_factory=list)
    removed: int = 0


@dataclass
class FakeContainer:
    """Simulated state of the engine container; tests can change it at any time.

    Attributes:
        used: Memory in GiB, without reclaimable pages.
        grows: GiB added at each reading.
        compose: The compose file that the container was made from; the GPUs that it requests are read from it.
        figures: Whether Docker reports memory; it does not without the kernel's memory controller.
        stops_after: Number of readings after which the container stops; None for never.
    """

    used: float = 3.0
    figures: bool = True
    grows: float = 0.0
    limit: float = 32.0
    restarts: int = 0
    started: str = "2026-01-01T00:00:00.5Z"
    running: bool = True
    compose: Mapping[str, Any] = field(default_factory=dict)
    restarts_after: int | None = None
    stops_after: int | None = None
    readings: int = 0
    mounts: tuple[tuple[str, str], ...] = (("/opt/vllm/models/a", "/model"),)
    tool: FakeTool | None = None
    paths: list[str] = field(default_factory=list)

    def inspected(self) -> dict[str, Any]:
        return {
            "Image": IMAGE,
            "Config": {"User": "2000:0"},
            "Mounts": [{"Type": "bind", "Source": source, "Destination": target} for source, target in self.mounts],
            "RestartCount": self.restarts,
            "State": {"Running": self.running, "StartedAt": self.started},
            "HostConfig": {"Memory": int(self.limit * GIB), "DeviceRequests": device_requests(self.compose)},
        }

    def stats(self) -> dict[str, Any]:
        self.readings += 1
        self.used += self.grows
        if self.stops_after is not None and self.readings > self.stops_after:
            self.running = False
        if self.restarts_after == self.readings:
            self.restarts, self.started = self.restarts + 1, "2026-01-01T00:07:00Z"
        if not self.running or not self.figures:
            return {"memory_stats": {}}
        return {"memory_stats": {"usage": int((self.used + 1) * GIB), "stats": {"inactive_file": GIB, "anon": 7}}}

    def top(self) -> dict[str, Any]:
        half = str(int(self.used * GIB / 1024 / 2))
        return {"Titles": ["PID", "RSS"], "Processes": [["7", half], ["8", half]] if self.running else []}


class _Handler(BaseHTTPRequestHandler):
    container: FakeContainer

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self.container.paths.append(self.path)
        path = self.path.partition("?")[0]
        if path.endswith("/version"):
            self._send(200, {"ApiVersion": "1.47", "Version": "27.0", "MinAPIVersion": "1.24"})
        elif path.endswith(f"/containers/{NAME}/json"):
            self._send(200, self.container.inspected())
        elif path.endswith(f"/containers/{NAME}/stats"):
            self._send(200, self.container.stats())
        elif path.endswith(f"/containers/{NAME}/top"):
            self._send(200, self.container.top())
        elif path.endswith(f"/images/{IMAGE}/json") and self.container.tool and self.container.tool.image:
            self._send(200, {"Id": IMAGE})
        elif path.endswith(f"/containers/{TOOL}/json") and (tool := self.container.tool):
            ended = tool.code is not None
            self._send(200, {"State": {"Status": "exited" if ended else "running", "ExitCode": tool.code or 0},
                             "Config": {"Tty": True}})  # fmt: skip
        elif path.endswith(f"/containers/{TOOL}/logs") and (tool := self.container.tool):
            self._send_bytes(tool.log.encode())
        elif path.endswith(f"/containers/{TOOL}/archive") and (tool := self.container.tool) and tool.result is not None:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                entry = tarfile.TarInfo("vllm-bench.json")
                entry.size = len(tool.result.encode())
                archive.addfile(entry, io.BytesIO(tool.result.encode()))
            self._send_bytes(buffer.getvalue(), stat="eyJuYW1lIjoiYSJ9")
        else:
            self._send(404, {"message": "No such container"})

    def do_POST(self) -> None:
        tool = self.container.tool
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if tool and "/containers/create" in self.path:
            tool.made.append(json.loads(body))
            self._send(201, {"Id": TOOL})
        elif tool and self.path.endswith("/start"):
            self._send(200, {})
        else:
            self._send(404, {"message": "No such container"})

    def do_PUT(self) -> None:
        assert self.container.tool
        self.container.tool.archives.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self._send(200, {})

    def do_DELETE(self) -> None:
        assert self.container.tool
        self.container.tool.removed += 1
        self._send(200, {})

    def _send_bytes(self, data: bytes, stat: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        if stat:
            self.send_header("X-Docker-Container-Path-Stat", stat)
        self.end_headers()
        self.wfile.write(data)

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_docker(container: FakeContainer) -> Iterator[str]:
    """Serve on a free port on loopback; yields the address in the format of DOCKER_HOST."""
    handler = type("Handler", (_Handler,), {"container": container})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"tcp://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
