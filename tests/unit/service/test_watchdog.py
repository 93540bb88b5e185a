"""What the watchdog does of what it sees: hangs, crash loops, and engines that are only slow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from deploy_lock import Moment, Owner, hold, release, this_run
from vllm_watchdog import Limits, Memory, Observation, Watchdog, judge, main, metrics, reason, stop_timeout

from support.paths import FIXTURES, ROOT

LIMITS = Limits(stall=30, max_restarts=3, window=3600, pause=30)
GOOD = Observation("c1", running=True, started_at="t1", health="healthy", restarts=0, tokens=100, pending=0)


def watch(
    looks: Sequence[tuple[float, Observation]], memory: Memory | None = None
) -> Iterator[tuple[float, str, str, Memory]]:
    """Judge one look after the other; time, action, cause and memory of each."""
    memory = memory or Memory()
    for now, seen in looks:
        verdict = judge(memory, seen, now, LIMITS)
        memory = verdict.memory
        yield now, verdict.action, verdict.cause, memory


def actions(looks: Sequence[tuple[float, Observation]]) -> list[tuple[float, str]]:
    return [(now, action) for now, action, *_ in watch(looks) if action != "nothing"]


def test_healthy_engine_is_left_alone() -> None:
    assert actions([(now, replace(GOOD, tokens=100 + now, pending=4)) for now in range(0, 7200, 5)]) == []


def test_idle_engine_is_left_alone() -> None:
    assert actions([(now, GOOD) for now in range(0, 7200, 5)]) == []


def test_engine_that_gives_no_token_is_restarted_in_time() -> None:
    hung = replace(GOOD, pending=2)
    (first, *_) = [row for row in watch([(now, hung) for now in range(0, 60, 5)]) if row[1] == "restart"]
    assert first[0] <= 40
    assert first[2] == "no token for 30 s while 2 requests are pending"


def test_one_slow_step_is_no_hang() -> None:
    slow = [(now, replace(GOOD, pending=2, tokens=now // 25)) for now in range(0, 600, 5)]
    assert actions(slow) == []


def test_unhealthy_engine_is_restarted_immediately() -> None:
    ((_, action, cause, memory),) = watch([(10, replace(GOOD, health="unhealthy"))])
    assert (action, cause) == ("restart", "the health check got no token")
    assert memory.recent == (10,)


def test_engine_that_starts_is_left_alone() -> None:
    starting = replace(GOOD, health="starting", tokens=None, pending=None)
    assert actions([(now, starting) for now in range(0, 900, 5)]) == []


def test_engine_that_tells_nothing_is_judged_by_its_health_only() -> None:
    silent = replace(GOOD, tokens=None, pending=None)
    assert actions([(now, silent) for now in range(0, 900, 5)]) == []


def test_pauses_double_and_then_it_gives_up() -> None:
    sick = replace(GOOD, health="unhealthy")
    done = actions([(now, sick) for now in range(0, 3000, 5)])
    assert done == [(0, "restart"), (30, "restart"), (90, "restart"), (210, "stop")]


def test_engine_that_recovers_after_its_last_restart_is_left_alone() -> None:
    sick, looks = replace(GOOD, health="unhealthy"), []
    for number, now in enumerate((0, 30, 90)):
        looks.append((now, replace(sick, started_at=f"t{number}")))
    looks += [(now, replace(GOOD, started_at="t3", tokens=now)) for now in range(95, 3000, 5)]
    assert [action for _, action in actions(looks)] == ["restart"] * 3


def test_restarts_of_long_ago_do_not_count() -> None:
    memory = Memory(container="c1", started_at="t1", recent=(0, 10, 20), tokens=100)
    verdict = judge(memory, replace(GOOD, health="unhealthy"), 3700, LIMITS)
    assert (verdict.action, verdict.memory.recent) == ("restart", (3700,))


def test_crash_loop_that_docker_feeds_is_stopped() -> None:
    looks = [(now * 10, replace(GOOD, restarts=now, started_at=f"t{now}", tokens=None)) for now in range(5)]
    assert actions(looks) == [(40, "stop")]
    assert [cause for _, action, cause, _ in watch(looks) if action == "stop"] == ["the container exited 4 times"]


def test_restarts_before_the_watchdog_came_do_not_count() -> None:
    assert actions([(0, replace(GOOD, restarts=50)), (5, replace(GOOD, restarts=50))]) == []


def test_stopped_container_is_left_alone() -> None:
    stopped = replace(GOOD, running=False, health="unhealthy")
    assert actions([(now, stopped) for now in range(0, 600, 5)]) == []


def test_restart_by_an_operator_resets_the_count() -> None:
    gave_up = Memory(container="c1", started_at="t1", recent=(1, 2, 3), gave_up=True)
    assert judge(gave_up, replace(GOOD, health="unhealthy"), 10, LIMITS).action == "nothing"
    verdict = judge(gave_up, replace(GOOD, started_at="t2", health="unhealthy"), 10, LIMITS)
    assert (verdict.action, verdict.memory.recent) == ("restart", (10,))


def test_new_release_resets_the_count() -> None:
    memory = Memory(container="old", recent=(1, 2, 3), gave_up=True)
    verdict = judge(memory, GOOD, 10, LIMITS)
    assert verdict.action == "nothing"
    assert verdict.memory.recent == ()


@pytest.mark.parametrize(
    ("log", "code"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 36.00 MiB.\nRuntimeError: dead",
            "out_of_gpu_memory",
        ),
        ("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.", "gpu_error"),
        ("RuntimeError: NCCL error: unhandled system error", "communication_error"),
        ("OSError: [Errno 28] No space left on device", "disk_full"),
        ("ValueError: --max-model-len is too large", "engine_error"),
        ("WARNING 11-26 [utils.py:597] fallback. Exception: could not create a primitive descriptor", "unknown"),
        ("INFO: started", "unknown"),
        ("", "unknown"),
    ],
)
def test_reason_is_read_from_the_log(log: str, code: str) -> None:
    assert reason(log)[0] == code


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("graphs_do_not_fit", "out_of_gpu_memory"),
        ("worker_killed", "process_killed"),
        ("length_too_long", "engine_error"),
        ("unknown_backend", "engine_error"),
    ],
)
def test_reason_of_engines_that_ended(log: str, expected: str) -> None:
    text = (FIXTURES / "engine_log" / f"{log}.log").read_text(encoding="utf-8")
    code, line = reason("\n".join(text.splitlines()[-300:]))
    assert code == expected
    assert "root cause" not in line


def test_reason_shows_the_last_such_line_without_colours() -> None:
    log = "ValueError: first\n\x1b[31mValueError: second\x1b[0m\nINFO: bye"
    assert reason(log) == ("engine_error", "ValueError: second")


def test_kernel_that_killed_it_is_the_reason() -> None:
    assert reason("ValueError: x", out_of_memory=True)[0] == "out_of_host_memory"


def test_metrics_add_up_over_engines() -> None:
    text = (
        "# HELP vllm:num_requests_running Number\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 1.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 4.0\n'
        'vllm:iteration_tokens_total_count{engine="0",model_name="m"} 1e+02\n'
    )
    assert metrics(text) == (100.0, 7.0)
    assert metrics("nothing") == (None, None)


RUN = Owner("ops", "laptop", "boot-of-laptop", 100, "5", "Verify", "pid:[1]")


def at(seconds: float, boot: str = "boot") -> Moment:
    """A moment of the watchdog's host whose wall clock is an hour ahead of the seconds since its boot."""
    return Moment(boot, seconds, seconds + 3600)


