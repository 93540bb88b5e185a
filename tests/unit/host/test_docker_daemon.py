"""What becomes of Docker's daemon.json, on real files and with stand-ins for dockerd and systemctl.

Modules docker_daemon_config, docker_daemon_apply and docker_engine_info.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.host.docker_daemon import (
    action,
    as_text,
    changed_keys,
    merge,
    parse,
    reason_in,
    without,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.modules import (
    docker_daemon_apply,
    docker_daemon_config,
    docker_engine_info,
)
from support.modules import run_module

FOREIGN = {"bip": "10.9.0.1/24", "runtimes": {"kata": {"path": "/opt/kata", "runtimeArgs": ["-v"]}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "docker"


@pytest.fixture
def path(folder: Path) -> Path:
    """The file with foreign content."""
    folder.mkdir()
    (folder / "daemon.json").write_text(json.dumps(FOREIGN))
    return folder / "daemon.json"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that programs are looked up in before all others."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    program(place, "dockerd", "echo 'Status: unknown flag: --validate' >&2; exit 125")
    return place


def program(place: Path, name: str, body: str) -> None:
    (place / name).write_text(f"#!/bin/sh\n{body}\n")
    (place / name).chmod(0o755)


@pytest.fixture
def run(folder: Path, programs: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(module: Any = docker_daemon_config, **arguments: Any) -> dict[str, Any]:
        return run_module(module, capsys, {"path": str(folder / "daemon.json"), **arguments})

    return call


def files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Merging.


def test_a_runtime_is_added_to_the_existing_ones() -> None:
    after = merge(FOREIGN, {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}})
    assert after == {
        "bip": "10.9.0.1/24",
        "runtimes": {**FOREIGN["runtimes"], "nvidia": {"path": "nvidia-container-runtime"}},  # type: ignore[dict-item]
    }
    assert list(after) == ["bip", "runtimes"]


@pytest.mark.parametrize("key", ["registry-mirrors", "insecure-registries", "default-address-pools"])
def test_lists_are_replaced(key: str) -> None:
    assert merge({key: ["a", "b"]}, {key: ["c"]}) == {key: ["c"]}


def test_options_of_another_log_driver_go_with_it() -> None:
    before = {"log-driver": "json-file", "log-opts": {"max-size": "1m", "labels": "x"}}
    assert merge(before, {"log-driver": "journald", "log-opts": {"tag": "t"}})["log-opts"] == {"tag": "t"}
    assert "log-opts" not in merge(before, {"log-driver": "journald"})
    kept = merge(before, {"log-driver": "json-file", "log-opts": {"max-size": "2m"}})
    assert kept["log-opts"] == {"max-size": "2m", "labels": "x"}


def test_numbers_in_log_options_become_text() -> None:
    assert merge({}, {"log-opts": {"max-file": 3, "compress": True}}) == {
        "log-opts": {"max-file": "3", "compress": "true"}
    }


def test_a_true_is_not_a_one() -> None:
    assert changed_keys({"live-restore": 1}, {"live-restore": True}) == ["live-restore"]


def test_without_takes_an_entry_and_the_object_it_leaves_empty() -> None:
    config = {"runtimes": {"a": {}, "b": {}}, "debug": True}
    assert without(config, ["runtimes/a", "no", "debug/no", "no/no"]) == {"runtimes": {"b": {}}, "debug": True}
    assert without(config, ["runtimes/a", "runtimes/b", "debug"]) == {}
    assert config == {"runtimes": {"a": {}, "b": {}}, "debug": True}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CONFIG = st.dictionaries(st.text(), JSON, max_size=4)


@given(CONFIG, CONFIG)
def test_merging_twice_is_merging_once_and_the_file_reads_back(before: dict[str, Any], wanted: dict[str, Any]) -> None:
    once = merge(before, wanted)
    assert merge(once, wanted) == once
    assert parse(as_text(once), "x") == once
    assert set(once) == set(before) | set(wanted) or "log-opts" in before
    assert changed_keys(once, once) == []


@given(st.text())
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        parse(text, "daemon.json")
    except RefusalError as error:
        assert {refusal.code for refusal in error.refusals} == {"invalid_daemon_json"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, "none"),
        ({}, {"live-restore": True}, "reload"),
        ({"bip": "x"}, {"bip": "x", "registry-mirrors": ["y"]}, "reload"),
        ({"registry-mirrors": ["y"]}, {}, "restart"),
        ({}, {"live-restore": True, "log-driver": "local"}, "restart"),
    ],
)
def test_action(before: dict[str, Any], after: dict[str, Any], expected: str) -> None:
    assert action(before, after) == expected


def test_reason_is_the_last_error_of_dockerd() -> None:
    log = """time="2026-01-01T00:00:00Z" level=info msg="Starting up"
