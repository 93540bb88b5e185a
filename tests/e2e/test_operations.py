"""Operations on a service in use: key rotation and upgrades under a constant stream of requests.

Slow: `make test-slow` runs it. All tests use one deployment with a gateway and a spare port, and run in the order of
the file.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import docker
import openai
import pytest

from e2e.conftest import HOME, PORT, PROJECT, ROOT, Run, play

pytestmark = pytest.mark.slow

SPARE = f"{PROJECT}-spare"
CONFIG, RUN = "/etc/vllm-gateway-e2e", "/run/vllm-gateway-e2e"
URL, LOG = "http://127.0.0.1:18443/v1", Path("/tmp/vllm-gateway-e2e.log")
ALICE, ALICES_NEXT = "sk-alice-0123456789abcdefghijklmnop", "sk-alice-next-zyxwvutsrqponmlkjihgf"
GATEWAY = {
    "gateway_enabled": True,
    "gateway_bind_address": "127.0.0.1",
    "gateway_tls": "disabled",
    "gateway_port": 18443,
    "gateway_metrics_port": 18405,
    "gateway_config_dir": CONFIG,
    "gateway_run_dir": RUN,
    "gateway_log_file": str(LOG),
    "gateway_requests_per_minute": 100000,
    "gateway_keys": [{"name": "alice", "key": ALICE}],
    "vllm_spare_port": 18001,
}


def run(playbook: str, **given: Any) -> Run:
    """Run a playbook with the variables of this module."""
    return play(playbook, **{**GATEWAY, **given})


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[Run]:
    """Deploy the demo with a gateway and a port for a spare engine."""
    run("playbooks/teardown.yml", teardown_remove_data=True, teardown_stop_docker=False)
    first = run("deploy.yml")
    assert first.rc == 0, first.text
    yield first
    run("playbooks/teardown.yml", teardown_remove_data=True, teardown_stop_docker=False)


class Stream:
    """Clients that send requests continuously and count the outcomes."""

    def __init__(self) -> None:
        """Create without clients."""
        self.seen: Counter[tuple[str, str]] = Counter()
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def ask(self, name: str, url: str, key: str) -> None:
        """Send one request per second until the end, every second one streamed; a rate for two engines on few cores."""
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
        for number in itertools.count():
            if self._end.wait(1):
                return
            try:
                self._one(client, stream=bool(number % 2))
                outcome = "ok"
            except openai.OpenAIError as error:
                outcome = f"{type(error).__name__}: {error}"
            self.seen[name, outcome] += 1

    @staticmethod
    def _one(client: openai.OpenAI, *, stream: bool) -> None:
        asked: dict[str, Any] = {"model": "tiny-qwen3-vl", "prompt": "red", "max_tokens": 8, "temperature": 0}
        if stream:
            finished = [chunk.choices[0].finish_reason for chunk in client.completions.create(**asked, stream=True)]
        else:
            finished = [client.completions.create(**asked).choices[0].finish_reason]
        if finished[-1] not in ("stop", "length"):
            raise openai.OpenAIError(f"cut off: {finished}")

    def start(self, name: str, url: str, key: str) -> None:
        """Start one more client."""
        thread = threading.Thread(target=self.ask, args=(name, url, key), daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Stop the clients after their current request."""
        self._end.set()
        for thread in self._threads:
            thread.join(150)

    @property
    def failed(self) -> dict[tuple[str, str], int]:
        """Number of failed requests by client and reason."""
        return {key: count for key, count in self.seen.items() if key[1] != "ok"}


@contextmanager
def steady(**clients: tuple[str, str]) -> Iterator[Stream]:
    """Send requests during the block. Each client has a name, a URL and a key."""
    stream = Stream()
    for name, (url, key) in clients.items():
        stream.start(name, url, key)
    try:
        yield stream
    finally:
        stream.stop()


def current() -> str:
    return (HOME / "current").resolve().name


def engine_key(name: str = "api_key") -> str:
    return (HOME / "secrets" / name).read_text().strip()


def containers(project: str = PROJECT) -> list[Any]:
    return list(docker.from_env().containers.list(all=True, filters={"label": f"com.docker.compose.project={project}"}))


def status(key: str, url: str = f"http://127.0.0.1:{PORT}/v1") -> int:
    """HTTP status for a request with a key."""
    try:
        openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list()
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def test_upgrade_loses_no_request() -> None:
    before, started = current(), containers()[0].id
    with steady(one=(URL, ALICE), two=(URL, ALICE)) as stream:
        upgraded = run("playbooks/upgrade.yml", vllm_service_extra_flags={"max-logprobs": 5})
    assert upgraded.rc == 0, upgraded.text
    assert current() != before
    (engine,) = containers()
    assert engine.id != started
    assert engine.labels["inference.vllm.release"] == current()
    assert containers(SPARE) == []
    print(f"requests: {dict(stream.seen)}")
    assert stream.failed == {}
    assert sum(stream.seen.values()) > 50


