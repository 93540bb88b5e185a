"""What a client can do to the gateway: a real HAProxy, configured as role gateway would, before real HTTP servers."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import resource
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Settings
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import run as smoke
from ansible_collections.inference.vllm.plugins.module_utils.gateway import store as gateway_store
from ansible_collections.inference.vllm.plugins.module_utils.gateway.design import ENDPOINTS, design, digest
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.modules import gateway_backend, gateway_config
from support import lying_server
from support.gateway import ALICE, BOB, CHECK, KEYS, PROGRAM, Gateway, rendered, settings
from support.modules import run_module
from support.paths import GOLDEN
from support.plain_engine import PATIENCE, Engine, running

ROUTES = json.loads((GOLDEN / "vllm_routes.json").read_text())["routes"]
CHAT = "/v1/chat/completions"
THIRD = "sk-third-zyxwvutsrqponmlkjihgfedcba"


@pytest.fixture(scope="module", autouse=True)
def haproxy() -> None:
    assert shutil.which(PROGRAM), "HAProxy must be installed: make test-host"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Engine]]:
    """One pair for all tests that leave it as it is."""
    with running(Engine()) as server, Gateway(tmp_path_factory.mktemp("shared"), server) as running_gateway:
        yield running_gateway, server


@pytest.fixture
def front(shared: tuple[Gateway, Engine]) -> Gateway:
    return shared[0]


@pytest.fixture
def behind(shared: tuple[Gateway, Engine]) -> Engine:
    shared[1].seen.clear()
    return shared[1]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running(Engine()) as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path, engine: Engine) -> Iterator[Gateway]:
    with Gateway(tmp_path, engine) as running_gateway:
        yield running_gateway


def read(response: http.client.HTTPResponse) -> dict[str, Any]:
    return dict(json.loads(response.read()))


def ask(
    gateway: Gateway,
    method: str = "GET",
    path: str = "/v1/models",
    body: Any = None,
    key: str | None = ALICE,
    **headers: str,
) -> http.client.HTTPResponse:
    """One request on a connection of its own; the answer can be read."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    connection.request(method, path, json.dumps(body) if body is not None else None, given)
    return connection.getresponse()


