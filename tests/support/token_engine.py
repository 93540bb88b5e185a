"""HTTP server that answers /v1/completions with one token like vLLM, or simulates a fault."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEY = "a-key-of-sixteen-letters"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Handles one request."""

    server: Any

    def do_POST(self) -> None:
        """Answer according to the behaviour of the server."""
        behaviour = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen = (self.path, body)
        if behaviour == "hang":
            self.server.ended.wait()
        status = 200 if self.headers["Authorization"] == f"Bearer {KEY}" else 401
        answer: Any = {"usage": {"completion_tokens": 0 if behaviour == "no token" else 1}}
        if behaviour == "nonsense":
            answer = ["nonsense"]
        self.send_response(status)
        self.end_headers()
        if behaviour == "trickle":
            # A byte from time to time prevents the socket timeout.
            while not self.server.ended.wait(0.2):
                self.wfile.write(b" ")
                self.wfile.flush()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def token_engine() -> Iterator[Any]:
    """Serve on a free port: ``server_port``. ``behaviour`` is good, hang, trickle, nonsense or no token.

    An answer that hangs or trickles ends with the block.
    """
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.behaviour = "good"
    server.ended = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
