"""One host fetches, the others have it from each other: real servers and real downloads, with hosts that misbehave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from huggingface_hub import constants

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Retry
from ansible_collections.inference.vllm.plugins.module_utils.weights.peers import Fleet
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import Lock
from ansible_collections.inference.vllm.plugins.module_utils.weights.snapshot import Outcome, Want, ensure, write_lock
from support.faulty_hub import (
    FOR_EVER,
    PEER_FILE,
    SERVER_FILE,
    Fault,
    FaultyHub,
    FaultyPeer,
    file_server,
    peer,
    running,
    serving,
    write_model,
)

TOKEN = "0123456789abcdef" * 4
FILES = {
    "config.json": b"{}\n",
    "model-1.safetensors": bytes(range(256)) * 1200,
    "model-2.safetensors": bytes(range(255, -1, -1)) * 800,
    "sub/tokenizer.json": b"tokens" * 5000,
}
SIZE = sum(map(len, FILES.values()))
BIG = "model-1.safetensors"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_model(tmp_path / "hub", "org/tiny", FILES)
    with running(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def lock(hub: FaultyHub, tmp_path: Path) -> Lock:
    lock, _ = write_lock(Want("org/tiny", tmp_path / "none", endpoint=hub.url))
    hub.asked.clear()
    hub.sent = 0
    return lock


class MakeHosts(Protocol):
    def __call__(self, count: int, patience: float = 20.0) -> Hosts: ...


@dataclass
class Hosts:
    """Test hosts: a folder and a server each, one order for all."""

    wants: list[Want]
    servers: list[FaultyPeer]

    def deploy(self, *numbers: int) -> list[Outcome]:
        """Run on several hosts concurrently, on all by default."""
        chosen = numbers or range(len(self.wants))
        with ThreadPoolExecutor(len(self.wants)) as pool:
            runs: list[Future[Outcome]] = [pool.submit(ensure, self.wants[number]) for number in chosen]
            return [run.result() for run in runs]


@pytest.fixture
def hosts(hub: FaultyHub, lock: Lock, tmp_path: Path) -> Iterator[MakeHosts]:
    with ExitStack() as stack:
        # Patience is long where it must not end on a busy machine, and short where a test waits for its end.
        def make(count: int, patience: float = 20.0) -> Hosts:
            roots = [tmp_path / f"host-{number}" / "models" for number in range(count)]
            servers = [stack.enter_context(serving(FaultyPeer(root))) for root in roots]
            for server in servers:
                server.token = TOKEN
            urls = [server.url for server in servers]
            fleets = [Fleet(url, urls, TOKEN, patience=patience, pause=0.05) for url in urls]
            want = Want("org/tiny", tmp_path, lock=lock, endpoint=hub.url, timeout=20, retry=Retry(1, 0.01))
            wants = [
                replace(want, root=root, fleet=fleet, show_progress=True)
                for root, fleet in zip(roots, fleets, strict=True)
            ]
            return Hosts(wants, servers)

        yield make


def assert_complete(outcome: Outcome) -> None:
    found = {p.relative_to(outcome.path).as_posix(): p.read_bytes() for p in outcome.path.rglob("*") if p.is_file()}
    assert found == FILES


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something has happened; the limit only ends a test that would never end."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alone(want: Want) -> Want:
    """The same host without the others."""
    return replace(want, fleet=Fleet())


# --- one fetches, the others follow ---


def test_the_hub_sends_each_file_once(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(5)
    hub.rate = 2e6  # so that all others are at work while the first one fetches
    outcomes = fleet.deploy()
    for outcome in outcomes:
        assert_complete(outcome)
        assert not outcome.warnings
    assert hub.sent == SIZE
    assert sorted(hub.files_asked()) == sorted(FILES)
    assert outcomes[0].sources == {hub.url: SIZE}
    assert all(hub.url not in outcome.sources for outcome in outcomes[1:])


def test_others_take_files_before_the_first_host_has_all(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(2)
    fleet.wants[0] = replace(fleet.wants[0], workers=1)
    hub.faults = [Fault("stall", on="*config.json", at=30)]  # the smallest, so the last one
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(ensure, want) for want in fleet.wants]
        part = fleet.wants[1].root / "org/tiny"
        wait_for(lambda: bool(list(part.glob(f".incomplete-*/files/{BIG}"))))
        assert not runs[0].done()
        hub.ended.set()
        for run in runs:
            assert_complete(run.result())


def test_a_host_that_joins_later_needs_no_hub(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(3)
    fleet.wants[0] = replace(fleet.wants[0], endpoint=NOWHERE)  # even the first in the order
    for number in (1, 2):
        ensure(alone(fleet.wants[number]))
    hub.asked.clear()
    outcomes = fleet.deploy()
    assert_complete(outcomes[0])
    assert sum(outcomes[0].sources.values()) == SIZE
    assert hub.asked == []
    assert [outcome.changed for outcome in outcomes] == [True, False, False]


def test_without_a_lock_the_hub_defines_the_files(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(3)
    # One after the other: hosts of one test are one process, and so share huggingface_hub's session.
    outcomes = [ensure(replace(want, lock=None)) for want in fleet.wants]
    for outcome in outcomes:
        assert_complete(outcome)
    assert hub.sent == SIZE
    assert sum("/api/models/" in asked.path for asked in hub.asked) == 3
    assert hub.url not in {**outcomes[1].sources, **outcomes[2].sources}


def test_local_folders_come_first(hub: FaultyHub, hosts: MakeHosts, tmp_path: Path) -> None:
    fleet = hosts(2)
    write_model(tmp_path, "disk", {BIG: FILES[BIG], "model-2.safetensors": b"x" * len(FILES["model-2.safetensors"])})
    ensure(alone(fleet.wants[0]))
    outcome = ensure(replace(fleet.wants[1], folders=[tmp_path / "disk"], endpoint=NOWHERE))
    assert_complete(outcome)
    assert outcome.sources[fleet.servers[0].url] == SIZE - len(FILES[BIG])
    assert ["model-2.safetensors" in warning for warning in outcome.warnings] == [True]


def test_a_host_that_no_hub_answers_follows_one_behind_it(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(3, 3.0)
    for number in (0, 2):
        fleet.wants[number] = replace(fleet.wants[number], endpoint=NOWHERE)
    # Hosts of one test share huggingface_hub's session: one may close it for another.
    fleet.wants[1] = replace(fleet.wants[1], retry=Retry(6, 0.01))
    outcomes = fleet.deploy()
    for outcome in outcomes:
        assert_complete(outcome)
    assert any(NOWHERE in warning for warning in outcomes[0].warnings)


def test_hosts_that_no_hub_answers_do_not_wait_for_each_other_for_ever(hosts: MakeHosts) -> None:
    fleet = hosts(2, 0.5)
    fleet.wants = [replace(want, endpoint=NOWHERE) for want in fleet.wants]
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(ensure, want) for want in fleet.wants]:
            with pytest.raises(RefusalError) as error:
                run.result()
            assert error.value.refusals[0].code == "hub_unreachable"


# --- hosts that misbehave ---


def test_a_dead_host_delays_no_other(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(4)
    fleet.servers[0].shutdown()
    fleet.servers[0].server_close()
    outcomes = fleet.deploy(1, 2, 3)
    for outcome in outcomes:
        assert_complete(outcome)
        assert [fleet.servers[0].url in warning for warning in outcome.warnings] == [True]
    assert hub.sent == SIZE  # the second took the first one's part


def test_a_host_that_dies_on_the_way(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(3)
    ensure(alone(fleet.wants[0]))
    hub.sent = 0
    fleet.servers[0].faults = [Fault("cut", on=f"*{BIG}", at=100_000), Fault("hang_up", times=FOR_EVER)]
    outcomes = fleet.deploy(1, 2)
    for outcome in outcomes:
        assert_complete(outcome)
    # What came before counts, and what is missing comes from the hub once.
    assert SIZE - 100_000 <= hub.sent <= SIZE


def test_a_first_host_that_does_nothing_is_waited_for_only_so_long(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(3, 2.0)
    outcomes = fleet.deploy(1, 2)  # the first one's server runs, its download never begins
    for outcome in outcomes:
        assert_complete(outcome)
        assert fleet.servers[0].url not in outcome.sources
    # On a busy machine both may lose patience at the same time, and share what they fetch.
    assert sum(outcome.sources.get(hub.url, 0) for outcome in outcomes) >= SIZE


def test_a_flipped_bit_is_found_and_the_host_is_given_up(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(2)
    ensure(alone(fleet.wants[0]))
    hub.sent = 0
    fleet.servers[0].faults = [Fault("flip", on=f"*{BIG}", at=1000, times=FOR_EVER)]
    outcome = fleet.deploy(1)[0]
    assert_complete(outcome)
    assert outcome.sources[hub.url] >= len(FILES[BIG])
    assert any(fleet.servers[0].url in warning and "sha256" in warning for warning in outcome.warnings)


def test_a_flipped_bit_at_one_host_comes_right_from_another(hub: FaultyHub, hosts: MakeHosts) -> None:
    fleet = hosts(3)
    for number in (1, 2):
        ensure(alone(fleet.wants[number]))
    fleet.servers[1].faults = [Fault("flip", on="*.safetensors", at=9, times=FOR_EVER)]
    outcome = ensure(replace(fleet.wants[0], endpoint=NOWHERE))
    assert_complete(outcome)
    assert ["sha256" in warning for warning in outcome.warnings] == [True]


@pytest.mark.parametrize("fault", [Fault("stall", on="*/resolve/*", at=60, times=FOR_EVER), None])
def test_a_slow_host_is_given_up(hub: FaultyHub, hosts: MakeHosts, fault: Fault | None) -> None:
    fleet = hosts(2, 1.0)
    ensure(alone(fleet.wants[0]))
    hub.sent = 0
    fleet.servers[0].faults = [fault] if fault else []
    fleet.servers[0].rate = None if fault else 50_000
    outcome = fleet.deploy(1)[0]
    assert_complete(outcome)
    assert any(fleet.servers[0].url in warning for warning in outcome.warnings)
    # What the slow one sent is not fetched again.
    assert outcome.bytes_fetched == SIZE
    assert outcome.sources[hub.url] < SIZE or fault


def test_a_slow_receiver_takes_no_place_from_others(hosts: MakeHosts) -> None:
    fleet = hosts(1)
    ensure(alone(fleet.wants[0]))
    server = fleet.servers[0]
    server._most = 1
    slow = server.begin_upload("slow")
    assert slow is not None
    assert server.begin_upload("other") is None
    assert server.begin_upload("slow") is not None  # another file to the same host takes no place
    server._uploads = {slow}
    slow.begin -= 10
    slow.sent = 50 * 10**6
    assert server.begin_upload("other") is None
    server._fastest = 10**9  # bytes per second, to a host that is done
    assert server.begin_upload("other") is not None


def test_a_busy_host_is_waited_for(hub: FaultyHub, hosts: MakeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = hosts(2)
    ensure(alone(fleet.wants[0]))
    hub.sent = 0
    fleet.servers[0]._most = 1
    monkeypatch.setattr(peer, "SLOW_SECONDS", 60.0)
    taken = fleet.servers[0].begin_upload("another")
    assert taken is not None
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(ensure, fleet.wants[1])
        assert fleet.servers[0].was_busy.wait(60)
        fleet.servers[0].end_upload(taken)
        outcome = run.result()
    assert_complete(outcome)
    assert (hub.sent, outcome.warnings) == (0, ())


# --- what the server gives, and to whom ---


def status_of(url: str, token: str = TOKEN) -> int:
    try:
        with urlopen(Request(url, headers={"Authorization": f"Bearer {token}"})) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_nothing_without_the_token(hosts: MakeHosts, lock: Lock) -> None:
    fleet = hosts(1)
    ensure(alone(fleet.wants[0]))
    # The real handler, not the one that plays faults.
    with serving(FaultyPeer(fleet.wants[0].root)) as server:
        server.RequestHandlerClass = peer.PeerHandler
        server.token = TOKEN
        urls = [
            f"{server.url}{path}"
            for path in ("", f"/api/held/org/tiny/{lock.commit}", f"/org/tiny/resolve/{lock.commit}/{BIG}")
        ]
        assert [status_of(url) for url in urls] == [404, 200, 200]
        for token in ("", "wrong", TOKEN[:-1], f"{TOKEN}0"):
            assert [status_of(url, token) for url in urls] == [401, 401, 401]


def test_nothing_but_verified_files(hosts: MakeHosts, lock: Lock) -> None:
    fleet = hosts(1)
    folder = ensure(alone(fleet.wants[0])).path
    (folder / "link").symlink_to("/etc/passwd")
    paths = [
        "/",
        "/api/models/org/tiny",
        "/api/held/org/tiny/main",
        f"/api/held/../tiny/{lock.commit}",
        f"/api/held/org/.hidden/{lock.commit}",
        "/org/tiny/resolve/main/config.json",
        f"/org/tiny/resolve/{lock.commit}/../lock.json",
        f"/org/tiny/resolve/{lock.commit}/%2e%2e/lock.json",
        f"/org/tiny/resolve/{lock.commit}/.state",
        f"/org/tiny/resolve/{lock.commit}/link",
    ]
    assert status_of(fleet.servers[0].url + f"/org/tiny/resolve/{lock.commit}/config.json") == 200
    assert {path: status_of(fleet.servers[0].url + path) for path in paths} == dict.fromkeys(paths, 404)


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet("http://10.0.0.3:1", ["http://10.0.0.1:1"], TOKEN),
        Fleet("http://10.0.0.1:1", ["http://10.0.0.1:1"]),
        Fleet("10.0.0.1", ["10.0.0.1"], TOKEN),
    ],
)
def test_peers_that_cannot_be_meant(tmp_path: Path, fleet: Fleet) -> None:
    with pytest.raises(RefusalError) as error:
        ensure(Want("org/tiny", tmp_path, fleet=fleet))
    assert error.value.refusals[0].code in {"bad_peers", "bad_endpoint"}


# --- the program on the host ---


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    for file in (PEER_FILE, SERVER_FILE):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    program = tmp_path / PEER_FILE.name
    yield program
    run(program, "stop")


def run(program: Path, action: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-Es", program, action],
        check=False,
        input=json.dumps(settings),
        capture_output=True,
        text=True,
        timeout=30,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def settings(tmp_path: Path, **changes: object) -> dict[str, object]:
    (tmp_path / "models").mkdir(exist_ok=True)
    usual = {"address": "127.0.0.1", "port": free_port(), "models": str(tmp_path / "models"), "user": "nobody"}
    return {**usual, "token": TOKEN, "uploads": 2, "idle": 60, "allow_public": False, **changes}


def answers(port: object) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(str(port)))) == 0


def test_started_again_and_stopped(program: Path, tmp_path: Path) -> None:
    first, second = settings(tmp_path), settings(tmp_path, token=TOKEN[::-1])
    for given in (first, second):
        done = run(program, "start", **given)
        assert (done.returncode, done.stderr) == (0, "")
        assert answers(given["port"])
    assert not answers(first["port"])
    command = Path(f"/proc/{(tmp_path / 'peer.pid').read_text().strip()}")
    assert command.stat().st_uid != 0
    assert TOKEN[::-1] not in (command / "cmdline").read_text() + (command / "environ").read_text()
    assert run(program, "stop").returncode == 0
    assert not answers(second["port"])
    assert run(program, "stop").returncode == 0


def test_it_gives_files_as_a_user_that_owns_nothing(program: Path, tmp_path: Path, lock: Lock) -> None:
    given = settings(tmp_path)
    ensure(Want("org/tiny", tmp_path / "models", lock=lock, folders=[tmp_path / "hub/org/tiny"]))
    tmp_path.chmod(0o700)  # no way for others through the folders above
    assert run(program, "start", **given).returncode == 0
    url = f"http://127.0.0.1:{given['port']}/org/tiny/resolve/{lock.commit}/{BIG}"
    headers = {"Authorization": f"Bearer {TOKEN}", "Range": "bytes=100-"}
    with urlopen(Request(url, headers=headers)) as answer:
        assert (answer.status, answer.read()) == (206, FILES[BIG][100:])


def test_a_file_that_is_moved_while_it_is_sent(hosts: MakeHosts, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = hosts(1)
    folder = ensure(alone(fleet.wants[0])).path
    send = file_server.FileHandler.send_file

    def move_and_send(*arguments: Any) -> None:
        folder.rename(folder.with_name("elsewhere"))
        send(*arguments)

    monkeypatch.setattr(file_server.FileHandler, "send_file", move_and_send)
    url = f"{fleet.servers[0].url}/org/tiny/resolve/{lock.commit}/{BIG}"
    with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"})) as answer:
        assert answer.read() == FILES[BIG]


def test_it_ends_without_requests(program: Path, tmp_path: Path) -> None:
    given = settings(tmp_path, idle=0.5)
    assert run(program, "start", **given).returncode == 0
    wait_for(lambda: not answers(given["port"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": "0.0.0.0"}, "all networks"),
        ({"address": ""}, "not an IPv4 address"),
        ({"address": "host.example"}, "not an IPv4 address"),
        ({"address": "8.8.8.8"}, "a public IP address"),
        ({"address": "8.8.8.8", "allow_public": True}, "[peer_port]"),  # let through, and not of this machine
        ({"address": "192.0.2.1"}, "[peer_port]"),
        ({"token": "short"}, "[peer_token]"),
    ],
)
def test_no_port_that_was_not_meant(program: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    done = run(program, "start", **settings(tmp_path, **changes))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Fix:" in done.stderr
    assert TOKEN not in done.stderr
    assert not (tmp_path / "peer.pid").exists()


def test_a_port_that_is_taken(program: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = run(program, "start", **settings(tmp_path, port=listener.getsockname()[1]))
    assert (done.returncode, "[peer_port]" in done.stderr) == (1, True)
