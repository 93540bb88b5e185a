"""HTTP server for files by repository, commit and path, in the form of the Hugging Face hub, with byte ranges.

Used by peer.py of this role and hub.py of role local_hub. It runs on hosts and needs only the standard library.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Blob:
    """One file of a repository.

    Attributes:
        path: Name inside the repository, with ``/``.
        file: Path on disk.
        size: In bytes.
        sha256: SHA-256 of the content, as hex.
        oid: Git blob ID of the file in the repository: the content, or with LFS the pointer file.
        lfs: Whether the hub would store the file with LFS. The ETag is then the SHA-256, otherwise the blob ID.
    """

    path: str
    file: Path
    size: int
    sha256: str
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        """Entity tag that identifies this content."""
        return self.sha256 if self.lfs else self.oid


class RequestRefusedError(Exception):
    """Error answer to a request, with HTTP status, hub error code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        """Store the content of the answer."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte that a ``Range`` header requests, or None for the whole file.

    Supports single ranges only; other headers are ignored, as HTTP allows. Raises RequestRefusedError (416) for a range
    outside the file.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        raise RequestRefusedError(416, "RangeNotSatisfiable", f"Range {header} of {size} bytes")
    return start, end


class FileHandler(BaseHTTPRequestHandler):
    """Handles one connection. Each step is a method, so that a test can override it to simulate a fault."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that an idle connection is kept
    disable_nagle_algorithm = True  # otherwise each answer waits for the client's delayed ACK
    server: FileServer

    def version_string(self) -> str:
        """Value of the ``Server`` header."""
        return "file-server"

    def do_GET(self) -> None:
        """Answer a GET request."""
        self.respond()

    def do_HEAD(self) -> None:
        """Answer a HEAD request like GET, without the body."""
        self.respond()

    def respond(self) -> None:
        """Route the request; send a RequestRefusedError as the error answer of the hub."""
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            self.route(parts, query)
        except RequestRefusedError as refusal:
            self.send_json({"error": refusal.message}, refusal.status, {"X-Error-Code": refusal.code})

    def route(self, parts: list[str], query: dict[str, str]) -> None:
        """Send the answer for a path, given as its decoded segments. Subclasses add their paths."""
        raise RequestRefusedError(404, "NotFound", f"No such address: {self.path}")

    def send_file(self, commit: str, blob: Blob) -> None:
        """Send a file of a commit, or the requested part of it."""
        wanted = parse_range(self.headers.get("Range", ""), blob.size)
        start, end = wanted or (0, blob.size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - start + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{blob.size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{blob.etag}"')
        if blob.lfs:
            self.send_header("X-Linked-Etag", f'"{blob.sha256}"')
            self.send_header("X-Linked-Size", str(blob.size))
        self.end_headers()
        if self.command != "HEAD":
            self.send_content(blob, start, end - start + 1)

    def send_content(self, blob: Blob, start: int, length: int) -> None:
        """Send ``length`` bytes of a file, starting at byte ``start``."""
        if length:
            with blob.file.open("rb") as content:
                self.connection.sendfile(content, start, length)

    def send_json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send data as JSON."""
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class FileServer(ThreadingHTTPServer):
    """Listening socket and the served folder, ``<root>/<org>/<name>/``."""

    daemon_threads = True

    def __init__(self, address: str, port: int, root: Path, handler: type[FileHandler]) -> None:
        """Start to listen; port 0 selects a free port. A relative root needs no access to the parent folders."""
        super().__init__((address, port), handler)
        self.root = root

    @property
    def url(self) -> str:
        """Address of the server, for ``HF_ENDPOINT``."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections; print other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def become(name: str) -> None:
    """Switch from root to a user, irrevocably."""
    user = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
