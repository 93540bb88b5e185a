"""Peer server: serves the model files of this host to the other hosts of a deployment, while the deployment runs.

``peer.py start`` reads its settings from standard input, opens the port and runs in the background; ``peer.py stop``
stops it. It answers only these requests, and only to clients that send the token of the run:

* ``GET /api/held/<org>/<name>/<commit>``: the verified files of that commit, whether the commit is complete, and the
  progress of its download.
  * ``GET /<org>/<name>/resolve/<commit>/<path>``: one of those files or a part of it (``Range``), like the hub.

It is not an authority on the content of a commit: clients verify the files against a lock or the hub. It stops after
some time without requests, so that an interrupted run leaves no open port.

Settings, as JSON: ``address`` and ``port`` to listen at, ``models`` (the folder of all models), ``user`` to run as,
``token``, ``uploads`` (number of hosts to serve concurrently), ``idle`` (seconds without a request after which it
stops), ``allow_public`` (accept a public IP address).
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import ipaddress
import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from file_server import REPOSITORY_NAME, Blob, FileHandler, FileServer, RequestRefusedError, become

COMMIT = re.compile(r"[0-9a-f]{40}")
TOKEN_BYTES = 32  # a shorter token could be guessed
PID_FILE = Path(__file__).with_name("peer.pid")
STOP_SECONDS = 10.0
SPAN_BYTES = 4 << 20
# A receiver is slow if, after SLOW_SECONDS, it receives less than LEAST_RATE bytes per second or less than LEAST_PART
# of the fastest receiver's rate.
SLOW_SECONDS, LEAST_RATE, LEAST_PART = 2.0, 1e6, 0.1


@dataclass(eq=False)
class Upload:
    """A file transfer in progress: its receiver, start time and bytes sent."""

    receiver: str
    begin: float
    sent: int = 0

    def counts(self, now: float, fastest: float) -> bool:
        """Whether the transfer counts towards the limit; one to a slow receiver does not."""
        seconds = now - self.begin
        return seconds < SLOW_SECONDS or self.sent >= seconds * max(LEAST_RATE, LEAST_PART * fastest)


class PeerHandler(FileHandler):
    """Handles one connection of another host."""

    server: PeerServer
    upload: Upload | None = None

    def respond(self) -> None:
        """Check the token and route the request."""
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(errors="replace"), f"Bearer {self.server.token}".encode()):
            self.close_connection = True
            self.send_json({"error": "Wrong token"}, 401)
            return
        self.server.asked_at = time.monotonic()
        super().respond()

    def route(self, parts: list[str], query: dict[str, str]) -> None:
        """Send the answer for a path, given as its decoded segments."""
        match parts:
            case ["api", "held", org, name, commit]:
                self.send_json(self.server.report(f"{org}/{name}", commit))
            case [org, name, "resolve", commit, *path] if path:
                self.send_held(f"{org}/{name}", commit, "/".join(path))
            case _:
                super().route(parts, query)

    def send_held(self, name: str, commit: str, path: str) -> None:
        """Send a file that this host has, or 429 if the limit of concurrent transfers is reached."""
        file = self.server.held(name, commit).get(path)
        if file is None:
            raise RequestRefusedError(404, "EntryNotFound", "This host does not have that file")
        self.upload = self.server.begin_upload(self.headers.get("X-Peer", ""))
        if self.upload is None:
            self.send_json({"error": "Busy"}, 429, {"Retry-After": "1"})
            return
        try:
            with file.open("rb") as content:
                seen = os.fstat(content.fileno())
                # By file descriptor: the file is renamed if its commit becomes complete during the transfer.
                opened = Path(f"/proc/self/fd/{content.fileno()}")
                blob = Blob(path, opened, seen.st_size, "", f"{seen.st_size:x}-{seen.st_mtime_ns:x}", lfs=False)
                self.send_file(commit, blob)
        except FileNotFoundError:
            raise RequestRefusedError(404, "EntryNotFound", "This host does not have that file any more") from None
        finally:
            self.server.end_upload(self.upload)

    def send_content(self, blob: Blob, start: int, length: int) -> None:
        """Send ``length`` bytes of a file, starting at byte ``start``."""
        with blob.file.open("rb") as content:
            for begin in range(start, start + length, SPAN_BYTES):
                span = min(SPAN_BYTES, start + length - begin)
                self.connection.sendfile(content, begin, span)
                if self.upload is not None:
                    self.upload.sent += span


class PeerServer(FileServer):
    """Listening socket and the folder of all models."""

    request_queue_size = 128  # all hosts may connect at the same time

    def __init__(
        self,
        address: str,
        port: int,
        root: Path,
        handler: type[FileHandler] = PeerHandler,
        *,
        token: str = "",
        uploads: int = 2,
    ) -> None:
        """Start to listen; port 0 selects a free port."""
        super().__init__(address, port, root, handler)
        self.token = token
        self.asked_at = time.monotonic()
        self._mutex = threading.Lock()
        self._most, self._uploads = uploads, set[Upload]()
        self._fastest = 0.0

    def begin_upload(self, receiver: str) -> Upload | None:
        """Register a transfer; None if the limit of concurrent receivers is reached."""
        upload = Upload(receiver, time.monotonic())
        with self._mutex:
            served = {each.receiver for each in self._uploads if each.counts(upload.begin, self._fastest)}
            if len(served - {receiver}) >= self._most:
                return None
            self._uploads.add(upload)
        return upload

    def end_upload(self, upload: Upload) -> None:
        """Unregister a transfer."""
        with self._mutex:
            self._uploads.remove(upload)
            self.asked_at = time.monotonic()
            if upload.sent >= SPAN_BYTES:
                self._fastest = max(self._fastest, upload.sent / (self.asked_at - upload.begin))

    def report(self, name: str, commit: str) -> dict[str, Any]:
        """Verified files of a commit on this host, and the progress of its download."""
        base = self._base(name, commit)
        progress = None
        with contextlib.suppress(OSError, ValueError, KeyError):
            figures = json.loads((base / ".progress.json").read_text())
            progress = [figures["phase"], figures["done"]]
        return {
            "files": sorted(self.held(name, commit)),
            "complete": (base / commit).is_dir(),
            "progress": progress,
        }

    def held(self, name: str, commit: str) -> dict[str, Path]:
        """Verified files of a commit by name. Raises RequestRefusedError for an invalid name or commit."""
        base = self._base(name, commit)
        for folder in (base / commit, base / f".incomplete-{commit}" / "files"):
            if folder.is_dir():
                found = [Path(place) / file for place, _folders, files in os.walk(folder) for file in files]
                return {p.relative_to(folder).as_posix(): p for p in found if p.is_file() and not p.is_symlink()}
        return {}

    def _base(self, name: str, commit: str) -> Path:
        if not REPOSITORY_NAME.fullmatch(name) or any(part.startswith(".") for part in name.split("/")):
            raise RequestRefusedError(404, "RepoNotFound", "Repository not found")
        if not COMMIT.fullmatch(commit):
            raise RequestRefusedError(404, "RevisionNotFound", "Files are served by commit only")
        return self.root / name

    def end_when_idle(self, seconds: float) -> None:
        """Stop the server after ``seconds`` without a request and without a transfer."""
        while time.monotonic() - self.asked_at < seconds or self._uploads:
            time.sleep(min(1.0, seconds / 10))
        self.shutdown()


def check(settings: dict[str, Any]) -> str | None:
    """Reason to refuse these settings, or None."""
    try:
        address = ipaddress.IPv4Address(settings["address"])
    except ValueError:
        return (
            f"[peer_address] model_weights_peer_address is {settings['address']!r}, which is not an IPv4 address. "
            "Fix: set it to the address of this host in the network of the other hosts."
        )
    if address.is_unspecified:
        return (
            f"[peer_address] model_weights_peer_address is {address}, which means all networks. "
            "Fix: set the address at which the other hosts reach this host."
        )
    if address.is_global and not settings["allow_public"]:
        return (
            f"[peer_address] model_weights_peer_address is {address}, a public IP address. "
            "Fix: set an address of the local network, or set model_weights_peer_unsafe_allow_public: true."
        )
    if len(settings["token"]) < TOKEN_BYTES:
        return f"[peer_token] The token has fewer than {TOKEN_BYTES} characters. Fix: use a longer token."
    return None


def running() -> int | None:
    """PID of the running peer server, or None."""
    try:
        pid = int(PID_FILE.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(Path(__file__)).encode() in command else None


def ended(pid: int) -> bool:
    """Whether a process has released its port: it is gone or a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1  # noqa: PTH208 - names are enough
    except OSError:
        return True


