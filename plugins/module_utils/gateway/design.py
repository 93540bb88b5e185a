"""Build the values of HAProxy's configuration and the map of key digests from the settings.

:func:`design` defines which requests pass, the text of each refusal, and the settings that an operator cannot weaken.
The template ``haproxy.cfg.j2`` only formats it.

A path passes if it equals a path of :data:`ENDPOINTS` byte for byte. The engine receives the path of that table,
without a query. So no path needs to be normalised: another spelling is another path.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.api_keys import CHARACTERS, reason_invalid

#: Allowed values of ``gateway_endpoints``, with method and path. The gateway itself always answers /health.
ENDPOINTS = {
    "models": ("GET", "/v1/models"),
    "chat_completions": ("POST", "/v1/chat/completions"),
    "completions": ("POST", "/v1/completions"),
    "embeddings": ("POST", "/v1/embeddings"),
    "responses": ("POST", "/v1/responses"),
}
HEALTH = "/health"

#: A key is hashed once and without salt, which is safe for random keys of at least this length.
MIN_KEY_LENGTH = 32
MAX_KEY_LENGTH = 512
#: Least number of different characters in a key. One in 10^6 keys of 32 random hexadecimal digits has fewer than 9.
MIN_KEY_VARIETY = 8

#: Files of the configuration, all in the folder of haproxy.cfg.
CONFIG_FILE = "haproxy.cfg"
KEYS_FILE = "keys.map"
ENGINE_KEY_FILE = "engine_key.map"
TLS_FILE = "tls.pem"

#: Placeholder in the configuration for the id of a set, which the running HAProxy reports.
SET_ID = "@SET_ID@"

#: Status, type and code of OpenAI's error object, and its text. HAProxy supports no other statuses.
_ERRORS = (
    (400, "invalid_request_error", "bad_request", "The request is not valid HTTP."),
    (401, "authentication_error", "invalid_api_key", "No valid API key: send Authorization: Bearer KEY."),
    (403, "invalid_request_error", "forbidden", "The request is not allowed."),
    (404, "invalid_request_error", "not_found", "Nothing is served under this method and path."),
    (408, "invalid_request_error", "request_timeout", "The request took too long to arrive."),
    (413, "invalid_request_error", "request_too_large", "The request body is too large."),
    (429, "rate_limit_error", "rate_limit_exceeded", "Too many requests with this API key."),
    (500, "api_error", "gateway_error", "The gateway failed."),
    (502, "api_error", "engine_failed", "The engine broke off its answer."),
    (503, "api_error", "no_engine", "No engine is ready."),
    (504, "api_error", "engine_timeout", "The engine did not answer in time."),
)
_LENGTH_REQUIRED = ("invalid_request_error", "length_required", "Send the body with a Content-Length.")
_ERROR_HEADERS = {401: ("WWW-Authenticate", "Bearer"), 429: ("Retry-After", "5"), 503: ("Retry-After", "5")}

#: The access log, one JSON object per line; HAProxy's expressions, escaped for HAProxy.
_LOG = {
    "time": '"%[date,utime(%Y-%m-%dT%H:%M:%SZ)]"',
    "id": '"%[var(txn.id)]"',
    "client": '"%ci"',
    "key": '"%[var(txn.key)]"',
    "method": '"%[var(txn.method),json(utf8s)]"',
    "path": '"%[var(txn.path),json(utf8s)]"',
    "status": "%ST",
    "bytes_in": "%U",
    "bytes_out": "%B",
    "engine": '"%s"',
    "ms": '{"request":%TR,"queue":%Tw,"connect":%Tc,"first_byte":%Tr,"total":%Ta}',
    "end": '"%ts"',
}

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_IMAGE = re.compile(r"([a-z0-9][A-Za-z0-9._/:-]*@)?sha256:[0-9a-f]{64}")
_MAX_PORT = 65535
_FIRST_FREE_PORT = 1024

#: Ranges of the whole numbers among the settings.
_RANGES = {
    "gateway_port": (1, _MAX_PORT),
    "gateway_metrics_port": (1, _MAX_PORT),
    "gateway_max_body_mib": (1, 1024),
    "gateway_requests_per_minute": (1, 10**6),
    "gateway_concurrent_requests": (1, 10**5),
    "gateway_max_connections": (16, 10**5),
    "gateway_connections_per_source": (1, 10**5),
    "gateway_engine_requests": (1, 10**5),
    "gateway_request_timeout": (1, 300),
    "gateway_idle_timeout": (1, 3600),
    "gateway_queue_timeout": (1, 3600),
    "gateway_response_timeout": (1, 86400),
    "gateway_reload_timeout": (1, 86400),
    "gateway_health_interval": (1, 60),
    "gateway_health_timeout": (1, 60),
}


def design(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build the configuration of the gateway.

    Args:
        settings: Variables of role gateway and of role vllm, by name, and ``metrics``: whether this HAProxy has the
            Prometheus exporter.

    Returns:
        ``config`` (values for the template of haproxy.cfg), ``keys_map`` (text; digests and names, no key),
        ``subject_alt_names`` of a self-signed certificate, ``url`` for clients on this host, and ``open_files``, the
        limit that the process needs.

    Raises:
        RefusalError: With every reason against the settings, not only the first. No message holds a key.
    """
    refusals = [
        *_wrong_numbers(settings),
        *_wrong_addresses(settings),
        *_wrong_endpoints(settings["gateway_endpoints"]),
        *_wrong_backends(settings),
        *_wrong_keys(settings["gateway_keys"]),
        *_wrong_tls(settings),
        *_wrong_image(settings),
    ]
    if refusals:
        raise RefusalError(*refusals)
    return {
        "config": _config(settings),
        "keys_map": keys_map(settings["gateway_keys"]),
        "subject_alt_names": subject_alt_names(settings["gateway_tls_names"]),
        "url": f"{'http' if settings['gateway_tls'] == 'disabled' else 'https'}://{_reachable(settings)}",
        # One connection to the client, one to the engine, and the files of the process.
        "open_files": 2 * settings["gateway_max_connections"] + 1024,
    }