unable to configure the Docker daemon with file /etc/docker/daemon.json: the following directives don't match
docker.service: Main process exited, code=exited, status=1/FAILURE
"""
    assert reason_in(log).startswith("unable to configure the Docker daemon")
    assert reason_in("a\nb\nc\nd\n") == "b\nc\nd"


# The file.


def test_first_write_makes_folder_and_file(run: Any, folder: Path) -> None:
    result = run(config={"live-restore": True})
    assert (result["changed"], result["failed"], result["changed_keys"]) == (True, False, ["live-restore"])
    assert json.loads((folder / "daemon.json").read_text()) == {"live-restore": True}
    assert files(folder) == ["daemon.json", "daemon.json.last-good"]


def test_mode_and_foreign_keys_stay_and_the_former_file_is_kept(run: Any, path: Path) -> None:
    path.chmod(0o640)
    result = run(config={"live-restore": True})
    assert json.loads(path.read_text()) == {**FOREIGN, "live-restore": True}
    kept = Path(result["backup"])
    assert json.loads(kept.read_text()) == FOREIGN
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, kept)] == [0o640, 0o640]


def test_second_write_keeps_what_docker_ran_with(run: Any, path: Path) -> None:
    run(config={"live-restore": True})
    second = run(config={"debug": True})
    assert json.loads(Path(second["backup"]).read_text()) == FOREIGN
    assert second["action"] == "reload"


def test_same_keys_rewrite_nothing(run: Any, path: Path) -> None:
    text = path.read_text()
    result = run(config={"bip": "10.9.0.1/24"})
    assert (result["changed"], result["action"]) == (False, "none")
    assert path.read_text() == text
    assert files(path.parent) == ["daemon.json"]


def test_a_change_that_docker_has_not_read_is_still_pending(run: Any, path: Path) -> None:
    run(config={"live-restore": True})
    again = run(config={"live-restore": True})
    assert (again["changed"], again["changed_keys"], again["action"]) == (True, [], "reload")


def test_check_mode_writes_nothing_and_shows_the_difference(run: Any, path: Path) -> None:
    text = path.read_text()
    result = run(config={"debug": True}, _ansible_check_mode=True, _ansible_diff=True)
    assert result["changed"] is True
    assert (result["diff"]["before"], json.loads(result["diff"]["after"])) == (text, {**FOREIGN, "debug": True})
    assert (path.read_text(), files(path.parent)) == (text, ["daemon.json"])


def test_absent(run: Any, path: Path) -> None:
    result = run(state="absent", keys=["runtimes/kata", "never-there"])
    assert result["changed_keys"] == ["runtimes"]
    assert json.loads(path.read_text()) == {"bip": "10.9.0.1/24"}
    assert run(state="absent", keys=["never-there"])["changed_keys"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "debug": true,\n}', "line 3, column 1"),
        ("[]", "not an object"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": NaN}', "NaN"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_left(run: Any, path: Path, text: str, message: str) -> None:
    path.write_text(text)
    for check_mode in (False, True):
        result = run(config={"live-restore": True}, _ansible_check_mode=check_mode)
        assert result["failed"] is True
        assert result["refusals"][0]["code"] == "invalid_daemon_json"
        assert message in result["msg"]
        assert str(path) in result["msg"]
    assert (path.read_text(), files(path.parent)) == (text, ["daemon.json"])


def test_bytes_that_are_no_text_are_refused(run: Any, path: Path) -> None:
    path.write_bytes(b'{"a": "\xff"}')
    assert "not UTF-8 at byte 7" in run(config={"debug": True})["msg"]


@pytest.mark.parametrize("text", ["", " \n", "\ufeff{}"])
def test_an_empty_file_and_a_byte_order_mark_are_read(run: Any, path: Path, text: str) -> None:
    path.write_text(text)
    assert run(config={"debug": True})["failed"] is False
    assert json.loads(path.read_text()) == {"debug": True}


def test_a_symbolic_link_stays_one(run: Any, path: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    path.rename(real)
    path.symlink_to(real)
    run(config={"debug": True})
    assert path.is_symlink()
    assert json.loads(real.read_text())["debug"] is True


def test_what_dockerd_refuses_is_not_written(run: Any, path: Path, programs: Path) -> None:
    program(programs, "dockerd", 'grep -q no-such-key "$3" && { echo "$3: no such directive" >&2; exit 1; }; exit 0')
    text = path.read_text()
    result = run(config={"no-such-key": 1})
    assert result["refusals"][0]["code"] == "daemon_config_refused", result
    assert f"{path}: no such directive" in result["msg"]
    assert (path.read_text(), files(path.parent)) == (text, ["daemon.json"])
    assert run(config={"debug": True})["validated_by"] == "dockerd"


def test_a_dockerd_that_cannot_validate_leaves_it_to_json(run: Any, path: Path) -> None:
    assert run(config={"no-such-key": 1})["validated_by"] == "json"


def test_a_folder_that_takes_nothing_fails_and_leaves_the_file(run: Any, folder: Path) -> None:
    folder.write_text("in the way")
    result = run(config={"debug": True})
    assert result["failed"] is True
    assert "daemon_json_not_written" in result["msg"]


@pytest.mark.parametrize("arguments", [{}, {"state": "absent"}])
def test_missing_arguments_fail(run: Any, arguments: dict[str, Any]) -> None:
    assert run(**arguments)["failed"] is True


# Applying it. The stand-in for Docker refuses a file with the word `bad` in it, and does not start with `worse`.


@pytest.fixture
def docker(programs: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Docker that runs; the folder holds `up` while it answers and `calls` with the calls of systemctl."""
    monkeypatch.setattr(docker_daemon_apply, "RELOAD_TIMEOUT", 2)
    monkeypatch.setattr(docker_daemon_apply, "GONE", 2)
    monkeypatch.setattr(docker_daemon_apply, "PAUSE", 0.1)
    state = tmp_path / "state"
    state.mkdir()
    (state / "up").touch()
    file = folder / "daemon.json"
    program(
        programs,
        "systemctl",
        f"""[ "$1" = show ] || echo "$1" >> {state}/calls
case $1 in
  show) cat {state}/pid;;
  restart) rm -f {state}/up; grep -qs -e bad -e worse {file} && exit 1; touch {state}/up;;
  reload) rm -f {state}/reloaded; grep -qs bad {file} || touch {state}/reloaded;;
esac
exit 0""",
    )
    program(
        programs,
        "docker",
        f"""[ -e {state}/up ] || exit 1
case $1 in events) [ ! -e {state}/reloaded ] || echo reload;; esac""",
    )
    program(programs, "journalctl", "echo 'unable to configure: bad'")
    return state


