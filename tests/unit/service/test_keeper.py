"""The process that renews a lock: when it releases it, when it leaves it, and when it gives up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.service import keeper
from support.paths import ROOT


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_TICK_S", 0.01)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def run(pipe: int, *answers: bool | None, end: str = "killed") -> tuple[bool, list[str]]:
    """Keep a lock whose renewals have these results, until the run ends in this way."""
    did: list[str] = []
    left = list(answers)

    def renew() -> bool | None:
        did.append("renew")
        return left.pop(0)

    kept = keeper.keep(
        pipe,
        0.0,
        run_state=lambda: "running" if left else end,
        renew=renew,
        release=lambda: did.append("release"),
    )
    return kept, did


def test_lock_of_a_run_that_ended_is_released(pipe: tuple[int, int]) -> None:
    assert run(pipe[0], True, True, end="ended") == (True, ["renew", "renew", "release"])


def test_lock_of_a_killed_run_is_left(pipe: tuple[int, int]) -> None:
    assert run(pipe[0], True, end="killed") == (True, ["renew"])


def test_host_that_does_not_answer_is_asked_again(pipe: tuple[int, int]) -> None:
    """For example during its reboot."""
    assert run(pipe[0], None, None, True) == (True, ["renew"] * 3)


def test_lost_lock_is_not_renewed_again(pipe: tuple[int, int]) -> None:
    assert run(pipe[0], True, False, True) == (False, ["renew", "renew"])


@pytest.mark.parametrize(("number", "did"), [(keeper.END, []), (keeper.RELEASE, ["release"])])
def test_signal_ends_it(pipe: tuple[int, int], number: signal.Signals, did: list[str]) -> None:
    os.write(pipe[1], bytes([number]))
    assert run(pipe[0], True) == (True, did)


def test_several_renewals_fit_into_a_lease() -> None:
    for max_age in (5, 30, 300, 3600):
        assert keeper.pause_of(max_age) * 5 <= max_age
    assert keeper.pause_of(14400) == keeper.pause_of(0) == 60


def test_keepers_of_a_run_are_told_to_release_and_awaited(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from ansible_collections.inference.vllm.plugins.module_utils.service import keeper\n"
        "file = keeper.PidFile.of(Path(sys.argv[1]), sys.argv[2], '/run/lock'); number = file.claim()\n"
        "pipe = keeper.signals(); file.path.write_text(str(__import__('os').getpid())); print('ready', flush=True)\n"
        "keeper.keep(pipe, 60, run_state=lambda: 'running', renew=lambda: True, release=lambda: print('released'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "collections")}
    keepers = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path, host], stdout=subprocess.PIPE, env=environment)
        for host in ("gpu1", "gpu2")
    ]
    for process in keepers:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    assert keeper.PidFile.of(tmp_path, "gpu1", "/run/lock").claim() is None
    assert keeper.release_all(tmp_path, 60)
    assert [process.communicate(timeout=60)[0] for process in keepers] == [b"released\n"] * 2
    assert keeper.release_all(tmp_path, 60)


def test_keeper_that_hangs_is_not_awaited_forever(tmp_path: Path) -> None:
    file = keeper.PidFile.of(tmp_path, "gpu1", "/run/lock")
    descriptor = file.claim()
    assert descriptor is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        file.path.write_text(str(process.pid), encoding="ascii")
        assert not keeper.release_all(tmp_path, 0)
    os.close(descriptor)
    assert not file.is_locked()
