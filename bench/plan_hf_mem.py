"""Run hf-mem with the hub at HF_ENDPOINT. The tool itself supports only the public hub.

Runs in the virtual environment of hf-mem, not in the project's: its libraries are imported by name.
"""

import importlib
import os
from typing import Any
from urllib.parse import urlsplit

HUB = urlsplit(os.environ["HF_ENDPOINT"])


def redirect(client: Any, transport: Any) -> None:
    """Redirect every client of this HTTP library to the local hub."""

    class LocalHub(transport):
        async def handle_async_request(self, request: Any) -> Any:
            request.url = request.url.copy_with(scheme=HUB.scheme, host=HUB.hostname, port=HUB.port)
            request.headers["Host"] = HUB.netloc
            return await super().handle_async_request(request)

    start = client.__init__

    def local(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **(options | {"transport": LocalHub(), "http2": False}))

    client.__init__ = local


if __name__ == "__main__":
    http = importlib.import_module("httpx2")
    redirect(http.AsyncClient, http.AsyncHTTPTransport)
    importlib.import_module("hf_mem.cli").main()