def raw(gateway: Gateway, data: bytes) -> bytes:
    """All that comes back for some bytes, until the gateway closes."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


def request_line(gateway: Gateway, method: str, target: str, key: str = ALICE) -> int:
    """Status of a request whose target no client library would send."""
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    host = target.split("/")[2] if "://" in target else "x"
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n{length}"
    answer = raw(gateway, f"{head}Connection: close\r\n\r\n".encode("latin-1"))
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found, answer
    return int(found[1])


# --- What passes ------------------------------------------------------------------------------------------------------


def test_of_all_routes_of_vllm_only_the_allow_list_answers(gateway: Gateway, engine: Engine) -> None:
    gateway.reload(gateway_endpoints=list(ENDPOINTS))
    assert {tuple(route) for route in ROUTES} >= set(ENDPOINTS.values())
    for method, template in ROUTES:
        path = re.sub(r"\{\w+\}", "x", template)
        body: Any = {} if method == "POST" else None
        allowed = (method, path) in ENDPOINTS.values()
        without = ask(gateway, method, path, body, key=None)
        known = ask(gateway, method, path, body)
        if (method, path) == ("GET", "/health"):
            assert (without.status, known.status) == (200, 200)
        else:
            assert (without.status, known.status) == ((401, 200) if allowed else (404, 404)), (method, path)
    assert sorted(engine.paths) == sorted(ENDPOINTS.values())


def test_an_endpoint_that_is_not_named_is_not_there(gateway: Gateway, engine: Engine) -> None:
    assert ask(gateway, "POST", "/v1/embeddings", {}).status == 404
    gateway.reload(gateway_endpoints=["models"])
    assert ask(gateway).status == 200
    assert ask(gateway, "POST", CHAT, {}).status == 404
    assert engine.paths == [("GET", "/v1/models")]


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/V1/models",
        "/v1/Models",
        "/v1/%6dodels",
        "/v1/models%2f",
        "/v1%2fmodels",
        "/v1/models%00",
        "/v1/models;x=1",
        "/v1/models/.",
        "/v1/./models",
        "/v1/x/../models",
        "/v1/models/../../metrics",
        "/v1/models/%2e%2e/%2e%2e/metrics",
        "/v1/models/..%2f..%2fmetrics",
        "/v1/models\\..\\..\\metrics",
        "/metrics",
        "//metrics",
        "/v1/../metrics",
        "/%2e%2e/metrics",
        "/metrics?/v1/models",
        "/metrics#/v1/models",
        "/v1/models#/metrics",
        "/invocations",
        "/tokenize",
        "/health/",
        "//health",
        "http://engine/metrics",
        "http://engine//v1/models",
        "http://engine/v1/models/../../metrics",
        "/v1/models\t/metrics",
        "v1/models",
        "*",
        "/",
        "/v1/mod\xe8ls",
    ],
)
def test_another_way_to_write_a_path_is_another_path(front: Gateway, behind: Engine, target: str) -> None:
    assert request_line(front, "GET", target) in (400, 404)
    assert request_line(front, "POST", target) in (400, 404)
    assert behind.paths == []


@pytest.mark.parametrize("target", ["/v1/models?x=/metrics", "http://other.example/v1/models", "/v1/models?"])
def test_what_passes_reaches_the_engine_as_the_path_of_the_list(front: Gateway, behind: Engine, target: str) -> None:
    assert request_line(front, "GET", target) == 200
    assert behind.paths == [("GET", "/v1/models")]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "get", "BREW"])
def test_another_method_is_another_request(front: Gateway, behind: Engine, method: str) -> None:
    for path in ("/v1/models", CHAT):
        assert request_line(front, method, path) in (400, 404), path
    assert request_line(front, "CONNECT", "127.0.0.1:22") in (400, 404)
    assert request_line(front, "GET", CHAT) == 404
    assert request_line(front, "POST", "/v1/models") == 404
    assert behind.paths == []


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 30\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: +4\r\n",
    ],
)
def test_a_second_request_cannot_hide_in_a_body(front: Gateway, behind: Engine, head: str) -> None:
    hidden = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    first = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n{head}Connection: close\r\n\r\n"
    assert re.match(rb"HTTP/1\.1 4(00|11|13) ", raw(front, first.encode() + hidden))
    assert behind.paths == []


def test_an_upgrade_does_not_get_through(front: Gateway, behind: Engine) -> None:
    for protocol, status in (("h2c", 200), ("websocket", 400)):
        answer = ask(front, Connection="Upgrade, HTTP2-Settings", Upgrade=protocol, HTTP2_Settings="AAMAAABkAAQ")
        assert answer.status == status
    assert not any("upgrade" in request.headers for request in behind.seen)


# --- Keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE.upper()}",
        f"Bearer {ALICE} {BOB}",
        f"Bearer {ALICE},{BOB}",
        f"Bearer  {ALICE}",
        f"Bearer {'x' * 600}",
        "Bearer the-key-that-the-engine-wants",
        f"Bearer {digest(ALICE)}",
        "Bearer alice",
    ],
)
def test_without_a_key_of_the_list_nothing_is_served(front: Gateway, behind: Engine, value: str | None) -> None:
    answer = ask(front, key=None, **({} if value is None else {"Authorization": value}))
    assert (answer.status, answer.getheader("WWW-Authenticate")) == (401, "Bearer")
    assert read(answer)["error"]["code"] == "invalid_api_key"
    assert behind.paths == []


def test_the_engine_gets_its_own_key_and_nothing_of_the_client(front: Gateway, behind: Engine) -> None:
    given = {"authorization": f"bearer {ALICE}", "X_Data_Parallel_Rank": "3", "Cookie": "a=b", "Host": "evil"}
    answer = ask(front, key=None, **given)
    assert answer.status == 200
    assert answer.getheader("Server") is None
    (request,) = behind.seen
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["authorization"] == f"Bearer {behind.key}"
    assert headers["host"] == "engine"
    assert {name for name in headers if name.startswith("x-")} == {"x-request-id"}
    assert "cookie" not in headers
    assert ALICE not in str(headers)


def test_a_key_is_changed_with_both_valid_in_between(gateway: Gateway) -> None:
    def statuses() -> list[int]:
        return [ask(gateway, key=key).status for key in (ALICE, THIRD)]

    assert statuses() == [200, 401]
    gateway.reload(gateway_keys=[*KEYS, {"name": "alice", "key": THIRD}])
    assert statuses() == [200, 200]
    gateway.reload(gateway_keys=[KEYS[1], {"name": "alice", "sha256": digest(THIRD).lower()}])
    assert statuses() == [401, 200]
    assert {entry["key"] for entry in gateway.access() if entry["status"] == 200} == {"alice"}


def test_secrets_stand_in_no_log_no_process_and_no_open_file(gateway: Gateway, engine: Engine) -> None:
    body = {"prompt": "the-text-of-the-request"}
    assert ask(gateway, "POST", f"{CHAT}?api_key=the-secret-of-the-query", body).status == 200
    assert ask(gateway, "POST", CHAT, body, key=f"{BOB}-wrong").status == 401
    assert ask(gateway, "GET", f"/nothing?token={BOB}").status == 404
    assert raw(gateway, f"G\0T / HTTP/1.1\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode())
    gateway.until(lambda: len(gateway.access()) >= 4, "four lines of the log")
    secrets = [ALICE, BOB, engine.key, "the-text-of-the-request", "the-secret-of-the-query"]
    for pid in {gateway.master, *gateway.pids()}:
        for name in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{name}").read_text(errors="replace")
            assert not [secret for secret in secrets if secret in text], name
    assert not [secret for secret in secrets if secret in gateway.log()]
    files = gateway.files()
    assert {path.name for path in files} == {"haproxy.cfg", "keys.map", "engine_key.map"}
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        held = [secret for secret in secrets if secret in path.read_text()]
        assert held == ([engine.key] if path.name == "engine_key.map" else []), path
    assert gateway.socket.stat().st_mode & 0o777 == 0o600


# --- Limits -----------------------------------------------------------------------------------------------------------


def first_bytes(gateway: Gateway, data: bytes, more: bytes = b"", times: int = 0) -> bytes:
    """What comes back for some bytes, and for many more that are sent whatever comes back."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as client:
        client.sendall(data)
        answer = client.recv(65536)
        with suppress(ConnectionError):
            for _ in range(times):
                client.sendall(more)
        return answer


