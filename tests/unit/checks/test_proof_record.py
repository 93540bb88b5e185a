"""When a proof on record stands for what runs, and when it is made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.lookup import proof_settings
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import Store, design
from ansible_collections.inference.vllm.plugins.modules import proof_record
from support.modules import run_module
from support.paths import ROOT
from support.token_engine import KEY, token_engine

HEALTHCHECK = ROOT / "roles" / "vllm_service" / "files" / "healthcheck.py"
# Nanoseconds count.
STARTED, LATER = "2026-01-01T00:00:00.123456789Z", "2026-01-01T00:00:00.123456790Z"
Call = Callable[..., dict[str, Any]]


def docker(home: Path, *, started: str = STARTED, running: bool = True, rc: int = 0) -> None:
    """A client of Docker that knows one container."""
    (home / "bin").mkdir(exist_ok=True)
    (home / "inspected").write_text(json.dumps([{"State": {"Running": running, "StartedAt": started}}]))
    program = home / "bin" / "docker"
    program.write_text(f'#!/bin/sh\n[ "$*" = "container inspect vllm-1" ] || exit 9\ncat {home}/inspected\nexit {rc}\n')
    program.chmod(0o755)


@dataclass
class Host:
    """What an event happens to."""

    home: Path
    release: str
    engine: Any


def judge(home: Path, release: str, *, ok: bool = True, speaks_of: str = "") -> None:
    checks = (Check("colour_red", ok), Check("image_tag", False, severity="warning"))
    folder = home / "reports" / release
    folder.mkdir(parents=True, exist_ok=True)
    verdict = Verdict(speaks_of or release, checks, finished="2026-01-02T00:00:00Z")
    (folder / "verdict.json").write_text(verdict.to_json())


def write(home: Path, word: str) -> str:
    """A release, made current and proven well."""
    written = design("tiny", {"compose.yaml": word, "healthcheck.py": HEALTHCHECK.read_text()}, {}, {})
    Store(home).write(written)
    Store(home).point(written.id)
    judge(home, written.id)
    return written.id


@pytest.fixture
def release(tmp_path: Path) -> str:
    docker(tmp_path)
    (tmp_path / "key").write_text(f"{KEY}\n")
    return write(tmp_path, "x")


@pytest.fixture
def engine() -> Iterator[Any]:
    with token_engine() as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, release: str, engine: Any) -> Host:
    return Host(tmp_path, release, engine)


@pytest.fixture
def call(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the module on that host."""
    tmp_path = host.home
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    usual = {
        "home": str(tmp_path),
        "release": host.release,
        "container": "vllm-1",
        "settings": "s",
        "port": host.engine.server_port,
        "api_key_file": str(tmp_path / "key"),
        "model": "tiny",
        "timeout": 1,
    }
    return lambda **given: run_module(proof_record, capsys, {**usual, **given}, secret=KEY)


@pytest.fixture
def proven(call: Call) -> Call:
    """The same, after a full proof."""
    assert call(state="recorded", started=call()["started"])["recorded"] is True
    return call


def test_a_proof_of_this_start_stands(proven: Call, engine: Any, release: str) -> None:
    seen = proven()
    assert (seen["stands"], seen["why"], seen["changed"]) == (True, "", False)
    for words in ("PROVEN at 2026-01-02T00:00:00Z", release, "1 checks", STARTED, "one token in"):
        assert words in seen["msg"]
    assert engine.seen[0] == "/v1/completions"


def test_without_a_record_nothing_stands(call: Call) -> None:
    seen = call()
    assert (seen["stands"], seen["why"], seen["started"]) == (False, "no full proof of it is on record", STARTED)
    assert seen["why"] in seen["msg"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"release": "x"}'])
def test_a_broken_record_counts_as_none(proven: Call, tmp_path: Path, release: str, text: str) -> None:
    (tmp_path / "reports" / release / "proof.json").write_text(text)
    assert proven()["why"] == "no full proof of it is on record"


def started_again(host: Host) -> None:
    docker(host.home, started=LATER)


def stopped(host: Host) -> None:
    docker(host.home, running=False)


def gone(host: Host) -> None:
    docker(host.home, rc=1)


