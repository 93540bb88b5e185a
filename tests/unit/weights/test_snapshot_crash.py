"""Runs that are killed, and runs that meet: separate processes against one hub."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Retry
from ansible_collections.inference.vllm.plugins.module_utils.weights.snapshot import Outcome, Want, ensure
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import Layout
from support.faulty_hub import FaultyHub, running, write_model

RANDOM = random.Random(11)
FILES = {f"model-{n}.safetensors": RANDOM.randbytes(400_000) for n in range(5)} | {"config.json": b"{}\n"}
SIZE = sum(map(len, FILES.values()))
KILLS = 20
WORKERS = 2

PROCESSES = multiprocessing.get_context("forkserver")  # a plain fork would copy the hub's threads' locks
PROCESSES.set_forkserver_preload(["huggingface_hub.hf_api", "httpx2", Want.__module__, __name__])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FaultyHub]:
    write_model(tmp_path / "hub", "org/tiny", FILES)
    with running(tmp_path / "hub", rate=8e6) as server:
        yield server


@pytest.fixture
def want(served: FaultyHub, tmp_path: Path) -> Want:
    return Want("org/tiny", tmp_path / "models", endpoint=served.url, timeout=10, retry=Retry(3, 0.01), workers=WORKERS)


def run_apart(want: Want) -> None:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    ensure(want)


def report_apart(want: Want, answers: multiprocessing.SimpleQueue[Outcome | str]) -> None:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        answers.put(ensure(want))
    except RefusalError as error:
        answers.put(error.refusals[0].code)


def bytes_on_disk(want: Want, commit: str) -> dict[str, int]:
    """How much of each file an unfinished download holds."""
    layout = Layout(want.root, want.repository)
    places = {name: (layout.part(commit, name), layout.staging(commit) / name) for name in FILES}
    return {name: sum(p.stat().st_size for p in both if p.exists()) for name, both in places.items()}


def first_bytes_asked(server: FaultyHub) -> dict[str, int]:
    """From which byte on each file was first asked for."""
    first: dict[str, int] = {}
    for asked, name in zip([a for a in server.asked if "/resolve/" in a.path], server.files_asked(), strict=True):
        first.setdefault(name, int(asked.headers.get("range", "bytes=0-")[6:-1]))
    return first


def test_killed_at_random_points_it_continues_and_ends_right(served: FaultyHub, want: Want) -> None:
    commit = ensure(want, dry_run=True).commit
    layout = Layout(want.root, want.repository)
    others = served.connections
    for _ in range(KILLS):
        more = RANDOM.randrange(1, SIZE // KILLS)  # so little that the last one cannot be done before it is killed
        held = bytes_on_disk(want, commit)
        served.asked.clear()
        run = PROCESSES.Process(target=run_apart, args=(want,))
        served.alarms = [(served.sent + more, lambda run=run: os.kill(run.pid, signal.SIGKILL))]  # type: ignore[misc]
        run.start()
        run.join(60)
        assert run.exitcode == -signal.SIGKILL
        # What still sends to the dead would ring the alarm of the next run before that has begun.
        served.wait_until_left(others)
        assert not layout.folder(commit).exists()
        assert not layout.lock.exists()
        first = first_bytes_asked(served)
        assert first == {name: held[name] for name in first}
        assert not [name for name in first if held[name] == len(FILES[name])]
    served.alarms.clear()
    held = bytes_on_disk(want, commit)
    assert sum(held.values()) > 0
    outcome = ensure(want)
    assert outcome.bytes_fetched == SIZE - sum(held.values())
    assert {name: (outcome.path / name).read_bytes() for name in FILES} == FILES
    assert not ensure(want).changed


def test_two_concurrent_runs_fetch_once(served: FaultyHub, want: Want) -> None:
    answers = PROCESSES.SimpleQueue()
    runs = [PROCESSES.Process(target=report_apart, args=(want, answers)) for _ in range(2)]
    for run in runs:
        run.start()
    outcomes = [answers.get() for _ in runs]
    for run in runs:
        run.join(30)
    assert sorted(outcome.bytes_fetched for outcome in outcomes) == [0, SIZE]
    assert served.sent == SIZE


def test_a_timeout_of_the_lock_names_its_holder(served: FaultyHub, want: Want) -> None:
    answers = PROCESSES.SimpleQueue()
    late = PROCESSES.Process(target=report_apart, args=(replace(want, lock_timeout=0), answers))
    begun = threading.Event()

    def begin() -> None:
        late.start()
        begun.set()

    def see_its_end() -> None:  # alarms ring on the threads of several connections, which do not wait for each other
        begun.wait(30)
        late.join()

    served.alarms = [(1, begin), (SIZE // 2, see_its_end)]  # begins and ends while the first is at work
    ensure(want)
    assert answers.get() == "busy"
