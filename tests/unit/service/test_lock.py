"""The lock of a host: one run at a time, and none stands in the way after its end."""

from __future__ import annotations

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

from ansible_collections.inference.vllm.plugins.module_utils.service.lock import Owner, hold, is_gone, release, this_run

FIRST = Owner("ops", "laptop", "boot-a", 100, "5", "Serve")
SECOND = Owner("night", "runner", "boot-b", 100, "5", "Restart")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vllm.deploy-lock"


def test_first_run_gets_it_and_may_renew_it(path: Path) -> None:
    assert hold(path, FIRST, 1.0) is None
    assert hold(path, FIRST, 2.0) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_second_run_gets_the_holder(path: Path) -> None:
    hold(path, FIRST, 0.0)
    held = hold(path, SECOND, 60.0)
    assert held is not None
    assert held.owner == FIRST
    assert str(held.owner) == "ops@laptop, process 100, Serve"
    assert held.since() == "1970-01-01 00:00 UTC"


def test_released_lock_is_free(path: Path) -> None:
    hold(path, FIRST, 0.0)
    assert release(path, FIRST)
    assert hold(path, SECOND, 1.0) is None


def test_nobody_releases_the_lock_of_another(path: Path) -> None:
    hold(path, FIRST, 0.0)
    assert not release(path, SECOND)
    assert hold(path, SECOND, 1.0) is not None


def test_releasing_what_was_never_taken_makes_nothing(path: Path) -> None:
    assert not release(path, FIRST)
    assert not path.exists()


def test_lock_of_a_run_that_ended_is_taken_once(path: Path) -> None:
    hold(path, FIRST, 0.0)
    assert hold(path, SECOND, 1.0, instead_of=FIRST.key) is None
    # A third run that also saw the first one end comes too late.
    assert hold(path, replace(SECOND, pid=7), 1.0, instead_of=FIRST.key) is not None


def test_lock_may_be_broken(path: Path) -> None:
    hold(path, FIRST, 0.0)
    assert hold(path, SECOND, 1.0, instead_of="any") is None


@pytest.mark.parametrize(("now", "free"), [(99.0, False), (101.0, True)])
def test_lock_that_was_not_renewed_counts_for_nothing(path: Path, now: float, free: bool) -> None:
    hold(path, FIRST, 0.0)
    assert (hold(path, SECOND, now, max_age=100) is None) == free


def test_check_mode_sees_and_takes_nothing(path: Path) -> None:
    assert hold(path, FIRST, 0.0, write=False) is None
    assert not path.exists()
    hold(path, FIRST, 0.0)
    before = path.read_bytes()
    assert hold(path, SECOND, 1.0, write=False) is not None
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", '{"owner": 5}', '{"owner": {"user": "x"}, "renewed": 1}'])
def test_file_that_was_cut_off_is_no_lock(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    assert hold(path, SECOND, 1.0) is None


def test_link_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious", encoding="utf-8")
    path.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        hold(path, FIRST, 0.0)
    assert target.read_text(encoding="utf-8") == "precious"


def test_only_one_of_many_gets_it(path: Path) -> None:
    owners = [replace(FIRST, pid=number) for number in range(50)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda owner: hold(path, owner, 0.0) is None, owners))
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


@pytest.mark.parametrize("changed", [{"controller": "elsewhere"}, {"boot": ""}, {"started": ""}])
def test_what_cannot_be_known_is_not_gone(changed: dict[str, Any]) -> None:
    gone = replace(this_run(os.getpid()), pid=2**22 + 1, controller=socket.gethostname())
    assert not is_gone(replace(gone, **changed))