def calls(docker: Path) -> list[str]:
    return (docker / "calls").read_text().split() if (docker / "calls").exists() else []


def apply(run: Any, **arguments: Any) -> dict[str, Any]:
    return dict(run(docker_daemon_apply, timeout=5, **arguments))


def test_nothing_pending_touches_nothing(run: Any, path: Path, docker: Path) -> None:
    result = apply(run)
    assert (result["changed"], result["action"], calls(docker)) == (False, "none", [])


def test_reload_is_enough_for_keys_that_docker_reads_again(run: Any, path: Path, docker: Path) -> None:
    run(config={"debug": True})
    result = apply(run)
    assert (result["action"], result["changed_keys"], calls(docker)) == ("reload", ["debug"], ["reload"])
    assert json.loads((path.parent / "daemon.json.bak").read_text()) == FOREIGN
    assert run(config={"debug": True})["changed"] is False
    assert apply(run)["changed"] is False


def test_live_restore_is_reloaded_before_the_restart(run: Any, path: Path, docker: Path) -> None:
    run(config={"live-restore": True, "log-driver": "local"})
    assert apply(run)["action"] == "restart"
    assert calls(docker) == ["reload", "reset-failed", "restart"]


def test_an_engine_that_is_down_is_started(run: Any, folder: Path, docker: Path) -> None:
    (docker / "up").unlink()
    run(config={"debug": True})
    assert apply(run)["changed"] is True
    assert calls(docker) == ["reset-failed", "restart"]
    assert files(folder) == ["daemon.json"]