def test_upgrade_without_a_change_replaces_nothing() -> None:
    started = containers()[0].attrs["State"]["StartedAt"]
    again = run("playbooks/upgrade.yml", vllm_service_extra_flags={"max-logprobs": 5})
    assert (again.rc, again.changed) == (0, 0), again.text
    assert containers()[0].attrs["State"]["StartedAt"] == started


def test_release_that_does_not_start_never_gets_a_request() -> None:
    before, started = current(), containers()[0].id
    with steady(one=(URL, ALICE)) as stream:
        failed = run("playbooks/upgrade.yml", vllm_service_extra_flags={"attention-backend": "NO_SUCH_BACKEND"})
    assert failed.rc != 0
    assert "[spare_failed]" in failed.text
    assert "NO_SUCH_BACKEND" in failed.text
    assert (current(), containers()[0].id, containers(SPARE)) == (before, started, [])
    assert stream.failed == {}


def test_client_key_rotation_keeps_both_keys_valid_in_between() -> None:
    """The gateway reloads; the engine is not restarted."""
    started = containers()[0].attrs["State"]["StartedAt"]
    both = [{"name": "alice", "key": key} for key in (ALICE, ALICES_NEXT)]
    with steady(old=(URL, ALICE)) as stream:
        begun = run("playbooks/rotate_api_key.yml", gateway_keys=both)
        assert begun.rc == 0, begun.text
        stream.start("new", URL, ALICES_NEXT)
        again = run("playbooks/rotate_api_key.yml", gateway_keys=both)
        assert (again.rc, again.changed) == (0, 0), again.text
    assert stream.failed == {}
    assert {name for name, _ in stream.seen} == {"old", "new"}
    with steady(new=(URL, ALICES_NEXT)) as stream:
        ended = run("playbooks/rotate_api_key.yml", gateway_keys=both[1:])
    assert ended.rc == 0, ended.text
    assert stream.failed == {}
    assert (status(ALICE, URL), status(ALICES_NEXT, URL)) == (401, 200)
    assert containers()[0].attrs["State"]["StartedAt"] == started
    assert run("playbooks/rotate_api_key.yml").rc == 0


def test_engine_key_rotation_keeps_both_keys_valid_in_between(capfd: pytest.CaptureFixture[str]) -> None:
    """Clients of the gateway see no failure; direct clients can use both keys during the overlap."""
    old, direct = engine_key(), f"http://127.0.0.1:{PORT}/v1"
    with steady(client=(URL, ALICE)) as stream:
        begun = run("playbooks/rotate_api_key.yml", rotate_engine_key=True)
        assert begun.rc == 0, begun.text
        new = engine_key()
        assert (new != old, engine_key("former_api_key")) == (True, old)
        with steady(old=(direct, old), new=(direct, new)) as overlap:
            looked = run("playbooks/verify.yml")
            assert looked.rc == 0, looked.text
        assert overlap.failed == {}
        assert len(overlap.seen) == 2
        searched = secrets_in_sight(old, new)
        ended = run("playbooks/rotate_api_key.yml", rotate_engine_key=True, vllm_service_key_overlap=False)
        assert ended.rc == 0, ended.text
    print(f"requests: {dict(stream.seen)}")
    assert stream.failed == {}
    assert (status(old), status(new), engine_key("former_api_key")) == (401, 200, "")
    output = capfd.readouterr()
    assert searched == []
    assert not [key for key in (old, new, ALICE) if key in output.out + output.err]


def secrets_in_sight(*keys: str) -> list[str]:
    """Places in which an unauthorized user could read a key."""
    (engine,) = containers()
    shown = {
        "docker inspect": json.dumps(engine.attrs),
        "docker logs": engine.logs().decode(errors="replace"),
        "process list": subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout,
        "gateway's log": LOG.read_text(errors="replace"),
    }
    found = [f"{where}" for where, text in shown.items() if any(key in text for key in keys)]
    for folder in (HOME, ROOT / ".cache" / "runner", Path(CONFIG)):
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 10**7 and path.stat().st_mode & 0o077:
                data = path.read_bytes()
                found += [str(path) for key in keys if key.encode() in data]
    return found


def test_killed_processes_are_restarted() -> None:
    """Kill the engine process, its HTTP server and the container; the service answers again each time."""
    for pattern in ("VLLM::EngineCor", "vllm serve", None):
        (engine,) = containers()
        before = engine.attrs["State"]["StartedAt"]
        pid = engine.attrs["State"]["Pid"] if pattern is None else pid_of(engine, pattern)
        subprocess.run(["kill", "-9", str(pid)], check=True)
        until(partial(started_after, before), f"a start after {pattern}")
        until(lambda: status(ALICE, URL) == 200, f"an answer after {pattern}")


def started_after(before: str) -> bool:
    return bool(containers()[0].attrs["State"]["StartedAt"] != before)


def pid_of(container: Any, pattern: str) -> int:
    top = container.top(ps_args="-eo pid,args")
    (pid, *_) = [int(row[0]) for row in top["Processes"] if pattern in row[1] and "tini" not in row[1]]
    return pid


def until(done: Callable[[], bool], what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"never seen: {what}"
        time.sleep(1)
