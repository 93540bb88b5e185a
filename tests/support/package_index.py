"""A package index on loopback, as PEP 503 describes it; or a socket that takes connections and never answers.

As a program, for molecule: package_index.py PORT LOG [FOLDER [PREFIX=STATUS ...]] serves the wheels of FOLDER under
/simple/, or answers nothing where there is none, and writes each request (or connection) as a line into LOG. A path
that begins with PREFIX gets only STATUS, such as /files/=403.
"""

from __future__ import annotations

import contextlib
import html
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

Note = Callable[[str], None]


def index_server(
    folder: Path, note: Note, port: int = 0, faults: Mapping[str, int] | None = None
) -> ThreadingHTTPServer:
    """A server of the wheels in a folder that notes the path of each request; it does not run yet.

    A path that begins with a key of faults gets its value as status, and nothing else.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path)
            note(path)
            for prefix, status in (faults or {}).items():
                if path.startswith(prefix):
                    self.answer(status, "text/html", b"")
                    return
            wheels = sorted(folder.glob("*.whl"))
            for wheel in wheels:
                if path == f"/files/{wheel.name}":
                    self.answer(200, "application/octet-stream", wheel.read_bytes())
                    return
            named = [wheel.name for wheel in wheels if path == f"/simple/{_project(wheel.name)}/"]
            links = "".join(f'<a href="/files/{quote(name)}">{html.escape(name)}</a>\n' for name in named)
            self.answer(200 if named else 404, "text/html", f"<!DOCTYPE html>\n{links}".encode())

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The requests are noted."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


@contextlib.contextmanager
def package_index(folder: Path, faults: Mapping[str, int] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Address of an index of the wheels in a folder, and the paths that were asked for so far."""
    asked: list[str] = []
    server = index_server(folder, asked.append, faults=faults)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/simple", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def silent_index() -> Iterator[tuple[str, list[str]]]:
    """Address of an index that never answers, and one entry for each connection so far."""
    connections: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=stay_silent, args=(listener, connections.append))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/simple", connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextlib.contextmanager
def dropped_index() -> Iterator[str]:
    """Address of an index whose machine drops the packets: connections to it are never made."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        # Nobody accepts, so the queue is full after one connection and Linux drops the packets of the next.
        listener.listen(0)
        for _ in range(2):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/simple"


def stay_silent(listener: socket.socket, note: Note) -> None:
    """Take and note connections until the listener is shut down; they are closed only then."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.enter_context(connection)
            note("connection")


def _project(wheel: str) -> str:
    return re.sub(r"[-_.]+", "-", wheel.partition("-")[0]).lower()


def main(port: str, log: str, folder: str = "", *faults: str) -> None:
    """Serve until the process ends."""
    lock = threading.Lock()

    def note(line: str) -> None:
        with lock, Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    Path(log).touch()
    if folder:
        statuses = {prefix: int(status) for prefix, _, status in (fault.partition("=") for fault in faults)}
        index_server(Path(folder), note, int(port), statuses).serve_forever()
    else:
        stay_silent(socket.create_server(("127.0.0.1", int(port))), note)


if __name__ == "__main__":
    main(*sys.argv[1:])
