"""HTTP server that replaces the engine in tests: answers every path, streams on request, and records all requests.

    python3 plain_engine.py --port 9001 --name blue --key-file /opt/vllm/secrets/api_key

For tests of the gateway. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: Seconds to wait for the engine before a test fails.
PATIENCE = 20


@dataclass
class Request:
    """One received request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Engine:
    """Behaviour of the server, and the requests that it received.

    A request whose JSON body has ``hold`` is answered after ``release`` is set. One with ``events: N`` gets a stream of
    N events, each after one ``step.release()``.
    """

    name: str = "engine"
    key: str = "the-key-that-the-engine-wants"
    port: int = 0
    healthy: bool = True
    breaks: bool = False
    seen: list[Request] = field(default_factory=list)
    holding: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    release: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    step: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def paths(self) -> list[tuple[str, str]]:
        """Method and path of all requests."""
        return [(request.method, request.path) for request in self.seen]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # Tests open a thousand connections at the same time.
    request_queue_size = 2048
    engine: Engine

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def __getattr__(self, name: str) -> Any:
        """Answer every method."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        engine = self.server.engine
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/health" and self.command == "GET":
            self._send(200 if engine.healthy else 503, {})
            return
        engine.seen.append(Request(self.command, self.path, dict(self.headers), body))
        if engine.breaks:
            self.close_connection = True
        elif self.headers.get("Authorization") != f"Bearer {engine.key}":
            self._send(401, {"error": "not the engine's key"})
        else:
            self._obey(engine, self._wishes(body))

    @staticmethod
    def _wishes(body: bytes) -> dict[str, Any]:
        with suppress(ValueError):
            commands = json.loads(body)
            if isinstance(commands, dict):
                return commands
        return {}

    def _obey(self, engine: Engine, commands: Mapping[str, Any]) -> None:
        if "hold" in commands:
            engine.holding.release()
            if not self._held(engine):
                return
        if "events" in commands:
            self._stream(engine, commands["events"])
        else:
            self._send(200, {"engine": engine.name, "path": self.path})

    def _held(self, engine: Engine) -> bool:
        """Wait for the release. Returns false if the client closes the connection before."""
        for _ in range(PATIENCE * 20):
            if engine.release.wait(0.05):
                return True
            if self._is_alone():
                self.close_connection = True
                engine.left.set()
                return False
        return True

    def _is_alone(self) -> bool:
        try:
            readable = select.select([self.connection], [], [], 0)[0]
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True

    def _stream(self, engine: Engine, events: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(events):
            engine.step.acquire(timeout=PATIENCE)
            self._chunk(f"data: {number}\n\n".encode())
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, data: Mapping[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """Serve on 127.0.0.1, on the engine's port or a free port."""
    server = _Server(("127.0.0.1", engine.port), _Handler)
    server.engine = engine
    engine.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield engine
    finally:
        engine.release.set()
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--key-file", type=Path, required=True)
    given = parser.parse_args()
    with running(Engine(given.name, given.key_file.read_text().strip(), given.port)):
        threading.Event().wait()


if __name__ == "__main__":
    main()