def digest(key: str) -> str:
    """SHA-256 of a key in upper case hexadecimal digits, as HAProxy writes it."""
    return hashlib.sha256(key.encode()).hexdigest().upper()


def keys_map(keys: Iterable[Mapping[str, str]]) -> str:
    """HAProxy's map from the digest of a key to the name of its owner, sorted, one per line."""
    return "".join(f"{line}\n" for line in sorted({f"{_digest_of(key)} {key['name']}" for key in keys}))


def names_in(text: str) -> dict[str, str]:
    """Name by digest of a map that :func:`keys_map` wrote; other lines are ignored."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}  # noqa: PLR2004


def subject_alt_names(names: Iterable[str]) -> list[str]:
    """Names and addresses in the form of a certificate, each once."""
    return list(dict.fromkeys(f"{'IP' if _address(name) else 'DNS'}:{name}" for name in names))


def error_body(kind: str, code: str, message: str) -> str:
    """An error in the format of OpenAI's API."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _config(settings: Mapping[str, Any]) -> dict[str, Any]:
    packaged = settings["gateway_source"] == "package"
    tls = "" if settings["gateway_tls"] == "disabled" else f" ssl crt {TLS_FILE} alpn h2,http/1.1"
    routes = [ENDPOINTS[name] for name in ENDPOINTS if name in settings["gateway_endpoints"]]
    return {
        "set_id": SET_ID,
        # In the image the process starts as that user.
        "user": "haproxy" if packaged else "",
        "socket": f"{settings['gateway_run_dir']}/admin.sock",
        "bind": _joined(settings["gateway_bind_address"], settings["gateway_port"]) + tls,
        "metrics_bind": f"127.0.0.1:{settings['gateway_metrics_port']}" if settings["metrics"] else "",
        "routes": [{"method": method, "path": path} for method, path in routes],
        "health": HEALTH,
        "servers": [
            {
                "name": backend["name"],
                "address": _joined(backend["address"], backend["port"]),
                # It receives no request and no health check until its state is set to ready.
                "standby": bool(backend.get("standby")),
            }
            for backend in settings["gateway_backends"]
        ],
        "errors": [
            {
                "status": status,
                "body": error_body(kind, code, message),
                "header": "".join(f" {word}" for word in ("hdr", *_ERROR_HEADERS[status]))
                if status in _ERROR_HEADERS
                else "",
            }
            for status, kind, code, message in _ERRORS
        ],
        "length_required": error_body(*_LENGTH_REQUIRED),
        "log_format": "{" + ",".join(f'"{name}":{value}' for name, value in _LOG.items()) + "}",
        "keys_file": KEYS_FILE,
        "engine_key_file": ENGINE_KEY_FILE,
        "key_pattern": rf"^bearer {CHARACTERS}{{{MIN_KEY_LENGTH},{MAX_KEY_LENGTH}}}$",
        "max_body": settings["gateway_max_body_mib"] * 2**20,
        "requests_per_minute": settings["gateway_requests_per_minute"],
        "concurrent_requests": settings["gateway_concurrent_requests"],
        "max_connections": settings["gateway_max_connections"],
        # The metrics and the admin socket also answer when the gateway is full.
        "max_connections_in_all": settings["gateway_max_connections"] + 64,
        "connections_per_source": settings["gateway_connections_per_source"],
        "engine_requests": settings["gateway_engine_requests"],
        "request_timeout": settings["gateway_request_timeout"],
        "idle_timeout": settings["gateway_idle_timeout"],
        "queue_timeout": settings["gateway_queue_timeout"],
        "response_timeout": settings["gateway_response_timeout"],
        "reload_timeout": settings["gateway_reload_timeout"],
        "health_interval": settings["gateway_health_interval"],
        "health_timeout": settings["gateway_health_timeout"],
    }


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _reachable(settings: Mapping[str, Any]) -> str:
    """Address and port of the gateway for clients on this host."""
    address = ipaddress.ip_address(settings["gateway_bind_address"])
    loopback = "::1" if address.version == 6 else "127.0.0.1"  # noqa: PLR2004
    return _joined(loopback if address.is_unspecified else str(address), settings["gateway_port"])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_loopback(text: str) -> bool:
    address = _address(text)
    return address is not None and address.is_loopback