def garbled(host: Host) -> None:
    (host.home / "inspected").write_text("[]")


def found_bad(host: Host) -> None:
    judge(host.home, host.release, ok=False)


def not_judged(host: Host) -> None:
    (host.home / "reports" / host.release / "verdict.json").write_text("{")


def judged_as_another(host: Host) -> None:
    judge(host.home, host.release, speaks_of="another")


def replaced(host: Host) -> None:
    write(host.home, "y")


def hung(host: Host) -> None:
    host.engine.behaviour = "hang"


def another_key(host: Host) -> None:
    (host.home / "key").write_text("another-key-entirely")


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (started_again, f"its container was started again at {LATER}"),
        (stopped, "its container does not run"),
        (gone, "its container cannot be seen"),
        (garbled, "its container cannot be seen"),
        (found_bad, "its verdict is not good (colour_red)"),
        (not_judged, "it has no verdict"),
        (judged_as_another, "it has no verdict"),
        (replaced, "it is not the current release"),
        (hung, "it gives no token: [engine_hung]"),
        (another_key, "it gives no token: [engine_refuses] HTTP 401"),
    ],
)
def test_after_that_a_full_proof_is_made(proven: Call, host: Host, event: Callable[[Host], None], why: str) -> None:
    assert proven()["stands"] is True
    event(host)
    seen = proven()
    assert (seen["stands"], seen["failed"]) == (False, False)
    assert seen["why"].startswith(why)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"settings": "t"}, "what is checked, or how, has changed"),
        ({"container": "other"}, "its container cannot be seen"),
        ({"wanted": False}, "a full proof is asked for"),
    ],
)
def test_another_question_takes_a_full_proof(proven: Call, given: dict[str, Any], why: str) -> None:
    assert proven(**given)["why"] == why


def test_a_start_in_the_midst_of_a_proof_is_not_recorded(call: Call, tmp_path: Path) -> None:
    before = call()["started"]
    docker(tmp_path, started=LATER)
    assert call(state="recorded", started=before)["recorded"] is False
    assert call()["why"] == "no full proof of it is on record"


@pytest.mark.parametrize("event", [found_bad, not_judged, judged_as_another, gone])
def test_what_was_not_proven_is_not_recorded(call: Call, host: Host, event: Callable[[Host], None]) -> None:
    before = call()["started"]
    event(host)
    # Where there is no container its start is empty on both sides.
    started = "" if event is gone else before
    assert call(state="recorded", started=started)["recorded"] is False
    assert not (host.home / "reports" / host.release / "proof.json").exists()


def test_check_mode_looks_and_records_nothing(call: Call, tmp_path: Path, release: str) -> None:
    call(state="recorded", started=STARTED, _ansible_check_mode=True)
    assert not (tmp_path / "reports" / release / "proof.json").exists()
    call(state="recorded", started=STARTED)
    assert call(_ansible_check_mode=True)["stands"] is True


def test_a_host_without_docker_has_no_proof(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / "docker").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert call()["why"] == "its container cannot be seen"


def test_settings_and_code_make_the_digest(tmp_path: Path) -> None:
    for name, text in (("a.py", "1"), ("b.py", "2"), ("c.py", "1")):
        (tmp_path / name).write_text(text)
    a, b, c = (tmp_path / f"{name}.py" for name in "abc")
    usual = proof_settings.digest({"x": 1, "y": 2}, [a, b])
    assert proof_settings.digest({"y": 2, "x": 1}, [b, c]) == usual
    assert (
        len({usual, proof_settings.digest({"x": 2, "y": 2}, [a, b]), proof_settings.digest({"x": 1, "y": 2}, [a])}) == 3
    )


def test_checks_and_their_defaults_are_part_of_the_digest() -> None:
    roles = ROOT / "roles"
    found = {
        path.as_posix().rpartition("/plugins/")[2].removeprefix(f"{roles}/") for path in proof_settings.sources(roles)
    }
    assert {"module_utils/checks/smoke/cases.py", "modules/vram_check.py", "stability/defaults/main.yml"} <= found
    assert "_verdict/tasks/main.yml" in found
    assert not [path for path in found if "meta" in path]
