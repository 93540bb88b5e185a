"""Client of a hub: the files of a revision, and the bytes of a file.

Built on huggingface_hub's API client, HTTP session, headers and address rules. Its downloads are not used: after a
crash they start from the first byte, and they check no hash. Module ``stream`` downloads the bytes.
"""

from __future__ import annotations

import importlib
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import (
    COMMIT,
    FileSpec,
    Listing,
    check_paths,
    refuse,
    retry_after_seconds,
)
from ansible_collections.inference.vllm.plugins.module_utils.weights.stream import BrokenStreamError, Stream, stream

if TYPE_CHECKING:
    import httpx2

    from ansible_collections.inference.vllm.plugins.module_utils.weights.store import Sink

HUB = "https://huggingface.co"
LEAST_LIBRARY = 2  # major version of huggingface_hub; the first on httpx2
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
PORTS = {"http": 80, "https": 443}
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # variables that replace the system's certificates

OK, PARTIAL, TIMEOUT, RANGE_REFUSED, SERVER_ERROR = 200, 206, 408, 416, 500

# Codes of temporary failures of the hub, which do not concern the model.
PASSING_CODES = frozenset({"hub_unreachable", "hub_error", "rate_limited"})

# Refusals by the hub's X-Error-Code, otherwise by HTTP status: code, problem, fix.
BY_ERROR_CODE = {
    "GatedRepo": (
        "gated",
        "access must be granted first",
        "Accept the terms at {host}/{repository} with your account, and set token_file to a token of it.",
    ),
    "RevisionNotFound": (
        "revision_not_found",
        "there is no revision {revision!r}",
        "Set revision to a branch, tag or commit shown at {host}/{repository}/commits.",
    ),
    "EntryNotFound": (
        "file_not_found",
        "the file does not exist",
        "Run again; if it fails again, ask the owner of the hub.",
    ),
}
BY_STATUS = {
    401: (
        "unauthorized",
        "it does not exist, is private, or the token is not valid",
        "Check repository; if it is private, set token_file to a valid token of {host}.",
    ),
    403: ("forbidden", "the token may not read it", "Set token_file to a token that may read {repository}."),
    404: (
        "repository_not_found",
        "there is no such repository",
        "Check repository and endpoint; a private one needs token_file.",
    ),
    429: ("rate_limited", "too many requests", "Run again later: finished bytes are kept. A token raises the limit."),
}
HUB_FAULT = ("hub_error", "the hub failed", "Run again later: finished bytes are kept.")
OTHER = ("hub_refused", "no reason given", "Check endpoint, and the proxies between this host and the hub.")


@dataclass(frozen=True)
class Retry:
    """Limits of the retries after failures of a hub.

    Attributes:
        times: Number of consecutive retries without a new byte.
        delay: Seconds before the first retry; doubled for each further one.
        longest: Maximum seconds to wait before a retry, also if the hub asks for more.
    """

    times: int = 5
    delay: float = 1.0
    longest: float = 60.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after this many consecutive failures."""
        return float(min(self.longest, self.delay * 2 ** (failures - 1)))


class HubProblemError(Exception):
    """A request failed; with ``passing`` it may succeed later."""

    def __init__(self, refusal: Refusal, passing: bool, wait: float | None = None) -> None:
        """Store the refusal to raise after the last retry, and the seconds that the hub asked to wait."""
        super().__init__(str(refusal))
        self.refusal, self.passing, self.wait = refusal, passing, wait


class StoppedError(Exception):
    """This download was cancelled because another one failed."""


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address, which identify the receiver."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme, 0)


def check_endpoint(name: str, url: str) -> str:
    """A hub's address without trailing slashes. Raises RefusalError ``bad_endpoint`` for anything else."""
    try:
        scheme, host, _port = origin(url)
        good = scheme in PORTS and bool(host) and not urlsplit(url).username and not urlsplit(url).query
    except ValueError:
        good = False
    if not good:
        refuse("bad_endpoint", f"{name} is {url!r}.", "Write it as https://<host>[:<port>], without user or query.")
    return url.rstrip("/")


