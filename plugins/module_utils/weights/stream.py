"""Download of a file over HTTP, in large pieces.

Uses Python's HTTP client instead of huggingface_hub's: the latter parses 64 KiB at a time in Python, needs three times
the processor time, and so is slower than hashing the same bytes. huggingface_hub still provides listings, addresses,
headers, trusted certificates and the meaning of errors.
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
RECORD_BYTES = 16 << 10  # size of a TLS record
GATHER_SECONDS = 0.25


class BrokenStreamError(Exception):
    """The connection failed, before or within the body."""


@dataclass(frozen=True)
class Stream:
    """A response before its body is read.

    Attributes:
        status: HTTP status.
        headers: Headers; ``get`` ignores case.
        pieces: The body; raises BrokenStreamError when the connection fails.
    """

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects with headers for each address, so that no secret is sent to another host."""

    def __init__(self, headers_for: Callable[[str], Mapping[str, str]]) -> None:
        self._headers_for = headers_for

    def redirect_request(  # noqa: PLR0917 - the arguments are urllib's
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request:
        """The request to the next address."""
        return _request(newurl, self._headers_for)


def _request(url: str, headers_for: Callable[[str], Mapping[str, str]]) -> urllib.request.Request:
    # Addresses come from huggingface_hub and from redirects; the handlers below support http(s) only.
    return urllib.request.Request(url, headers=dict(headers_for(url)))  # noqa: S310


@contextmanager
def stream(
    url: str,
    headers_for: Callable[[str], Mapping[str, str]],
    timeout: float,
    context: ssl.SSLContext,
    direct: bool = False,
) -> Iterator[Stream]:
    """Request an address, through the environment's proxies, and follow redirects.

    Args:
        url: The address.
        headers_for: Returns the headers for an address; called for each redirect, and may raise to refuse it.
        timeout: Seconds without a byte after which the connection is closed.
        context: The trusted certificates.
        direct: Use no proxy.

    Raises:
        BrokenStreamError: No response.
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
    except urllib.error.HTTPError as error:  # also a response, with an error status
        answer = error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenStreamError(_reason(error)) from error
    with closing(answer):
        most = RECORD_BYTES if answer.url.startswith("https:") else PIECE_BYTES
        yield Stream(answer.status, answer.headers, _pieces(answer.read1, most))


def _pieces(read: Callable[[int], bytes], most: int, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """Pieces of at most ``most`` bytes from ``read``; small reads in quick succession become one piece.

    Each piece costs its receiver a hash and a write, both of which wait for other threads. With pieces of one TLS
    record this takes half of the processor time.
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
        if parts:  # including those before a broken connection
            yield b"".join(parts)
        elif broken is None:
            return
    raise BrokenStreamError(_reason(broken)) from broken


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
