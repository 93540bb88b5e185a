"""A web server for pictures inside the engine's container, on port 9000: one is there, two are elsewhere.

``/here`` is a red picture, ``/moved`` leads to it, ``/away`` leads to the engine's own metrics by another name.
"""

import http.server
import struct
import zlib


def chunk(kind: bytes, data: bytes) -> bytes:
    """One part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


RED = b"".join(
    [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress((b"\0" + b"\xff\0\0" * 32) * 32)),
        chunk(b"IEND", b""),
    ]
)
ELSEWHERE = {"/moved": "http://localhost:9000/here", "/away": "http://127.0.0.1:8000/metrics"}


class Pictures(http.server.BaseHTTPRequestHandler):
    """Answers GET."""

    def do_GET(self) -> None:
        """The picture, or where it is."""
        self.send_response(302 if self.path in ELSEWHERE else 200)
        if self.path in ELSEWHERE:
            self.send_header("Location", ELSEWHERE[self.path])
        else:
            self.send_header("Content-Type", "image/png")
        self.end_headers()
        if self.path not in ELSEWHERE:
            self.wfile.write(RED)


http.server.HTTPServer(("127.0.0.1", 9000), Pictures).serve_forever()
