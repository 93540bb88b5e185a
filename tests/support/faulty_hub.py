"""The local hub, extended to record requests and to inject faults."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ansible_collections.inference.vllm.plugins.module_utils.weights.progress import Pace

__all__ = [
    "FOR_EVER",
    "HUB_FILE",
    "PEER_FILE",
    "SERVER_FILE",
    "Fault",
    "FaultyHub",
    "FaultyPeer",
    "RequestRefusedError",
    "file_server",
    "hub",
    "peer",
    "running",
    "serving",
    "write_model",
]

ROLES = Path(__file__).parents[2] / "roles"
HUB_FILE = ROLES / "local_hub" / "files" / "hub.py"
SERVER_FILE = ROLES / "model_weights" / "files" / "file_server.py"
PEER_FILE = ROLES / "model_weights" / "files" / "peer.py"

if TYPE_CHECKING:
    import file_server
    import hub
    import peer
    from file_server import Blob, FileHandler, FileServer, RequestRefusedError
    from hub import HubHandler, HubServer
    from peer import PeerHandler, PeerServer
else:  # the files of roles are not in a package

    def _load(file: Path) -> Any:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        return module

    file_server, hub, peer = _load(SERVER_FILE), _load(HUB_FILE), _load(PEER_FILE)
    PeerHandler, PeerServer = peer.PeerHandler, peer.PeerServer
    HubHandler, HubServer = hub.HubHandler, hub.HubServer
    Blob, FileHandler, FileServer = file_server.Blob, file_server.FileHandler, file_server.FileServer
    RequestRefusedError = file_server.RequestRefusedError

PIECE_BYTES = 16 << 10
FOR_EVER = -1


@dataclass
class Fault:
    """One fault to inject.

    Attributes:
        kind: ``status``: answer ``status`` with ``headers``. ``html``: a page with status 200. ``hang_up``: close
            without an answer. ``redirect``: go to ``to`` plus the path. ``stall``: send nothing for ``at`` seconds.
            For contents: ``cut``: close after ``at`` bytes. ``truncate``: send ``at`` bytes as if they were all.
            ``promise``: announce ``at`` bytes more than come. ``surplus``: send ``at`` bytes more than the file has.
            ``flip``: flip a bit of byte ``at``. ``ignore_range``: send all. ``other_range``: send from another byte.
            For lists: ``list``: also list ``names``. ``commit``: give ``to`` as commit. ``no_size``: leave out sizes.
        on: Pattern of the request paths to which it applies.
        times: Number of times; FOR_EVER for always.
    """

    kind: str
    on: str = "*"
    times: int = 1
    at: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    to: str = ""
    names: tuple[str, ...] = ()


NONE = Fault("none")
Server = TypeVar("Server", bound="FaultyServer")


@dataclass(frozen=True)
class Asked:
    """One received request."""

    method: str
    path: str
    headers: dict[str, str]


class FaultyHandler(FileHandler):
    """Answers like a file server, unless a fault applies."""

    server: FaultyServer
    fault = NONE  # fault of the current answer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing; requests are recorded in ``server.asked``."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.date or super().date_time_string(timestamp)

    def respond(self) -> None:
        self.fault = NONE
        server, path = self.server, self.path.split("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.asked.append(Asked(self.command, path, headers))
        if server.token and headers.get("authorization") != f"Bearer {server.token}":
            self.send_json({"error": "Invalid credentials in Authorization header"}, 401)
            return
        fault = self._take("status", "html", "hang_up", "redirect", "stall")
        match fault.kind:
            case "status":
                self.send_json({"error": "on purpose"}, fault.status, fault.headers)
            case "html":
                self.send_page()
            case "hang_up":
                self.close_connection = True
            case "redirect":
                self.send_response(302)
                self.send_header("Location", fault.to + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
            case _:
                server.ended.wait(fault.at)
                super().respond()

    def send_page(self) -> None:
        body = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.server.was_busy.set()
        if isinstance(data, dict) and "siblings" in data:
            fault = self._take("list", "commit", "no_size")
            data = json.loads(json.dumps(data))
            data["siblings"] += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in fault.names]
            data["sha"] = fault.to or data["sha"]
            for row in data["siblings"] if fault.kind == "no_size" else ():
                row.pop("size", None)
        super().send_json(data, status, headers)

    def send_file(self, commit: str, blob: Blob) -> None:
        self.fault = self._take("cut", "truncate", "promise", "surplus", "flip", "ignore_range", "other_range")
        if self.fault.kind == "ignore_range":
            del self.headers["Range"]
        super().send_file(commit, blob)

    def send_header(self, keyword: str, value: str) -> None:
        fault = self.fault
        if keyword == "Content-Length":
            change = {"promise": fault.at, "surplus": fault.at}.get(fault.kind, 0)
            value = str(fault.at if fault.kind == "truncate" else int(value) + change)
        if keyword == "Content-Range" and fault.kind == "other_range":
            value = value.replace("bytes ", "bytes 1", 1)
        super().send_header(keyword, value)

    def send_content(self, blob: Blob, start: int, length: int) -> None:
        content = bytearray(blob.file.read_bytes()[start : start + length])
        fault, self.fault = self.fault, NONE
        match fault.kind:
            case "cut" | "truncate":
                del content[fault.at :]
            case "surplus":
                content += bytes(fault.at)
            case "flip" if start <= fault.at < start + length:
                content[fault.at - start] ^= 1
        for begin in range(0, len(content), PIECE_BYTES):
            piece = content[begin : begin + PIECE_BYTES]
            # Before the write, so that a client that an alarm kills has not received this chunk.
            self.server.count(len(piece))
            self.wfile.write(piece)
            self.server.slow_down(len(piece))
        if fault.kind in ("cut", "promise"):
            self.close_connection = True

    def _take(self, *kinds: str) -> Fault:
        return self.server.take(kinds, self.path.split("?")[0])


class FaultyServer(FileServer):
    """A file server on a free port on loopback.

    Attributes:
        faults: Faults to inject, in order.
        token: If set, the only accepted token.
        date: Value of the Date header; empty for the real time.
        asked: All requests so far.
        sent: Content bytes sent so far, including the chunk that is sent next.
        rate: Content bytes per second of each connection; None for no limit.
        pace: Limits the total rate of all connections.
        was_busy: Set when a request was answered with 429.
        alarms: Callbacks, each called once before the chunk with the given content byte is sent.
    """

    handler: type[FileHandler] = FaultyHandler

    def __init__(self, root: Path, rate: float | None = None) -> None:
        super().__init__("127.0.0.1", 0, root, self.handler)
        self.faults: list[Fault] = []
        self.token = ""
        self.date = ""
        self.asked: list[Asked] = []
        self.sent = 0
        self.rate = rate
        self.pace = Pace(0)
        self.alarms: list[tuple[int, Callable[[], None]]] = []
        self.ended = threading.Event()
        self.was_busy = threading.Event()
        self._mutex = threading.Lock()
        self._open = 0
        self._changed = threading.Condition()

    @property
    def connections(self) -> int:
        """Number of open connections."""
        with self._changed:
            return self._open

    def wait_until_left(self, others: int, seconds: float = 30) -> None:
        """Wait until at most ``others`` connections are open. Connections of a killed client stay open for a moment.

        Raises:
            TimeoutError: More connections are still open after ``seconds``.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._open <= others, seconds):
                raise TimeoutError(f"{self._open} connections are served, more than {others}")

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count the connection before its thread starts."""
        with self._changed:
            self._open += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection and count it until it is closed."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def take(self, kinds: tuple[str, ...], path: str) -> Fault:
        """The next fault of these kinds that applies to a path; decrements its ``times``."""
        with self._mutex:
            for fault in self.faults:
                if fault.times and fault.kind in kinds and fnmatchcase(path, fault.on):
                    fault.times -= fault.times > 0
                    return fault
        return NONE

    def count(self, sent: int) -> None:
        """Count bytes before they are sent, and call due alarms."""
        with self._mutex:
            self.sent += sent
            due = [ring for limit, ring in self.alarms if limit <= self.sent]
            self.alarms = [alarm for alarm in self.alarms if alarm[0] > self.sent]
        for ring in due:
            ring()

    def slow_down(self, sent: int) -> None:
        """Limit the rate, after bytes were sent: also a slow server sends its first ones at once."""
        time.sleep(sent / self.rate if self.rate else self.pace.wait(sent))

    def files_asked(self) -> list[str]:
        """Names of the requested files, in order."""
        return [asked.path.split("/", 5)[5] for asked in self.asked if "/resolve/" in asked.path]


class FaultyHubHandler(FaultyHandler, HubHandler):
    """Answers like the local hub, unless a fault applies."""

    server: FaultyHub


class FaultyHub(FaultyServer, HubServer):
    """A hub on a free port on loopback."""

    handler = FaultyHubHandler


class FaultyPeerHandler(FaultyHandler, PeerHandler):
    """Answers like the peer server, unless a fault applies."""

    server: FaultyPeer


class FaultyPeer(FaultyServer, PeerServer):
    """A peer server on a free port on loopback, for the folder of all models."""

    handler = FaultyPeerHandler


@contextmanager
def running(root: Path, rate: float | None = None) -> Iterator[FaultyHub]:
    """Run a hub that serves a folder, until the block ends."""
    with serving(FaultyHub(root, rate)) as server:
        yield server


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def write_model(root: Path, name: str, files: dict[str, bytes]) -> Path:
    """Create the folder of a repository with these files."""
    folder = root / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder
