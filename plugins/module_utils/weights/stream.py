"""The bytes of a file over HTTP, in large pieces.

Python's own client, not huggingface_hub's: that one parses 64 KiB at a time in Python, takes three times the processor
time of this one, and so is slower than the hash of the same bytes. Listings, addresses, headers, the trust in
certificates and the meaning of answers stay huggingface_hub's; here is only what happens between a URL and its bytes.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

PIECE_BYTES = 1 << 20
RECORD_BYTES = 16 << 10  # TLS gives no more at once
GATHER_SECONDS = 0.25


class BrokenStreamError(Exception):
    """The connection failed, before or within the body."""


@dataclass(frozen=True)
class Stream:
    """An answer whose body is still to come.

    Attributes:
        status: HTTP status.
        headers: Of the answer; ``get`` ignores case.
        pieces: The body; raises BrokenStreamError when the connection fails.
    """

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects with headers chosen anew for each address: what one host may see is not for the next."""

    def __init__(self, headers_for: Callable[[str], Mapping[str, str]]) -> None:
        self._headers_for = headers_for

    def redirect_request(  # noqa: PLR0917 - the arguments are urllib's
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request:
        """The request to the next address."""
        return _request(newurl, self._headers_for)


def _request(url: str, headers_for: Callable[[str], Mapping[str, str]]) -> urllib.request.Request:
    # Addresses come from huggingface_hub and from redirects; no handler below knows another scheme than http(s).
    return urllib.request.Request(url, headers=dict(headers_for(url)))  # noqa: S310


@contextmanager
def stream(
    url: str,
    headers_for: Callable[[str], Mapping[str, str]],
    timeout: float,
    context: ssl.SSLContext,
    direct: bool = False,
) -> Iterator[Stream]:
    """Ask for an address, through the environment's proxies, and follow redirects.

    Args:
        url: What to get.
        headers_for: The headers for an address; asked for each redirect again, and may raise to refuse it.
        timeout: Seconds without a byte after which the connection counts as dead.
        context: Which certificates to trust.
        direct: Use no proxy.

    Raises:
        BrokenStreamError: Nobody answers.
    """
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler({} if direct else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(headers_for),
    ]
    opener = urllib.request.OpenerDirector()
    opener.addheaders = []
    for handler in handlers:
        opener.add_handler(handler)
    try:
        answer = opener.open(_request(url, headers_for), timeout=timeout)
    except urllib.error.HTTPError as error:  # an answer as well, with a status that is no success
        answer = error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenStreamError(_reason(error)) from error
    with closing(answer):
        most = RECORD_BYTES if answer.url.startswith("https:") else PIECE_BYTES
        yield Stream(answer.status, answer.headers, _pieces(answer.read1, most))


def _pieces(read: Callable[[int], bytes], most: int, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """What ``read`` gives, ``most`` bytes at once; small reads that follow each other closely become one piece.

    Each piece costs its receiver a hash and a write, and each of these a wait for the other threads: over TLS, half of
    the processor's time.
    """
    broken: Exception | None = None
    while broken is None:
        parts: list[bytes] = []
        size, until = 0, clock() + GATHER_SECONDS
        try:
            while size + most <= PIECE_BYTES and (not parts or clock() < until):
                part = read(most)
                if not part:
                    break
                parts.append(part)
                size += len(part)
        except (OSError, http.client.HTTPException) as error:
            broken = error
        if parts:  # also those that came before it broke
            yield b"".join(parts)
        elif broken is None:
            return
    raise BrokenStreamError(_reason(broken)) from broken


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