class _Container:
    """What the watchdog uses of a container of docker-py."""

    id, name = "c1", "vllm-vllm-1"

    def __init__(self, health: str, *, on_act: Callable[[], None] = lambda: None) -> None:
        self.did: list[str] = []
        self.on_act = on_act
        self.attrs: dict[str, Any] = {
            "RestartCount": 0,
            "Config": {"StopTimeout": 7},
            "State": {"Running": True, "Restarting": False, "StartedAt": "t1", "Health": {"Status": health}},
        }

    def logs(self, tail: int) -> bytes:
        return b"torch.OutOfMemoryError: CUDA out of memory."

    def restart(self, timeout: int) -> None:
        assert timeout == 7
        self.on_act()
        self.did.append("restart")

    def stop(self, timeout: int) -> None:
        assert timeout == 7
        self.did.append("stop")


class _Docker:
    def __init__(self, *found: _Container) -> None:
        self.containers, self.found = self, list(found)

    def list(self, **_: Any) -> list[_Container]:
        return self.found


def watchdog(home: Path, *found: _Container) -> Watchdog:
    config = {
        "home": str(home),
        "label": "x",
        "metrics_url": "http://127.0.0.1:1/metrics",
        "lock_file": str(home / "lock"),
    }
    return Watchdog(config, LIMITS, _Docker(*found))