def head_of_body(length: int) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


def test_a_body_of_200_mb_is_refused_before_it_is_read(front: Gateway, behind: Engine) -> None:
    answer = first_bytes(front, head_of_body(200 * 10**6), bytes(10**6), 200)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer
    assert behind.paths == []
    # A client that sends it all the same is cut off (2.6) or heard to its end (3.0); none of it is kept.
    for pid in front.pids():
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert peak
        assert int(peak[1]) < 150_000
    assert ask(front).status == 200


def test_a_body_up_to_the_limit_passes(gateway: Gateway, engine: Engine) -> None:
    gateway.reload(gateway_max_body_mib=1)
    assert ask(gateway, "POST", CHAT, "x" * (2**20 - 2)).status == 200
    assert first_bytes(gateway, head_of_body(2**20 + 1)).startswith(b"HTTP/1.1 413 ")
    assert [len(request.body) for request in engine.seen] == [2**20]


def test_a_body_of_unknown_length_is_refused(front: Gateway, behind: Engine) -> None:
    for method, path in (("POST", CHAT), ("GET", "/v1/models")):
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nTransfer-Encoding: chunked\r\n"
        answer = first_bytes(front, f"{head}\r\n2\r\n{{}}\r\n0\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 411 ")
        assert b"length_required" in answer
    assert behind.paths == []


def test_headers_without_end_are_refused(front: Gateway, behind: Engine) -> None:
    assert ask(front, X_Long="x" * 20000).status == 400
    assert ask(front, **{f"A{number}": "x" for number in range(80)}).status == 400
    assert behind.paths == []


@pytest.mark.parametrize(
    "start",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: ",
        head_of_body(100),
    ],
)
def test_a_request_that_drips_is_cut_off(tmp_path: Path, engine: Engine, start: bytes) -> None:
    with (
        Gateway(tmp_path, engine, gateway_request_timeout=1) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port)) as client,
    ):
        client.sendall(start)
        client.settimeout(0.1)
        answer = b""
        for _ in range(PATIENCE * 10):
            try:
                client.sendall(b"a")
                answer += client.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert engine.paths == []


