"""The lock of a host: one run at a time, and none stands in the way after its end."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.service.lock import (
    MAX_AGE_S,
    Moment,
    Owner,
    hold,
    is_gone,
    release,
    renew,
    this_moment,
    this_run,
)
from support.paths import ROOT

FIRST = Owner("ops", "laptop", "boot-a", 100, "5", "Serve")
SECOND = Owner("night", "runner", "boot-b", 100, "5", "Restart")


def at(seconds: float) -> Moment:
    """A moment of the host of the lock."""
    return Moment("boot", seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vllm.deploy-lock"


def test_first_run_gets_it_and_may_renew_it(path: Path) -> None:
    assert hold(path, FIRST, at(1.0)) is None
    assert hold(path, FIRST, at(2.0)) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_second_run_gets_the_holder(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    held = hold(path, SECOND, at(60.0))
    assert held is not None
    assert held.owner == FIRST
    assert str(held.owner) == "ops@laptop, process 100, Serve"
    assert held.since() == "1970-01-01 00:00 UTC"


def test_released_lock_is_free(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    assert release(path, FIRST)
    assert hold(path, SECOND, at(1.0)) is None


def test_nobody_releases_the_lock_of_another(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    assert not release(path, SECOND)
    assert hold(path, SECOND, at(1.0)) is not None


def test_releasing_what_was_never_taken_makes_nothing(path: Path) -> None:
    assert not release(path, FIRST)
    assert not path.exists()


def test_lock_of_a_run_that_ended_is_taken_once(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    assert hold(path, SECOND, at(1.0), instead_of=FIRST.key) is None
    # A third run that also saw the first one end comes too late.
    assert hold(path, replace(SECOND, pid=7), at(1.0), instead_of=FIRST.key) is not None


def test_lock_may_be_broken(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    assert hold(path, SECOND, at(1.0), instead_of="any") is None


@pytest.mark.parametrize(("now", "free"), [(199.0, False), (201.0, True)])
def test_lock_that_was_not_renewed_counts_for_nothing(path: Path, now: float, free: bool) -> None:
    hold(path, FIRST, at(0.0), max_age=100)
    hold(path, FIRST, at(100.0), max_age=100)
    # The lease of the run that holds it counts, not that of the run that looks.
    assert (hold(path, SECOND, at(now), max_age=5000) is None) == free


def test_lease_of_a_run_is_minutes(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    assert hold(path, SECOND, at(MAX_AGE_S)) is not None
    assert hold(path, SECOND, at(MAX_AGE_S + 1)) is None
    assert MAX_AGE_S <= 600


def test_lease_may_have_no_end(path: Path) -> None:
    hold(path, FIRST, at(0.0), max_age=0)
    assert hold(path, SECOND, at(1e9)) is not None


@pytest.mark.parametrize("wall", [0.0, 5 * 3600.0, -9e6, 9e6])
def test_wall_clock_of_the_host_does_not_decide(path: Path, wall: float) -> None:
    hold(path, FIRST, Moment("boot", 10.0, 1e9))
    assert hold(path, SECOND, Moment("boot", 20.0, 1e9 + wall)) is not None
    assert hold(path, SECOND, Moment("boot", 20.0 + MAX_AGE_S, 1e9 + wall)) is None


def test_present_moment_is_of_the_boot_and_not_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    first = this_moment()
    monkeypatch.setattr("time.time", lambda: 9e9)
    second = this_moment()
    assert (first.boot, second.wall) == (second.boot, 9e9)
    assert 0 <= second.seconds - first.seconds < 1000
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    assert second.seconds <= uptime + 1


@pytest.mark.parametrize("seconds", [1.0, 10.0, 1e9])
def test_lock_of_an_earlier_boot_counts_for_nothing(path: Path, seconds: float) -> None:
    hold(path, FIRST, at(10.0), max_age=0)
    assert hold(path, SECOND, Moment("next boot", seconds)) is None


def test_lock_of_a_later_moment_of_the_same_boot_counts_for_nothing(path: Path) -> None:
    hold(path, FIRST, at(1e9))
    assert hold(path, SECOND, at(1.0)) is None


def test_run_learns_since_when_another_holds_it(path: Path) -> None:
    hold(path, FIRST, Moment("boot", 0.0, 60.0))
    hold(path, FIRST, Moment("boot", 240.0, 300.0))
    held = hold(path, SECOND, Moment("boot", 250.0, 310.0))
    assert held is not None
    assert (held.since(), held.renewed) == ("1970-01-01 00:01 UTC", 240.0)


def test_run_renews_what_it_holds(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    assert renew(path, FIRST, at(200.0), boot="boot")
    assert hold(path, SECOND, at(400.0)) is not None
    # Also after its lease has ended, as long as nobody else took it.
    assert renew(path, FIRST, at(900.0), boot="boot")


def test_renewal_keeps_the_last_play_of_the_run(path: Path) -> None:
    hold(path, FIRST, at(0.0))
    hold(path, replace(FIRST, play="Verify"), at(1.0))
    assert renew(path, FIRST, at(2.0), boot="boot")
    held = hold(path, SECOND, at(3.0))
    assert held is not None
    assert held.owner.play == "Verify"


def test_run_does_not_renew_what_it_lost(path: Path) -> None:
    assert not renew(path, FIRST, at(0.0), boot="boot")
    assert not path.exists()
    hold(path, FIRST, at(0.0))
    hold(path, SECOND, at(1.0), instead_of="any")
    assert not renew(path, FIRST, at(2.0), boot="boot")
    # Nor what it gave back: a renewal that was on its way then arrives later.
    release(path, SECOND)
    assert not renew(path, SECOND, at(3.0), boot="boot")
    assert hold(path, FIRST, at(4.0)) is None


def test_run_takes_it_again_after_a_boot_of_the_host(path: Path) -> None:
    hold(path, FIRST, at(500.0))
    path.unlink()
    assert renew(path, FIRST, Moment("next boot", 20.0), boot="boot")
    assert hold(path, SECOND, Moment("next boot", 30.0)) is not None


def test_run_that_was_first_after_a_boot_keeps_it(path: Path) -> None:
    hold(path, SECOND, Moment("next boot", 10.0))
    assert not renew(path, FIRST, Moment("next boot", 20.0), boot="boot")


def test_renewal_never_leaves_a_file_that_is_no_lock(path: Path) -> None:
    """A process that is killed between two writes, or one that looks without waiting, sees the old or the new lock."""
    hold(path, replace(FIRST, play="a long name of a play" * 50), at(0.0))
    size = path.stat().st_size
    hold(path, replace(FIRST, play="x"), at(1.0))
    assert path.stat().st_size == size
    assert json.loads(path.read_text(encoding="utf-8"))["owner"]["play"] == "x"


def test_check_mode_sees_and_takes_nothing(path: Path) -> None:
    assert hold(path, FIRST, at(0.0), write=False) is None
    assert not path.exists()
    hold(path, FIRST, at(0.0))
    before = path.read_bytes()
    assert hold(path, SECOND, at(1.0), write=False) is not None
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", '{"owner": 5}', '{"owner": {"user": "x"}, "renewed": 1}'])
def test_file_that_was_cut_off_is_no_lock(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    assert hold(path, SECOND, at(1.0)) is None


def test_link_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious", encoding="utf-8")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        hold(path, FIRST, at(0.0))
    assert target.read_text(encoding="utf-8") == "precious"


def test_only_one_of_many_gets_it(path: Path) -> None:
    owners = [replace(FIRST, pid=number) for number in range(50)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda owner: hold(path, owner, at(0.0)) is None, owners))
    assert got.count(True) == 1


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        yield other
        other.kill()


def test_run_that_goes_on_is_not_gone(process: subprocess.Popen[bytes]) -> None:
    assert not is_gone(this_run(process.pid))
    assert not is_gone(this_run(os.getpid()))


def test_run_that_ended_is_gone(process: subprocess.Popen[bytes]) -> None:
    owner = this_run(process.pid)
    process.kill()
    process.wait()
    assert is_gone(owner)


def test_another_process_with_the_same_number_is_not_the_run() -> None:
    assert is_gone(replace(this_run(os.getpid()), started="1"))


def test_run_before_a_boot_of_the_controller_is_gone() -> None:
    assert is_gone(replace(this_run(os.getpid()), boot="another"))


@pytest.mark.parametrize(
    "changed", [{"controller": "elsewhere"}, {"boot": ""}, {"started": ""}, {"namespace": ""}, {"machine": "another"}]
)
def test_what_cannot_be_known_is_not_gone(changed: dict[str, Any]) -> None:
    gone = replace(this_run(os.getpid()), pid=2**22 + 1, started="1", controller=socket.gethostname())
    assert is_gone(gone)
    assert not is_gone(replace(gone, **changed))


def test_run_in_another_pid_namespace_is_not_gone(process: subprocess.Popen[bytes]) -> None:
    """Two containers with the host's name: the number of a process means nothing in the other one."""
    program = (
        "import sys; from ansible_collections.inference.vllm.plugins.module_utils.service.lock import Owner, is_gone; "
        f"print(is_gone({this_run(process.pid)!r}))"
    )
    result = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
    )  # fmt: skip
    if "Operation not permitted" in result.stderr:
        pytest.skip("needs root, for a PID namespace of its own")
    assert result.stdout.strip() == "False", result.stderr


def test_run_that_its_parent_has_not_asked_for_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as zombie:
        owner = this_run(zombie.pid)
        zombie.kill()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{zombie.pid}").exists()
        assert is_gone(owner)


def test_lock_of_a_process_of_the_host_itself_ends_with_it(path: Path, process: subprocess.Popen[bytes]) -> None:
    """The watchdog, or a run with a local connection: the host sees that it has ended, and who comes need not wait."""
    owner = this_run(process.pid)
    assert hold(path, owner, at(0.0)) is None
    assert hold(path, SECOND, at(1.0)) is not None
    process.kill()
    process.wait()
    assert hold(path, SECOND, at(1.0)) is None