def _digest_of(key: Mapping[str, str]) -> str:
    return str(key["sha256"]).upper() if key.get("sha256") else digest(str(key["key"]))


def _wrong_numbers(settings: Mapping[str, Any]) -> Iterator[Refusal]:
    for name, (least, most) in _RANGES.items():
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            message = f"{name} is {value!r}; allowed: a whole number from {least} to {most}."
            yield Refusal("bad_number", message, "Set such a number.")


def _wrong_addresses(settings: Mapping[str, Any]) -> Iterator[Refusal]:
    bind, engine = settings["gateway_bind_address"], settings["vllm_bind_address"]
    if not _address(bind):
        message = f"gateway_bind_address is {bind!r}; allowed: an IPv4 or IPv6 address, 0.0.0.0 and :: for all."
        yield Refusal("bad_address", message, "Set such an address.")
    elif settings["gateway_tls"] == "disabled" and not _is_loopback(bind) and not settings["gateway_unsafe_plain_http"]:
        message = f"gateway_tls is disabled and gateway_bind_address is {bind}: keys would be sent in plain text."
        fix = "Set gateway_tls to self_signed or given, or gateway_bind_address to 127.0.0.1."
        yield Refusal("plain_http_exposed", message, fix)
    if not _is_loopback(engine) and not settings["gateway_unsafe_exposed_engine"]:
        message = f"vllm_bind_address is {engine}: clients would reach the engine past the gateway."
        yield Refusal("engine_exposed", message, "Set vllm_bind_address to 127.0.0.1.")
    if settings["gateway_port"] == settings["gateway_metrics_port"]:
        message = f"gateway_port and gateway_metrics_port are both {settings['gateway_port']}."
        yield Refusal("port_taken", message, "Set another gateway_metrics_port.")


def _wrong_endpoints(endpoints: Sequence[str]) -> Iterator[Refusal]:
    if not endpoints:
        yield Refusal("no_endpoints", "gateway_endpoints is empty.", f"Name some of {', '.join(ENDPOINTS)}.")
    for name in endpoints:
        if name not in ENDPOINTS:
            message = f"gateway_endpoints names {name!r}; allowed: {', '.join(ENDPOINTS)}."
            yield Refusal("unknown_endpoint", message, "Remove it.")


def _wrong_backends(settings: Mapping[str, Any]) -> Iterator[Refusal]:
    backends = settings["gateway_backends"]
    if all(backend.get("standby") for backend in backends):
        message = "gateway_backends has no engine without standby."
        yield Refusal("no_backends", message, "Add at least one engine without standby.")
    for number, backend in enumerate(backends, 1):
        name, address, port = (backend.get(field) for field in ("name", "address", "port"))
        where = f"gateway_backends, entry {number}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            message = f"{where}: name is {name!r}; allowed: lower case letters, digits, dots and dashes."
            yield Refusal("bad_backend", message, "Set such a name.")
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= _MAX_PORT:
            yield Refusal("bad_backend", f"{where}: port is {port!r}; allowed: 1 to {_MAX_PORT}.", "Correct it.")
        if not isinstance(address, str) or not _address(address):
            message = f"{where}: address is {address!r}; allowed: an IPv4 or IPv6 address."
            yield Refusal("bad_backend", message, "Set such an address.")
        elif not _is_loopback(address) and not settings["gateway_unsafe_remote_backends"]:
            message = (
                f"{where}: {address} is not this host: requests and key would be sent over the network in plain text."
            )
            yield Refusal("remote_backend", message, "Run a gateway on the engine's own host.")
        if port in (settings["gateway_port"], settings["gateway_metrics_port"]):
            yield Refusal("port_taken", f"{where}: port {port} is one of the gateway's own.", "Set another port.")
    for field in ("name", ("address", "port")):
        fields = (field,) if isinstance(field, str) else field
        for value, count in Counter(tuple(str(b.get(f)) for f in fields) for b in backends).items():
            if count > 1:
                message = f"gateway_backends holds {':'.join(value)} {count} times."
                yield Refusal("same_backend_twice", message, "Keep one of them.")