def test_a_silent_client_is_cut_off_and_a_silent_engine_is_waited_for(tmp_path: Path, engine: Engine) -> None:
    with (
        Gateway(tmp_path, engine, gateway_idle_timeout=1, gateway_request_timeout=1) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        slow = pool.submit(ask, gateway, "POST", CHAT, {"hold": True})
        assert engine.holding.acquire(timeout=PATIENCE)
        # The silent one is cut off by the same limit, three times, while the other waits for its answer.
        for _ in range(3):
            raw(gateway, b"")
        engine.release.set()
        assert slow.result().status == 200


def test_an_engine_that_never_answers_ends_in_504(tmp_path: Path, engine: Engine) -> None:
    with Gateway(tmp_path, engine, gateway_response_timeout=1) as gateway:
        answer = ask(gateway, "POST", CHAT, {"hold": True})
        assert (answer.status, read(answer)["error"]["code"]) == (504, "engine_timeout")


def test_requests_a_minute_are_limited_for_each_name(tmp_path: Path, engine: Engine) -> None:
    both = [*KEYS, {"name": "alice", "key": THIRD}]
    with Gateway(tmp_path, engine, gateway_requests_per_minute=5, gateway_keys=both) as gateway:
        statuses = [ask(gateway, key=key).status for key in (ALICE, THIRD) * 3]
        assert statuses == [200] * 5 + [429]
        refused = ask(gateway)
        assert read(refused)["error"]["code"] == "rate_limit_exceeded"
        assert refused.getheader("Retry-After")
        assert ask(gateway, key=BOB).status == 200
        assert len(engine.paths) == 6


def test_requests_at_a_time_are_limited_for_each_name(tmp_path: Path, engine: Engine) -> None:
    with (
        Gateway(tmp_path, engine, gateway_concurrent_requests=2) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        held = [pool.submit(ask, gateway, "POST", CHAT, {"hold": True}) for _ in range(2)]
        for _ in held:
            assert engine.holding.acquire(timeout=PATIENCE)
        assert ask(gateway).status == 429
        assert ask(gateway, key=BOB).status == 200
        engine.release.set()
        assert [answer.result().status for answer in held] == [200, 200]
        gateway.until(lambda: ask(gateway).status == 200, "a free place")


def test_connections_from_one_address_are_limited(tmp_path: Path, engine: Engine) -> None:
    kept: list[socket.socket] = []

    def keep_three(gateway: Gateway) -> bool:
        """Whether three connections are open; not while that of the start counts, too."""
        try:
            for _ in range(3):
                kept.append(socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE))
                kept[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert kept[-1].recv(65536).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            release()
            return False
        return True

    def release() -> None:
        while kept:
            kept.pop().close()

    with Gateway(tmp_path, engine, gateway_connections_per_source=3) as gateway:
        gateway.until(lambda: keep_three(gateway), "three connections")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(gateway)
        release()
        gateway.until(lambda: _answers(gateway), "a free place")


def _answers(gateway: Gateway) -> bool:
    try:
        return ask(gateway).status == 200
    except (http.client.HTTPException, OSError):
        return False


def test_a_thousand_concurrent_connections_are_all_served(tmp_path: Path, engine: Engine) -> None:
    count = 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))

    async def crowd(port: int) -> list[bytes]:
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        # Only when all are connected do they ask.
        for _, writer in streams:
            writer.write(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode())
        heads = await asyncio.gather(*(reader.readuntil(b"\r\n") for reader, _ in streams))
        for _, writer in streams:
            writer.close()
        return heads

    try:
        with Gateway(tmp_path, engine, gateway_concurrent_requests=count) as gateway:
            heads = asyncio.run(asyncio.wait_for(crowd(gateway.port), 60))
            assert heads == [b"HTTP/1.1 200 OK\r\n"] * count
            assert len(engine.paths) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- Streams ----------------------------------------------------------------------------------------------------------


def test_each_event_of_a_stream_arrives_before_the_next_is_made(front: Gateway, behind: Engine) -> None:
    behind.step.release()
    answer = ask(front, "POST", CHAT, {"events": 20})
    assert answer.getheader("Content-Type") == "text/event-stream"
    for number in range(20):
        # Were it kept back, this would wait for ever: the engine makes the next one only after this one is here.
        assert answer.readline() == f"data: {number}\n".encode()
        assert answer.readline() == b"\n"
        behind.step.release()
    assert answer.read() == b""