def test_a_changed_unit_is_read_again(run: Any, path: Path, docker: Path) -> None:
    assert apply(run, restart=True)["action"] == "restart"
    assert calls(docker) == ["reload", "daemon-reload", "reset-failed", "restart"]


@pytest.fixture
def engine(docker: Path) -> Iterator[int]:
    """A process that systemctl gives for Docker's, started with a proxy."""
    environment = {"HTTP_PROXY": "http://u:p%40@h:1", "PROXY_SET_BY": "us", "OTHER": "x"}
    with subprocess.Popen(["/bin/sleep", "600"], env=environment) as process:
        (docker / "pid").write_text(f"{process.pid}\n")
        yield process.pid
        process.kill()


OUTDATED = ["reload", "daemon-reload", "reset-failed", "restart"]


@pytest.mark.parametrize(
    ("wanted", "calls_expected"),
    [
        ({"HTTP_PROXY": "http://u:p%40@h:1", "PROXY_SET_BY": "us"}, []),
        ({}, []),
        ({"HTTP_PROXY": "http://u:other@h:1", "PROXY_SET_BY": "us"}, OUTDATED),
        ({"HTTPS_PROXY": "http://h:1"}, OUTDATED),
        ({"PROXY_SET_BY": ""}, OUTDATED),
        ({"NOBODY_SET": ""}, []),
    ],
)
@pytest.mark.usefixtures("engine", "path")
def test_docker_that_runs_with_another_environment_is_restarted(
    run: Any, docker: Path, wanted: dict[str, str], calls_expected: list[str]
) -> None:
    result = apply(run, environment=wanted, _ansible_check_mode=True)
    assert (result["changed"], calls(docker)) == (bool(calls_expected), [])
    assert apply(run, environment=wanted)["changed"] is bool(calls_expected)
    assert calls(docker) == calls_expected
    assert "p%40" not in json.dumps(result)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("pid", ["0", "", "4194305"])
def test_docker_that_does_not_run_has_no_other_environment(run: Any, docker: Path, pid: str) -> None:
    (docker / "pid").write_text(pid)
    assert apply(run, environment={"HTTP_PROXY": "http://h:1"})["action"] == "none"