def test_a_container_has_the_time_to_stop_that_it_was_made_with() -> None:
    container = _Container("healthy")
    assert stop_timeout(container) == 7
    container.attrs["Config"] = {}
    assert stop_timeout(container) == 10


def test_events_are_stored_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    container = _Container("unhealthy")
    dog = watchdog(tmp_path, container)
    for now in (0.0, 30.0, 90.0, 210.0, 500.0):
        dog.step(at(now))
    assert container.did == ["restart", "restart", "restart", "stop"]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["engine_hung"] * 3 + ["crash_loop"]
    assert events[-1]["reason"] == "out_of_gpu_memory"
    assert events[0]["time"] == "1970-01-01T01:00:00Z"
    assert "[crash_loop] vllm-vllm-1: the health check got no token, after 3 restarts" in capsys.readouterr().out


def test_it_remembers_over_its_own_restart(tmp_path: Path) -> None:
    watchdog(tmp_path, _Container("unhealthy")).step(at(0.0))
    container = _Container("unhealthy")
    again = watchdog(tmp_path, container)
    again.load_memory(at(1.0))
    again.step(at(5.0))
    assert container.did == []
    again.step(at(31.0))
    assert container.did == ["restart"]


def test_memory_of_an_earlier_boot_does_not_count(tmp_path: Path) -> None:
    """The seconds of another boot are later than all of this one: a hung engine would be left alone for days."""
    dog = watchdog(tmp_path, _Container("unhealthy"))
    for now in (1e6, 1e6 + 30, 1e6 + 90):
        dog.step(at(now))
    container = _Container("unhealthy")
    again = watchdog(tmp_path, container)
    again.load_memory(at(50, "next boot"))
    again.step(at(50, "next boot"))
    assert container.did == ["restart"]


@pytest.mark.parametrize("clock_step", [0, 5 * 3600, -86400])
@pytest.mark.parametrize(
    ("health", "looks", "did"),
    [("healthy", 5, []), ("unhealthy", 12, ["restart"] * 2), ("unhealthy", 50, ["restart"] * 3 + ["stop"])],
)
def test_wall_clock_does_not_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, health: str, looks: int, did: list[str], clock_step: float
) -> None:
    """The program itself, with a clock that is set between two looks: in a slow step, and at an engine that hangs."""
    config = {**watchdog(tmp_path).config, "docker_host": "", "interval": 5, "limits": asdict(LIMITS)}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    container, wall, seconds = _Container(health), time.time, iter(range(0, 5 * looks, 5))
    present, offset = [float(next(seconds))], [0.0]

    def pause(_: float) -> None:
        offset[0] += clock_step
        present[0] = next(seconds)

    monkeypatch.setattr("sys.argv", ["vllm_watchdog.py", str(tmp_path / "config.json")])
    monkeypatch.setattr("docker.DockerClient", lambda **_: _Docker(container))
    monkeypatch.setattr(Watchdog, "_read_metrics", lambda _: (5.0, 2.0))
    monkeypatch.setattr("time.time", lambda: wall() + offset[0])
    monkeypatch.setattr("time.monotonic", lambda: 1000 + present[0])
    monkeypatch.setattr("time.sleep", pause)
    with pytest.raises(StopIteration):
        main()
    assert container.did == did


def test_full_disk_does_not_prevent_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("events.jsonl", "memory.json.new"):
        (tmp_path / name).symlink_to("/dev/full")
    container = _Container("unhealthy")
    watchdog(tmp_path, container).step(at(0.0))
    assert container.did == ["restart"]
    assert "No space left on device" in capsys.readouterr().out