def test_a_stream_goes_on_over_a_reload(gateway: Gateway, engine: Engine) -> None:
    engine.step.release()
    answer = ask(gateway, "POST", CHAT, {"events": 3})
    assert answer.readline() == b"data: 0\n"
    gateway.reload(gateway_keys=[KEYS[1]])
    assert ask(gateway).status == 401
    engine.step.release()
    engine.step.release()
    assert answer.read() == b"\ndata: 1\n\ndata: 2\n\n"


def test_a_client_that_goes_away_frees_the_engine(gateway: Gateway, engine: Engine) -> None:
    body = json.dumps({"hold": True})
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head_of_body(len(body)) + body.encode())
        assert engine.holding.acquire(timeout=PATIENCE)
    assert engine.left.wait(PATIENCE)


# --- Engines ----------------------------------------------------------------------------------------------------------


def test_an_engine_that_is_down_is_503_and_comes_back(tmp_path: Path) -> None:
    down = Engine(healthy=False)
    with running(down), Gateway(tmp_path, down) as gateway:
        gateway.until(lambda: ask(gateway, path="/health", key=None).status == 503, "no engine")
        for path in ("/v1/models", "/health"):
            answer = ask(gateway, path=path)
            assert (answer.status, read(answer)["error"]["code"]) == (503, "no_engine")
            assert answer.getheader("Content-Type") == "application/json"
            assert answer.getheader("X-Request-Id")
        down.healthy = True
        gateway.until(lambda: ask(gateway).status == 200, "the engine is back")
        assert ask(gateway, path="/health", key=None).status == 200


def test_an_engine_that_breaks_off_is_502(gateway: Gateway, engine: Engine) -> None:
    engine.breaks = True
    answer = ask(gateway, "POST", CHAT, {})
    assert (answer.status, read(answer)["error"]["code"]) == (502, "engine_failed")
    # The request was sent, and is not sent again: an engine that one request kills would die twice.
    assert len(engine.paths) == 1


@pytest.fixture
def backend(gateway_of_two: Gateway, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(**arguments: Any) -> dict[str, Any]:
        given = {"socket": str(gateway_of_two.socket), "timeout": PATIENCE, **arguments}
        return run_module(gateway_backend, capsys, given)

    return call


@pytest.fixture
def two() -> Iterator[tuple[Engine, Engine]]:
    with running(Engine("blue")) as blue, running(Engine("green")) as green:
        yield blue, green


@pytest.fixture
def gateway_of_two(tmp_path: Path, two: tuple[Engine, Engine]) -> Iterator[Gateway]:
    with Gateway(tmp_path, *two) as running_gateway:
        yield running_gateway


def serves_more(gateway: Gateway, engine: Engine) -> None:
    before = len(engine.paths)
    gateway.until(lambda: len(engine.paths) > before + 20, f"{engine.name} serves")


def test_an_engine_is_drained_without_losing_a_request(
    gateway_of_two: Gateway, two: tuple[Engine, Engine], backend: Any
) -> None:
    blue, green = two
    stop = threading.Event()
    failures: list[int] = []

    def stream_of_requests() -> int:
        count = 0
        while not stop.is_set():
            status = ask(gateway_of_two, "POST", CHAT, {}).status
            failures.extend([status] if status != 200 else [])
            count += 1
        return count

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(stream_of_requests) for _ in range(4)]
        for engine in (blue, green) * 2:
            done = backend(name=engine.name, state="drain")
            assert (done["changed"], done["failed"]) == (True, False)
            assert (done["after"]["state"], done["after"]["sessions"]) == ("drain", 0)
            reached = len(engine.paths)
            # The other one serves on; this one may be stopped now.
            other = green if engine is blue else blue
            serves_more(gateway_of_two, other)
            engine.healthy, engine.breaks = False, True
            serves_more(gateway_of_two, other)
            assert len(engine.paths) == reached
            engine.healthy, engine.breaks = True, False
            assert backend(name=engine.name, state="ready")["after"]["up"] is True
            serves_more(gateway_of_two, engine)
        stop.set()
        assert sum(client.result() for client in clients) > 100
    assert failures == []


