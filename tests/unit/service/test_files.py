"""The two programs inside the container: the entry point and the health check."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import ROOT
from support.token_engine import KEY, token_engine

FILES = ROOT / "roles" / "vllm_service" / "files"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture
def engine() -> Iterator[Any]:
    with token_engine() as server:
        yield server


def probe(port: int, key_file: Path, timeout: int = 1, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-IS", str(FILES / "healthcheck.py"), "--port", str(port), "--model", "tiny"]
    command += ["--timeout", str(timeout), "--key-file", str(key_file)]
    # An engine that hangs does so until the end of the test.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout


def test_a_token_is_health(engine: Any, key_file: Path) -> None:
    code, output = probe(engine.server_port, key_file)
    assert (code, output[:12]) == (0, "one token in")
    path, body = engine.seen
    assert path == "/v1/completions"
    assert (body["model"], body["max_tokens"]) == ("tiny", 1)


@pytest.mark.parametrize(
    ("behaviour", "name"),
    [
        ("hang", "engine_hung"),
        ("trickle", "engine_hung"),
        ("no token", "engine_unreachable"),
        ("nonsense", "engine_unreachable"),
    ],
)
def test_all_else_is_not(engine: Any, key_file: Path, behaviour: str, name: str) -> None:
    engine.behaviour = behaviour
    code, output = probe(engine.server_port, key_file)
    assert code == 1
    assert output.startswith(f"[{name}]")


def test_a_wrong_key_is_not_health_and_is_not_shown(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another-key-entirely")
    code, output = probe(engine.server_port, tmp_path / "other")
    assert (code, output) == (1, "[engine_refuses] HTTP 401 instead of a token\n")


def test_no_listener_and_no_key_are_reported_in_one_line(key_file: Path, tmp_path: Path) -> None:
    assert probe(1, key_file)[0] == 1
    code, output = probe(1, tmp_path / "none")
    assert code == 1
    assert "FileNotFoundError" in output


def test_a_proxy_of_the_environment_is_not_asked(engine: Any, key_file: Path) -> None:
    assert probe(engine.server_port, key_file, http_proxy="http://127.0.0.1:1")[0] == 0


def start(
    tmp_path: Path, key_file: Path, config: str = "/etc/vllm/vllm.yaml", former: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the entry point with a `vllm` that shows its arguments and its key."""
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@"\necho "${VLLM_API_KEY-none}"\n')
    fake.chmod(0o755)
    (tmp_path / "former").write_text(former)
    environment = {"PATH": f"{fake.parent}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    command = ["/bin/sh", str(FILES / "entrypoint.sh"), config, str(key_file), str(tmp_path / "former")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_key_reaches_vllm_by_its_environment_only(tmp_path: Path, key_file: Path) -> None:
    done = start(tmp_path, key_file)
    assert done.stdout == f"serve --config /etc/vllm/vllm.yaml\n{KEY}\n"


def test_two_keys_reach_vllm_by_a_file_that_others_cannot_read(tmp_path: Path, key_file: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("model: /models/tiny\n")
    odd = "it's:#a{key}\\of\"odd'letters"
    done = start(tmp_path, key_file, str(config), odd)
    assert done.stderr == ""
    both = tmp_path / "vllm-with-keys.yaml"
    assert done.stdout == f"serve --config {both}\nnone\n"
    assert yaml.safe_load(both.read_text()) == {"model": "/models/tiny", "api-key": [KEY, odd]}
    assert stat.S_IMODE(both.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [None, ""])
def test_without_a_key_nothing_starts(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "missing"
    if content is not None:
        path.write_text(content)
    done = start(tmp_path, path)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("[missing_api_key]")
    assert "Fix:" in done.stderr


PARSER = """
import argparse
FlexibleArgumentParser = argparse.ArgumentParser
"""
HOME = """
import os, pathlib
def make_arg_parser(parser):
    if "BROKEN" in os.environ:
        raise RuntimeError("no device here")
    parser.add_argument("--config")
    parser.add_argument("--seed", type=int)
    return parser
def validate_parsed_serve_args(args):
    if pathlib.Path(args.config).read_text() == "pair":
        raise TypeError("one needs the other")
"""


@pytest.mark.parametrize(
    ("home", "config", "code", "output"),
    [
        ("launchers", "good", 0, ""),
        ("openai", "good", 0, ""),
        ("openai", "pair", 3, "one needs the other"),
        ("openai", "broken", 4, "RuntimeError: no device here"),
        ("elsewhere", "good", 4, "ModuleNotFoundError: found neither"),
    ],
)
def test_the_engines_own_parser_is_asked(tmp_path: Path, home: str, config: str, code: int, output: str) -> None:
    """With a package of vLLM's layout; the scenario of role vllm_service asks a real one."""
    for path, text in (("utils/argparse_utils.py", PARSER), (f"entrypoints/{home}/cli_args.py", HOME)):
        (tmp_path / "vllm" / path).parent.mkdir(parents=True)
        (tmp_path / "vllm" / path).write_text(text)
    (tmp_path / "vllm.yaml").write_text(config)
    done = subprocess.run(
        [sys.executable, "-", str(tmp_path / "vllm.yaml")],
        input=(FILES / "parse_flags.py").read_text(),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)} | ({"BROKEN": "1"} if config == "broken" else {}),
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(output)