def test_lock_that_cannot_be_written_does_not_prevent_a_restart(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    container = _Container("unhealthy")
    watchdog(tmp_path, container).step(at(0.0))
    assert container.did == ["restart"]


def test_it_acts_before_it_reports(tmp_path: Path) -> None:
    reported: list[bool] = []
    container = _Container("unhealthy", on_act=lambda: reported.append((tmp_path / "events.jsonl").exists()))
    watchdog(tmp_path, container).step(at(0.0))
    assert reported == [False]
    assert (tmp_path / "events.jsonl").exists()


def test_it_holds_still_without_a_container(tmp_path: Path) -> None:
    watchdog(tmp_path).step(at(10.0))
    assert not (tmp_path / "events.jsonl").exists()


def test_it_holds_still_as_long_as_a_run_renews_its_lock(tmp_path: Path) -> None:
    """Also in a check of several hours."""
    container = _Container("unhealthy")
    dog = watchdog(tmp_path, container)
    for now in range(0, 4 * 3600, 60):
        assert hold(tmp_path / "lock", RUN, at(now)) is None
        dog.step(at(now + 50))
    assert container.did == []
    release(tmp_path / "lock", RUN)
    dog.step(at(4 * 3600))
    assert container.did == ["restart"]


@pytest.mark.parametrize(("age", "did"), [(290, []), (310, ["restart"])])
def test_it_waits_as_long_as_another_run_would(tmp_path: Path, age: float, did: list[str]) -> None:
    hold(tmp_path / "lock", RUN, at(1000))
    container = _Container("unhealthy")
    watchdog(tmp_path, container).step(at(1000 + age))
    assert container.did == did
    assert (hold(tmp_path / "lock", replace(RUN, pid=7), at(1000 + age)) is None) is bool(did)


def test_time_in_which_a_run_had_the_lock_is_no_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watchdog, "_read_metrics", lambda _: (5.0, 2.0))
    container = _Container("healthy")
    dog = watchdog(tmp_path, container)
    dog.step(at(0))
    dog.step(at(5))
    hold(tmp_path / "lock", RUN, at(6))
    dog.step(at(10))
    release(tmp_path / "lock", RUN)
    dog.step(at(100))
    assert container.did == []


def test_it_has_the_lock_while_it_acts(tmp_path: Path) -> None:
    refused: list[str] = []

    def come() -> None:
        held = hold(tmp_path / "lock", RUN, at(1.0))
        refused.append(str(held.owner) if held else "")

    container = _Container("unhealthy", on_act=come)
    watchdog(tmp_path, container).step(at(0.0))
    assert refused == [str(this_run(os.getpid(), "Watchdog"))]
    assert hold(tmp_path / "lock", RUN, at(2.0)) is None


def test_lock_that_a_run_takes_in_between_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watchdog, "_read_metrics", lambda _: (None, hold(tmp_path / "lock", RUN, at(0.0))))
    container = _Container("unhealthy")
    watchdog(tmp_path, container).step(at(0.0))
    assert container.did == []


def test_lock_that_is_being_written_is_not_free(tmp_path: Path) -> None:
    """Reads while a run renews its lock in another process."""
    lock = tmp_path / "lock"
    hold(lock, RUN, at(0.0))
    program = (
        "import sys; from pathlib import Path; from deploy_lock import *\n"
        "def write(): hold(Path(sys.argv[1]), " + repr(RUN) + ", Moment('boot', 0.0))\n"
        "write(); print('ready', flush=True)\n"
        "while True: write()"
    )
    container = _Container("unhealthy")
    dog = watchdog(tmp_path, container)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "roles/watchdog/files")}
    command = [sys.executable, "-c", program, str(lock)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            for _ in range(500):
                assert lock.stat().st_size  # never cut off, even for a reader that does not wait
                dog.step(at(1.0))
            assert writer.poll() is None
        finally:
            writer.kill()
    assert container.did == []


def test_program_runs_as_the_unit_starts_it(tmp_path: Path) -> None:
    """With the lock of the collection beside it, as the role copies both."""
    for name in ("vllm_watchdog.py", "deploy_lock.py"):
        shutil.copy(ROOT / "roles/watchdog/files" / name, tmp_path / name)
    unit = (ROOT / "templates/vllm-watchdog.service.j2").read_text(encoding="utf-8")
    (flags,) = re.findall(r"^ExecStart=\{\{ vllm_python \}\} (.*?) ?\{\{", unit, re.MULTILINE)
    result = subprocess.run(
        [sys.executable, *flags.split(), str(tmp_path / "vllm_watchdog.py"), str(tmp_path / "none.json")],
        cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "none.json" in result.stderr
    assert "FileNotFoundError" in result.stderr