def test_draining_waits_for_the_last_answer(gateway_of_two: Gateway, two: tuple[Engine, Engine], backend: Any) -> None:
    with ThreadPoolExecutor() as pool:
        held = pool.submit(ask, gateway_of_two, "POST", CHAT, {"hold": True})
        blue, green = two
        gateway_of_two.until(lambda: blue.seen or green.seen, "the request")
        busy = blue if blue.seen else green
        late = backend(name=busy.name, state="drain", timeout=1)
        assert "[backend_not_drained]" in late["msg"]
        assert "still has 1 requests" in late["msg"]
        busy.release.set()
        done = backend(name=busy.name, state="drain")
        assert (done["changed"], done["after"]["sessions"]) == (False, 0)
        assert held.result().status == 200


def test_check_mode_predicts_the_change_and_refuses_the_last_engine(gateway_of_two: Gateway, backend: Any) -> None:
    predicted = backend(name="blue", state="drain", _ansible_check_mode=True, _ansible_diff=True)
    assert predicted["changed"] is True
    assert predicted["diff"] == [{"before": "blue: ready\n", "after": "blue: drain\n"}]
    assert backend(name="blue", state="ready")["changed"] is False
    assert backend(name="blue", state="maint")["changed"] is True
    assert "[last_backend]" in backend(name="green", state="drain")["msg"]
    assert ask(gateway_of_two).status == 200
    assert backend(name="green", state="drain", unsafe_allow_last=True)["changed"] is True
    assert ask(gateway_of_two).status == 503
    assert backend(name="blue", state="ready")["changed"] is True
    assert ask(gateway_of_two).status == 200
    assert "it has blue, green" in backend(name="red", state="drain")["msg"]
    assert "[gateway_not_running]" in backend(name="blue", state="drain", socket="/no/such/socket")["msg"]


def test_an_engine_on_standby_gets_no_request_until_it_is_ready(
    gateway_of_two: Gateway, two: tuple[Engine, Engine], backend: Any
) -> None:
    """As role gateway shifts requests to the spare engine and back; a reload forgets that it was to serve."""
    _blue, green = two
    servers = [{"name": e.name, "address": "127.0.0.1", "port": e.port} for e in two]
    gateway_of_two.reload(gateway_backends=[servers[0], {**servers[1], "standby": True}])

    def answers() -> set[str]:
        return {read(ask(gateway_of_two, "POST", CHAT, {}))["engine"] for _ in range(6)}

    assert (answers(), green.paths) == ({"blue"}, [])
    assert "[last_backend]" in backend(name="blue", state="maint")["msg"]
    assert backend(name="green", state="ready")["changed"] is True
    assert backend(name="blue", state="maint")["changed"] is True
    assert answers() == {"green"}
    assert backend(name="blue", state="ready")["changed"] is True
    assert backend(name="green", state="maint")["changed"] is True
    assert answers() == {"blue"}
    backend(name="green", state="ready")
    gateway_of_two.reload()
    gateway_of_two.reload(gateway_requests_per_minute=10**5)
    assert answers() == {"blue"}


def test_an_engine_that_does_not_start_is_reported(
    gateway_of_two: Gateway, two: tuple[Engine, Engine], backend: Any
) -> None:
    backend(name="blue", state="maint")
    two[0].healthy = False
    assert "[backend_not_up]" in backend(name="blue", state="ready", timeout=5)["msg"]


# --- Ids, log, metrics ------------------------------------------------------------------------------------------------


def test_a_request_keeps_its_id_from_client_to_engine_and_log(gateway: Gateway, engine: Engine) -> None:
    answer = ask(gateway, X_Request_Id="job-7:a.b_c")
    assert answer.getheader("X-Request-Id") == "job-7:a.b_c"
    made = ask(gateway).getheader("X-Request-Id")
    assert re.fullmatch(r"[0-9a-f-]{36}", str(made))
    bad = ask(gateway, X_Request_Id='a" onload=').getheader("X-Request-Id")
    assert re.fullmatch(r"[0-9a-f-]{36}", str(bad))
    ids = ["job-7:a.b_c", made, bad]
    assert [request.headers["x-request-id"] for request in engine.seen] == ids
    gateway.until(lambda: len(gateway.access()) == 3, "three lines of the log")
    assert [entry["id"] for entry in gateway.access()] == ids


