"""The reason of an engine's end, found in logs of real engines, and kept for who comes later."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.engine_log import last_lines, reasons
from ansible_collections.inference.vllm.plugins.modules import engine_log
from support.modules import run_module
from support.paths import FIXTURES

LOGS = FIXTURES / "engine_log"


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("graphs_do_not_fit", "torch.AcceleratorError: CUDA error: out of memory"),
        ("worker_killed", "Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor."),
        ("unknown_backend", "ValueError: Unknown attention backend: 'NO_SUCH'. Valid options are: FLASH_ATTN,"),
    ],
)
def test_the_first_cause_comes_first(name: str, first: str) -> None:
    found = reasons(log(name))
    assert found[0].startswith(first)
    assert len(found) <= 5
    assert len(set(found)) == len(found)
    assert not any("root cause" in line or line.startswith(("Traceback", "File ")) for line in found)


def test_it_is_not_in_the_last_lines_of_the_log() -> None:
    """Which is why there is a search at all."""
    text = log("graphs_do_not_fit")
    assert "out of memory" not in "\n".join(text.splitlines()[-40:])
    assert "CUDA error: out of memory" in reasons(text)[0]


def test_what_pydantic_refused_is_told_with_its_reason() -> None:
    named, why = reasons(log("length_too_long"))
    assert named.endswith("ValidationError: 1 validation error for ModelConfig")
    assert why.startswith("Value error, User-specified max_model_len (9999999) is greater than the derived")


def test_an_engine_that_serves_gives_no_reason() -> None:
    assert "Application startup complete" in log("healthy")
    assert reasons(log("healthy")) == []


@pytest.mark.parametrize(
    "line",
    [
        "[missing_api_key] /run/secrets/vllm_api_key is missing, empty or not readable for uid 2000.",
        "vllm serve: error: argument --tool-call-parser: invalid choice: 'x'",
        "(EngineCore pid=9) ERROR 11-26 03:00:43 [core.py:1] ValueError: No available memory for the cache blocks.",
        "\x1b[1;31m(Worker pid=9) torch.OutOfMemoryError: CUDA out of memory.\x1b[0m",
        "\x1b[2KValueError: as Compose writes it\r",
    ],
)
def test_a_line_that_tells_it_is_found_among_others(line: str) -> None:
    (found,) = reasons(
        f"INFO 11-26 03:00:43 [a.py:1] loading\n  File x\n{line}\n{line}\nWARNING: KeyError: dealt with\n"
    )
    assert line.replace("\x1b[0m", "").rstrip().endswith(found)


def test_the_end_is_shown_without_colours_and_empty_lines() -> None:
    assert last_lines("a\n\n\x1b[31mb\x1b[0m  \nc\n", 2) == ["b", "c"]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that prints its arguments and the file next to it; the scenario runs a real one."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*" >"$0.called"\ncat "$0.log" || exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def test_the_log_is_kept_and_told(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docker.with_name("docker.log").write_text(log("graphs_do_not_fit").replace("\n", "\r\n\x1b[2K"))
    path = tmp_path / "reports" / "r1" / "engine.log"
    result = run_module(engine_log, capsys, {"project": "vllm-x", "path": str(path), "lines": 2})
    assert "--project-name=vllm-x logs" in docker.with_name("docker.called").read_text()
    assert result["changed"] is False
    assert result["text"].splitlines()[1] == "  torch.AcceleratorError: CUDA error: out of memory"
    assert result["text"].splitlines()[-1] == f"The whole log: {path}"
    assert path.read_bytes() == log("graphs_do_not_fit").encode()
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o640, 0o750)


def test_bytes_that_are_no_text_are_replaced(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docker.with_name("docker.log").write_bytes(b"ValueError: \xff!\n")
    path = tmp_path / "engine.log"
    result = run_module(engine_log, capsys, {"project": "vllm", "path": str(path)})
    assert result["reasons"] == ["ValueError: \ufffd!"]
    assert path.read_text(encoding="utf-8") == "ValueError: \ufffd!\n"


def test_check_mode_keeps_nothing(docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docker.with_name("docker.log").write_text("ValueError: x\n")
    given = {"project": "vllm", "path": str(tmp_path / "engine.log"), "_ansible_check_mode": True}
    assert run_module(engine_log, capsys, given)["reasons"] == ["ValueError: x"]
    assert not (tmp_path / "engine.log").exists()


def test_without_a_log_it_says_so_and_does_not_fail(
    docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"project": "vllm", "path": str(tmp_path / "engine.log")}
    assert run_module(engine_log, capsys, given)["text"].startswith("Its log cannot be read: cat: ")
    docker.with_name("docker.log").write_text("\n")
    assert run_module(engine_log, capsys, given)["text"] == "There is no log of it."
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_module(engine_log, capsys, given)["text"].startswith("Its log cannot be kept: ")
    assert not (tmp_path / "engine.log").exists()


def test_a_log_without_a_reason_is_told_as_such() -> None:
    assert "No line of it tells one." in engine_log.told(log("healthy"), 3, "/opt/vllm/engine.log")