@pytest.mark.usefixtures("path")
def test_a_number_that_another_process_has_now_is_not_dockers(
    run: Any, docker: Path, engine: int, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text(f"{engine}")
    assert apply(run, environment={"HTTP_PROXY": "http://h:1"}, pidfile=str(pidfile))["action"] == "none"
    assert calls(docker) == []


def test_check_mode_reports_the_action_and_does_nothing(run: Any, path: Path, docker: Path) -> None:
    run(config={"debug": True})
    result = apply(run, _ansible_check_mode=True)
    assert (result["changed"], result["action"], calls(docker)) == (True, "reload", [])


@pytest.mark.parametrize(
    ("wanted", "calls_expected"),
    [
        ({"labels": ["bad"]}, ["reload", "reload"]),
        ({"bip": "bad"}, ["reload", "reload"]),
        ({"bip": "worse"}, ["reload", "reset-failed", "restart", "reset-failed", "restart"]),
    ],
)
def test_a_refused_file_is_undone_and_docker_answers(
    run: Any, path: Path, docker: Path, wanted: Any, calls_expected: list[str]
) -> None:
    text = path.read_text()
    run(config=wanted)
    result = apply(run)
    assert result["failed"] is True
    assert result["refusals"][0]["code"] == "docker_refused_config"
    assert "unable to configure: bad" in result["msg"]
    assert "Docker answers" in result["msg"]
    assert (path.read_text(), files(path.parent)) == (text, ["daemon.json"])
    assert (docker / "up").exists()
    assert calls(docker) == calls_expected


def test_where_there_was_no_file_there_is_none_again(run: Any, folder: Path, docker: Path) -> None:
    run(config={"bip": "bad"})
    assert apply(run)["failed"] is True
    assert files(folder) == []
    assert (docker / "up").exists()


def test_docker_that_does_not_start_again_is_reported(run: Any, path: Path, docker: Path) -> None:
    path.write_text('{"bip": "worse"}')
    run(config={"mtu": 1400})
    assert "Docker does not run" in apply(run)["msg"]


def test_without_systemd_somebody_elses_engine_is_not_fought(run: Any, path: Path, docker: Path) -> None:
    for reload in (["false"], ["systemctl", "reload"]):
        run(config={"bip": "x"})
        result = apply(run, start=["touch", str(docker / "second")], stop=["true"], reload=reload)
        assert "unknown: the Docker that answers" in result["msg"]
    assert not (docker / "second").exists()


def test_without_systemd_the_reason_is_from_the_log(run: Any, path: Path, docker: Path, tmp_path: Path) -> None:
    log = tmp_path / "dockerd.log"
    log.write_text("failed to start daemon: of an older run\n")
    run(config={"bip": "x"})
    commands = {"start": ["sh", "-c", f"echo failed to start daemon: now >> {log}"], "stop": ["rm", str(docker / "up")]}
    # With a status, one that ended is not waited for.
    message = run(
        docker_daemon_apply,
        **commands,
        reload=["systemctl", "reload"],
        status=["false"],
        logfile=str(log),
        timeout=10**6,
    )["msg"]
    assert "failed to start daemon: now" in message
    assert "older" not in message


# Looking.


@pytest.fixture
def look(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Looks at a host that has a dockerd; what the module says of it."""
    (tmp_path / "dockerd").touch()
    monkeypatch.setattr(docker_engine_info, "PROGRAMS", (str(tmp_path / "dockerd"),))

    def call(**arguments: Any) -> dict[str, Any]:
        result = run(docker_engine_info, owner_file=str(tmp_path / "mark"), **arguments)
        assert result.pop("changed") is False
        return {key: value for key, value in result.items() if key != "invocation"}

    return call


@pytest.mark.usefixtures("path")
def test_a_look_at_somebody_elses_engine(look: Any, docker: Path) -> None:
    seen = {"answers": True, "compose": True, "present": True, "owned": False, "proxy_file": False}
    assert look() == {**seen, "differs": "", "configured": True}
    assert look(config=FOREIGN) == {**seen, "differs": "", "configured": True}
    asked = look(config={"debug": True, "bip": "x"}, config_absent=["runtimes/kata"])
    assert asked == {**seen, "differs": "bip, debug, runtimes would change", "configured": False}


def test_a_look_at_an_engine_of_ones_own(look: Any, docker: Path, tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    (tmp_path / "proxy.conf").touch()
    assert look(proxy_file=str(tmp_path / "proxy.conf")).items() >= {"owned": True, "proxy_file": True}.items()
    (docker / "up").unlink()
    assert look().items() >= {"answers": False, "compose": False, "present": True, "owned": True}.items()


def test_a_look_where_there_is_none(look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dockerd").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = look(config={"debug": True})
    assert seen.items() >= {"answers": False, "compose": False, "present": False, "owned": True}.items()
    assert seen["configured"] is False


def test_compose_is_queried_separately(look: Any, programs: Path) -> None:
    program(programs, "docker", '[ "$1" != compose ]')
    assert look().items() >= {"answers": True, "compose": False}.items()


def test_an_unreadable_file_differs_with_a_reason(look: Any, path: Path, docker: Path) -> None:
    path.write_text("{oops")
    seen = look(config={"debug": True})
    assert "[invalid_daemon_json]" in seen["differs"]
    assert not seen["configured"]


@pytest.mark.usefixtures("path")
def test_a_pending_change_is_not_configured(look: Any, run: Any, docker: Path) -> None:
    run(config={"debug": True})
    assert look(config={"debug": True}).items() >= {"differs": "", "configured": False}.items()
    apply(run)
    assert look(config={"debug": True})["configured"]


@pytest.mark.usefixtures("engine", "path")
@pytest.mark.parametrize(("proxy", "configured"), [("http://u:p%40@h:1", True), ("http://u:other@h:1", False)])
def test_an_engine_with_another_proxy_is_not_configured(look: Any, docker: Path, proxy: str, configured: bool) -> None:
    seen = look(environment={"HTTP_PROXY": proxy})
    assert (seen["differs"], seen["configured"]) == ("", configured)
    assert "h:1" not in json.dumps(seen)