@dataclass(frozen=True)
class Answer:
    """An error response: status, the hub's ``X-Error-Code`` (or empty), and the request."""

    status: int
    error_code: str
    url: str

    def explain(self, repository: str, revision: str) -> Refusal:
        """The refusal with its meaning and a fix."""
        fault = HUB_FAULT if self.status >= SERVER_ERROR or self.status == TIMEOUT else OTHER
        code, problem, fix = BY_ERROR_CODE.get(self.error_code) or BY_STATUS.get(self.status) or fault
        names = {
            "host": "{}://{}".format(*urlsplit(self.url)[:2]),
            "repository": repository,
            "revision": revision,
        }
        message = f"{self.url} answered {self.status} for {repository}: {problem.format(**names)}."
        return Refusal(code, message, fix.format(**names))


class Hub:
    """Client of one hub for one repository."""

    def __init__(
        self,
        endpoint: str,
        repository: str,
        *,
        token: str | None,
        token_endpoint: str,
        timeout: float,
        retry: Retry,
        direct: bool = False,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Prepare the session; nothing is sent yet.

        Args:
            endpoint: Address of the hub; empty for huggingface_hub's own default.
            repository: ``<org>/<name>``.
            token: Secret for ``token_endpoint``, or None.
            token_endpoint: Address of the hub of the token. The token is sent to no other host, scheme or port.
            timeout: Seconds without a byte after which a connection is closed.
            retry: Limits of the retries.
            direct: Use no proxy for the bytes of files.
            headers: Additional headers for the bytes of files.

        Raises:
            RefusalError: ``library_missing``, ``bad_certificates`` or ``bad_endpoint``.
        """
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # otherwise a request to the hub before the first one
        try:
            self._library: Any = importlib.import_module("huggingface_hub")
            # Each part is imported by name: one part does not imply another.
            constants: Any = importlib.import_module("huggingface_hub.constants")
            self._errors: Any = importlib.import_module("huggingface_hub.errors")
            self._utils: Any = importlib.import_module("huggingface_hub.utils")
            self._http: Any = importlib.import_module("httpx2")
        except ImportError as error:
            raise _library_missing(f"cannot be imported: {error}") from error
        if int(self._library.__version__.split(".")[0]) < LEAST_LIBRARY:
            raise _library_missing(f"is {self._library.__version__}")
        self.endpoint = check_endpoint("endpoint", endpoint or constants.ENDPOINT)
        self._token_endpoint = check_endpoint("token_endpoint", token_endpoint)
        self._token_origin = origin(self._token_endpoint)
        self._token = token if origin(self.endpoint) == self._token_origin else None
        self._withheld = token is not None and self._token is None
        self._repository, self._timeout, self._retry = repository, timeout, retry
        self._context = _certificates(self._http)
        self._direct, self._headers = direct, headers

    @property
    def is_protected(self) -> bool:
        """Whether the connection is protected from changes by others: TLS, or within this host."""
        scheme, host, _port = origin(self.endpoint)
        return scheme == "https" or host in LOOPBACK

    def guard(self, request: httpx2.Request) -> None:
        """Check each request of the library and each redirect: no token to other hosts, no downgrade from TLS."""
        self._check_way(str(request.url))
        if not self._is_tokens_own(str(request.url)):
            request.headers.pop("authorization", None)

    def headers_for(self, url: str) -> dict[str, str]:
        """The headers for an address, by the same two rules."""
        self._check_way(url)
        token = self._token if self._is_tokens_own(url) else None
        return {**self._utils.build_hf_headers(token=token or False), "Accept-Encoding": "identity", **self._headers}

    def stream(
        self, url: str, headers: Mapping[str, str] = MappingProxyType({}), timeout: float = 0
    ) -> AbstractContextManager[Stream]:
        """Send a request by the same two rules; returns the response before its body.

        Raises:
            BrokenStreamError: No response within ``timeout`` seconds or those of this hub.
        """
        return stream(
            url, lambda url: {**self.headers_for(url), **headers}, timeout or self._timeout, self._context, self._direct
        )

    def _is_tokens_own(self, url: str) -> bool:
        return origin(url) == self._token_origin

    def _check_way(self, url: str) -> None:
        if origin(self.endpoint)[0] == "https" and origin(url)[0] != "https":
            refuse(
                "insecure_redirect",
                f"{self.endpoint} redirects {self._repository} to {url}, which is not encrypted.",
                "Check endpoint, and the proxies between this host and the hub.",
            )

    def listing(self, revision: str) -> Listing:
        """The commit of a revision, and all its files.

        Raises:
            RefusalError: With a code of ``Answer.explain``, or ``hub_unreachable``, ``not_a_hub``, ``unsafe_path``.
        """
        listing: Listing = self._patiently(lambda: self._listing_once(revision), lambda: 0, threading.Event())
        return listing

    def _listing_once(self, revision: str) -> Listing:
        url = f"{self.endpoint}/api/models/{self._repository}/revision/{revision}"
        # The library has one session; another hub may have set its guard in the meantime.
        self._library.set_client_factory(
            lambda: self._http.Client(
                verify=self._context, event_hooks={"request": [self.guard]}, follow_redirects=True
            )
        )
        api = self._library.HfApi(endpoint=self.endpoint, token=self._token or False)
        try:
            info = api.model_info(self._repository, revision=revision, files_metadata=True, timeout=self._timeout)
            files = tuple(_file_spec(sibling) for sibling in info.siblings or ())
            if not COMMIT.fullmatch(info.sha or ""):
                raise ValueError(f"commit {info.sha!r}")
        except (RefusalError, self._http.HTTPError, self._http.InvalidURL, OSError) as error:
            raise self._problem(error, url, revision) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            refusal = Refusal(
                "not_a_hub",
                f"{url} returned no usable answer: {type(error).__name__}: {error}.",
                "Check endpoint: it must implement the protocol of the Hugging Face hub.",
            )
            raise HubProblemError(refusal, passing=False) from error
        check_paths([spec.path for spec in files], self.endpoint)
        return Listing(info.sha, files)

    def download(
        self, commit: str, spec: FileSpec, part: Sink, stop: threading.Event, count: Callable[[int], None]
    ) -> None:
        """Complete a partial file; existing content is not downloaded again.

        Args:
            commit: Of the repository.
            spec: The file.
            part: Receives the bytes.
            stop: Ends the download when set.
            count: Called with the number of bytes of each piece.

        Raises:
            RefusalError: With a code of ``Answer.explain``, or ``hub_unreachable``, ``size_mismatch``.
            StoppedError: When ``stop`` was set.
        """
        url = self._library.hf_hub_url(self._repository, spec.path, revision=commit, endpoint=self.endpoint)

        def receive(piece: bytes) -> None:
            if stop.is_set():
                raise StoppedError
            if part.offset + len(piece) > spec.size:
                part.restart()
                raise HubProblemError(_size_refusal(url, spec, "the hub sent more"), passing=True)
            part.write(piece)
            count(len(piece))

        self._patiently(lambda: self._stream_once(url, commit, spec, part, receive), lambda: part.offset, stop)

    def _stream_once(self, url: str, commit: str, spec: FileSpec, part: Sink, receive: Callable[[bytes], None]) -> None:
        if part.offset == spec.size:  # complete, e.g. after a connection that broke after the last byte
            return
        span = {"Range": f"bytes={part.offset}-"} if part.offset else {}
        try:
            with self.stream(url, span) as answer:
                if answer.status == RANGE_REFUSED:
                    part.restart()
                    raise HubProblemError(_size_refusal(url, spec, "the hub has no more bytes"), passing=True)
                if answer.status not in (OK, PARTIAL):
                    raise self._status_problem(answer.status, answer.headers, url, commit)
                if not _continues(answer, part.offset):
                    part.restart()
                    if answer.status == PARTIAL:
                        raise HubProblemError(_size_refusal(url, spec, "the hub sent another range"), passing=True)
                for piece in answer.pieces:
                    receive(piece)
        except BrokenStreamError as error:
            raise HubProblemError(_unreachable(url, str(error)), passing=True) from error
        if part.offset != spec.size:
            raise HubProblemError(_size_refusal(url, spec, f"the hub ended after {part.offset:,}"), passing=True)

    def _patiently(self, act: Callable[[], Any], progress: Callable[[], int], stop: threading.Event) -> Any:
        """Repeat an action until it succeeds; an attempt with progress resets the count of retries."""
        failures, best = 0, progress()
        while True:
            try:
                return act()
            except HubProblemError as problem:
                failures = 1 if progress() > best else failures + 1
                best = max(best, progress())
                pause = self._retry.wait(failures) if problem.wait is None else problem.wait
                if not problem.passing or failures > self._retry.times or pause > self._retry.longest:
                    raise RefusalError(problem.refusal) from problem
            if stop.wait(pause):
                raise StoppedError

    def _status_problem(self, status: int, headers: Mapping[str, str], url: str, revision: str) -> HubProblemError:
        answer = Answer(status, headers.get("X-Error-Code") or "", url)
        refusal = answer.explain(self._repository, revision)
        if self._withheld:
            note = f" The token was not sent: it belongs to {self._token_endpoint}."
            refusal = Refusal(refusal.code, refusal.message + note, refusal.fix)
        wait = retry_after_seconds(headers.get("Retry-After"), headers.get("Date"))
        if wait is not None and wait > self._retry.longest:
            refusal = Refusal(refusal.code, f"{refusal.message} It asks to wait {wait:.0f} s.", refusal.fix)
        return HubProblemError(refusal, refusal.code in PASSING_CODES, wait)

    def _problem(self, error: Exception, url: str, revision: str) -> Exception:
        """The problem for an exception of the libraries; other exceptions are returned unchanged."""
        http = self._http
        if isinstance(error, self._errors.HfHubHTTPError):
            return self._status_problem(error.response.status_code, error.response.headers, url, revision)
        if isinstance(error, (http.HTTPError, http.InvalidURL, self._errors.OfflineModeIsEnabled)):
            refusal = _unreachable(url, f"{type(error).__name__}: {error}")
            return HubProblemError(refusal, isinstance(error, http.TransportError))
        return error


@cache
def _certificates(http: Any) -> ssl.SSLContext:
    """The trusted certificates, read once: this takes longer than a small download, and each peer is a hub."""
    try:
        context: ssl.SSLContext = http.create_ssl_context()
    except OSError as error:
        named = " and ".join(f"{name}={os.environ[name]}" for name in CERTIFICATES if os.environ.get(name))
        refuse(
            "bad_certificates",
            f"The certificates to trust cannot be read ({named or 'those of the system'}): {error}.",
            f"Install ca-certificates, or set {' or '.join(CERTIFICATES)} to certificates, or unset it.",
        )
    return context


def _library_missing(problem: str) -> RefusalError:
    fix = "Install it into the module's Python (role host_python does), or set ansible_python_interpreter."
    return RefusalError(Refusal("library_missing", f"huggingface_hub >= {LEAST_LIBRARY} {problem}.", fix))


def _file_spec(sibling: Any) -> FileSpec:
    if not isinstance(sibling.size, int) or sibling.size < 0:
        raise ValueError(f"no size of {sibling.rfilename}")
    if sibling.lfs:  # the blob id is of the pointer file, not of the content
        return FileSpec(sibling.rfilename, sibling.size, sibling.lfs.sha256)
    return FileSpec(sibling.rfilename, sibling.size, None, sibling.blob_id)


def _size_refusal(url: str, spec: FileSpec, problem: str) -> Refusal:
    return Refusal(
        "size_mismatch",
        f"{spec.path} must have {spec.size:,} bytes, but {problem}: {url}.",
        "Run again; if it fails again, the hub or its proxy is defective: use another endpoint.",
    )


def _unreachable(url: str, problem: str) -> Refusal:
    return Refusal(
        "hub_unreachable",
        f"{url} does not answer: {problem}.",
        "Check endpoint, DNS, proxy and firewall; without Internet access, use a mirror or a folder with the files.",
    )


def _continues(answer: Stream, offset: int) -> bool:
    """Whether the body begins at the requested byte."""
    if answer.status == OK:
        return offset == 0
    return (answer.headers.get("Content-Range") or "").startswith(f"bytes {offset}-")