def test_the_access_log_is_json_whatever_a_client_sends(gateway: Gateway) -> None:
    ask(gateway, "POST", CHAT, {"a": "b" * 1000}, key=BOB)
    targets = ['/"},"x":{"', "/\\\\\\", "/\xff\xfe", f"/{'a' * 5000}", "/%n%s%[env(PATH)]"]
    for target in targets:
        request_line(gateway, "GET", target)
    # Even HAProxy's own line for what is no request is one.
    raw(gateway, b"\x16\x03\x01 not http at all\r\n\r\n")
    lines = 1 + len(targets)
    gateway.until(lambda: len(gateway.access()) >= lines, "a line for each request")
    first = gateway.access()[0]
    assert (first["key"], first["method"], first["path"], first["status"]) == ("bob", "POST", CHAT, 200)
    assert (first["engine"], first["client"]) == ("engine", "127.0.0.1")
    # A client that has its whole answer may close before HAProxy has seen the engine close.
    assert first["end"] in ("--", "CD")
    assert first["bytes_in"] > 1000
    assert set(first["ms"]) == {"request", "queue", "connect", "first_byte", "total"}
    assert all(len(entry["path"]) <= 128 for entry in gateway.access())


def test_metrics_are_on_loopback_and_nowhere_else(gateway: Gateway) -> None:
    ask(gateway)
    assert ask(gateway, path="/metrics").status == 404
    connection = http.client.HTTPConnection("127.0.0.1", gateway.metrics_port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    assert 'haproxy_server_status{proxy="engines",server="engine",state="UP"} 1' in text
    assert ALICE not in text
    for path in ("/", "/v1/models"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[3] for line in listening.splitlines() if f":{gateway.metrics_port} " in line] == [
        f"127.0.0.1:{gateway.metrics_port}"
    ]


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_gateway(tmp_path: Path, engine: Engine) -> Iterator[Gateway]:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    gateway = Gateway(tmp_path, engine, gateway_tls="self_signed", gateway_idle_timeout=2)
    gateway.certificate, gateway.private_key = certificate.read_text(), key.read_text()
    with gateway:
        yield gateway


def test_tls_uses_the_names_of_the_certificate(tls_gateway: Gateway, tmp_path: Path) -> None:
    context = ssl.create_default_context(cadata=tls_gateway.certificate)
    connection = http.client.HTTPSConnection("localhost", tls_gateway.port, timeout=PATIENCE, context=context)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {ALICE}"})
    assert connection.getresponse().status == 200
    command = ["openssl", "x509", "-in", str(tmp_path / "certificate"), "-noout", "-fingerprint", "-sha256"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith(f"={gateway_store.fingerprint(tls_gateway.certificate)}")
    old = ssl.create_default_context(cadata=tls_gateway.certificate)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", tls_gateway.port), timeout=PATIENCE) as client,
        pytest.raises(OSError, match=r"(?i)protocol|alert|handshake"),
    ):
        old.wrap_socket(client, server_hostname="localhost")
    # Plain HTTP gets no HTTP back, and a client that never says a word does not stay.
    assert b"HTTP" not in raw(tls_gateway, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert raw(tls_gateway, b"") == b""


def test_the_same_holds_over_http_2(tls_gateway: Gateway, engine: Engine, tmp_path: Path) -> None:
    def curl(path: str, *more: str) -> str:
        command = ["curl", "--silent", "--path-as-is", "--http2", "--cacert", str(tmp_path / "certificate")]
        command += ["--output", "/dev/null", "--write-out", "%{http_version} %{http_code}", "--max-time", str(PATIENCE)]
        command += ["--header", f"Authorization: Bearer {ALICE}", *more, f"https://localhost:{tls_gateway.port}{path}"]
        return subprocess.run(command, input="{}", capture_output=True, text=True, check=False).stdout

    assert curl("/v1/models") == "2 200"
    assert curl(CHAT, "--data", "{}") == "2 200"
    assert engine.paths == [("GET", "/v1/models"), ("POST", CHAT)]
    for path in ("//v1/models", "/v1/models/", "/v1/models/../../metrics", "/%2e%2e/metrics", "/metrics", "/V1/models"):
        assert curl(path) == "2 404", path
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(60 * 2**20)
    # This client does not always read the answer before it has sent all; the log has it.
    without_length = ("--request", "POST", "--upload-file", "-")
    for status, body in ((413, ("--data-binary", f"@{big}")), (411, without_length)):
        assert curl(CHAT, *body) in (f"2 {status}", "0 000")
        tls_gateway.until(lambda wanted=status: tls_gateway.access()[-1]["status"] == wanted, f"{status} in the log")
    assert len(engine.paths) == 2


# --- A configuration that changes -------------------------------------------------------------------------------------


def test_a_reload_that_an_interrupted_run_owes_is_made_up_for(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engine_key").write_text(gateway.engine_key)

    def changed() -> bool:
        """Whether the module has something to reload, for the settings as they are."""
        design_now = design(settings(**gateway.given))
        arguments = {
            "path": str(tmp_path / "etc"),
            "config": rendered(design_now["config"]),
            "keys_map": design_now["keys_map"],
            "engine_key_file": str(tmp_path / "engine_key"),
            "check": CHECK,
            "socket": str(gateway.socket),
        }
        return bool(run_module(gateway_config, capsys, arguments)["changed"])

    assert changed() is False
    gateway.given["gateway_keys"] = KEYS[:1]
    # The key is still valid after the first of these, and would be for ever.
    assert [changed(), changed()] == [True, True]
    assert ask(gateway, key=BOB).status == 200
    gateway.reload()
    assert ask(gateway, key=BOB).status == 401
    assert changed() is False


# --- A configuration that is refused ----------------------------------------------------------------------------------


def test_what_haproxy_refuses_changes_nothing(gateway: Gateway) -> None:
    before = gateway.store.files()
    with pytest.raises(RefusalError, match="gateway_config_refused") as caught:
        gateway.store.write({**before, "haproxy.cfg": before["haproxy.cfg"] + "    frobnicate 7\n"}, CHECK)
    assert "frobnicate" in str(caught.value)
    assert gateway.store.files() == before
    assert len(list(gateway.store.sets.iterdir())) == 1
    with pytest.raises(RefusalError, match="cannot be started"):
        gateway.store.write(before, ["/no/such/haproxy", gateway_store.CONFIG_PLACEHOLDER])
    gateway.reload()
    assert ask(gateway).status == 200


def test_a_certificate_that_does_not_fit_its_key_is_refused(tls_gateway: Gateway) -> None:
    other = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        capture_output=True,
        text=True,
        check=True,
    )
    before = tls_gateway.store.files()
    tls_gateway.private_key = other.stdout
    with pytest.raises(RefusalError, match=r"tls\.pem"):
        tls_gateway.configure()
    assert tls_gateway.store.files() == before


# --- The checker through the gateway ----------------------------------------------------------------------------------


@pytest.fixture
def through(tmp_path: Path) -> Any:
    """Verdict of the smoke test on a lying server behind a gateway, by the code of each check."""

    def verdict(lie: str, **given: Any) -> dict[str, Any]:
        with lying_server.lying_server(lie) as url:
            engine = Engine(key=lying_server.KEY, port=int(url.split(":")[2].partition("/")[0]))
            with Gateway(tmp_path, engine, **given) as gateway:
                target = Target(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key=ALICE, timeout=5)
                return {check.code: check for check in smoke(target, "r1", Settings()).checks}

    return verdict


def test_an_honest_engine_passes_the_smoke_test_through_the_gateway(through: Any) -> None:
    checks = through("")
    failed = {code: check.message for code, check in checks.items() if not check.ok}
    # /version is not on the list, so that the version stays unknown, which is a warning.
    assert set(failed) == {"engine_version"}
    assert checks["engine_version"].severity == "warning"
    assert "streaming" in " ".join(checks) or any("stream" in code for code in checks)


@pytest.mark.parametrize(
    ("lie", "sign"),
    [
        ("resets", "HTTP 502: The engine broke off its answer."),
        ("error_500", "HTTP 500: EngineCore encountered an issue."),
        ("cut_stream", "finish_reason"),
        ("wrong_key", "Unauthorized"),
    ],
)
def test_what_is_wrong_with_an_engine_shows_through_the_gateway(through: Any, lie: str, sign: str) -> None:
    checks = through(lie, gateway_response_timeout=1)
    failed = [check.message for check in checks.values() if not check.ok and check.severity == "error"]
    assert failed
    assert sign in " ".join(failed)