def stop() -> bool:
    """Stop the running peer server. Returns whether one was running."""
    pid = running()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while not ended(pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)
    PID_FILE.unlink(missing_ok=True)
    return pid is not None


def start(settings: dict[str, Any]) -> str | None:
    """Open the port and serve in the background. Returns the reason if the settings are refused, or None."""
    problem = check(settings)
    if problem is not None:
        return problem
    stop()  # the server of an interrupted run has another token
    os.chdir(settings["models"])  # the other user needs no access to the parent folders
    where = f"{settings['address']}:{settings['port']}"
    try:
        server = PeerServer(
            settings["address"],
            settings["port"],
            Path(),
            token=settings["token"],
            uploads=settings["uploads"],
        )
    except OSError as error:
        return (
            f"[peer_port] {where} cannot be opened: {error.strerror}. Fix: set model_weights_peer_address to an "
            "address of this host, and model_weights_peer_port to a free port."
        )
    with PID_FILE.open("w") as note:  # while still root
        if settings["user"]:
            become(settings["user"])
        process = os.fork()
        if process:
            note.write(f"{process}\n")
            return None
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    threading.Thread(target=server.end_when_idle, args=[settings["idle"]], daemon=True).start()
    server.serve_forever(poll_interval=0.2)
    os._exit(0)


def main() -> int:
    """Run the command line. Returns the exit status and prints the reason of a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    if parser.parse_args().action == "stop":
        stop()
        return 0
    problem = start(json.loads(sys.stdin.read()))
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
