"""Web server for images inside the engine container, on port 9000.

``/here`` is a red image, ``/moved`` redirects to it, ``/away`` redirects to the engine's metrics under another host.
"""

import http.server
import struct
import zlib


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


RED = b"".join(
    [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress((b"\0" + b"\xff\0\0" * 32) * 32)),
        chunk(b"IEND", b""),
    ]
)
REDIRECTS = {"/moved": "http://localhost:9000/here", "/away": "http://127.0.0.1:8000/metrics"}


class Images(http.server.BaseHTTPRequestHandler):
    """Handles GET requests."""

    def do_GET(self) -> None:
        """Send the image or a redirect."""
        self.send_response(302 if self.path in REDIRECTS else 200)
        if self.path in REDIRECTS:
            self.send_header("Location", REDIRECTS[self.path])
        else:
            self.send_header("Content-Type", "image/png")
        self.end_headers()
        if self.path not in REDIRECTS:
            self.wfile.write(RED)


http.server.HTTPServer(("127.0.0.1", 9000), Images).serve_forever()