def _wrong_keys(keys: Sequence[Mapping[str, Any]]) -> Iterator[Refusal]:
    if not keys:
        message = "gateway_keys is empty: no client could send requests."
        fix = "Name at least one: {name: team-a, key: ...}; the key from a vault or a file."
        yield Refusal("no_keys", message, fix)
    owners: dict[str, str] = {}
    for number, entry in enumerate(keys, 1):
        name = entry.get("name")
        where = f"gateway_keys, entry {number}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            message = f"{where}: the name must consist of lower case letters, digits, dots, dashes and underscores."
            yield Refusal("bad_key_name", message, "Correct it; the name appears in the log.")
            continue
        problem = _wrong_key(entry)
        if problem:
            code, message, fix = problem
            yield Refusal(code, f"{where} ({name}): {message}", fix)
            continue
        owner = owners.setdefault(_digest_of(entry), name)
        if owner != name:
            message = f"{where} ({name}): {owner} has the same key."
            yield Refusal("same_key_twice", message, "Set a different key for each name.")


def _wrong_key(entry: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Code, message without the key, and fix for an invalid key."""
    key: Any = entry.get("key")
    given_digest = entry.get("sha256")
    make = "Make one with: openssl rand -hex 32"
    if bool(key) == bool(given_digest):
        return "bad_key", "allowed: exactly one of key and sha256.", "Set one of the two."
    if given_digest:
        if not isinstance(given_digest, str) or not _DIGEST.fullmatch(given_digest):
            fix = "Set it to the output of: printf %s KEY | sha256sum"
            return "bad_key", "sha256 must be 64 hexadecimal digits.", fix
        return None
    if reason := reason_invalid(key, longest=MAX_KEY_LENGTH) if isinstance(key, str) else "it is not a text":
        return "bad_key", f"the key is not accepted: {reason}.", make
    if len(key) < MIN_KEY_LENGTH or len(set(key)) < MIN_KEY_VARIETY:
        rule = f"{MIN_KEY_LENGTH} random characters or more"
        return "weak_key", f"the key can be guessed from its digest; allowed: {rule}.", make
    return None


def _wrong_tls(settings: Mapping[str, Any]) -> Iterator[Refusal]:
    mode = settings["gateway_tls"]
    if mode not in ("given", "self_signed", "disabled"):
        message = f"gateway_tls is {mode!r}; allowed: given, self_signed, disabled."
        yield Refusal("bad_tls", message, "Set one of them.")
    for name in ("gateway_tls_certificate", "gateway_tls_key"):
        if mode == "given" and not str(settings[name]).startswith("/"):
            message = f"{name} is {settings[name]!r}, and gateway_tls is given; allowed: an absolute path on the host."
            yield Refusal("bad_tls", message, "Set the path of the file.")
    for name in settings["gateway_tls_names"]:
        if not _address(str(name)) and not _HOST_NAME.fullmatch(str(name)):
            message = f"gateway_tls_names holds {name!r}, which is neither a host name nor an address."
            yield Refusal("bad_tls", message, "Correct it.")
    if mode == "self_signed" and not settings["gateway_tls_names"]:
        message = "gateway_tls_names is empty: no client could verify the certificate."
        yield Refusal("bad_tls", message, "Add the host names that clients use.")


def _wrong_image(settings: Mapping[str, Any]) -> Iterator[Refusal]:
    source, image = settings["gateway_source"], str(settings["gateway_image"])
    if source not in ("package", "image"):
        message = f"gateway_source is {source!r}; allowed: package, image."
        yield Refusal("bad_source", message, "Set one of them.")
    if source == "image" and not _IMAGE.fullmatch(image):
        message = f"gateway_image is {image!r}; allowed: NAME@sha256:DIGEST, because the image must not change."
        fix = "Use the digest of the image that you reviewed: docker buildx imagetools inspect haproxy:3.0"
        yield Refusal("image_not_pinned", message, fix)
    port = settings["gateway_port"]
    if source == "image" and isinstance(port, int) and port < _FIRST_FREE_PORT:
        message = (
            f"gateway_port is {port}, and the image runs as an unprivileged user; allowed: {_FIRST_FREE_PORT} and more."
        )
        yield Refusal("port_needs_root", message, "Set such a port, or gateway_source to package.")
