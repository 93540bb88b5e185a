"""The module as Ansible sees it: options, results, failures; no secret in what it prints."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.modules import hf_snapshot as module
from support.faulty_hub import FOR_EVER, Fault, FaultyHub, running, write_model
from support.paths import ROOT

FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 1000}
COLLECTIONS = ROOT / "collections"
TOKEN = "hf_theSecretOfTheTest"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FaultyHub]:
    write_model(tmp_path / "hub", "org/tiny", FILES)
    with running(tmp_path / "hub") as server:
        yield server


def run(
    tmp_path: Path, path: str = "", environment: Mapping[str, str] | None = None, **options: Any
) -> tuple[dict[str, Any], str]:
    """Run the module as a process of its own. Returns its result and all that it printed."""
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {"root": str(tmp_path / "models"), **options}}))
    done = subprocess.run(
        [sys.executable, module.__file__, arguments],
        env={**os.environ, "PYTHONPATH": f"{path}:{COLLECTIONS}", "HF_TOKEN": TOKEN, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout), done.stdout + done.stderr


def test_results_are_those_that_the_documentation_names(served: FaultyHub, tmp_path: Path) -> None:
    documented = yaml.safe_load(module.RETURN)
    result, _ = run(tmp_path, repository="org/tiny", endpoint=served.url)
    assert {name for name, about in documented.items() if about["returned"] == "success"} <= set(result)
    assert (result["changed"], result["verified"], result["locked"]) == (True, True, False)
    assert result["bytes_fetched"] == result["bytes_total"] == sum(map(len, FILES.values()))
    assert result["diff"]["prepared"] == "+ config.json\n+ model.safetensors\n"
    assert "There is no lock" in result["msg"]

    result, _ = run(
        tmp_path,
        repository="org/tiny",
        endpoint="http://127.0.0.1:9",
        lock=result["lock_file"],
        _ansible_check_mode=True,
    )
    assert (result["changed"], result["verified"], result["locked"]) == (False, True, True)


def test_a_lock_alone(served: FaultyHub, tmp_path: Path) -> None:
    result, _ = run(tmp_path, repository="org/tiny", endpoint=served.url, lock_only=True)
    assert (result["changed"], result["lock"]["commit"]) == (False, result["commit"])
    assert not (tmp_path / "models").exists()
    result, _ = run(tmp_path, repository="org/tiny", endpoint=served.url, lock=result["lock"])
    assert (result["locked"], result["verified"]) == (True, True)


def test_a_token_from_a_vault_reaches_its_hub_and_nothing_else(served: FaultyHub, tmp_path: Path) -> None:
    served.token = TOKEN
    result, printed = run(tmp_path, repository="org/tiny", endpoint=served.url, token_endpoint=served.url, token=TOKEN)
    assert result["verified"]
    assert TOKEN not in printed
    assert not [p for p in (tmp_path / "models").rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    result, printed = run(tmp_path, repository="org/tiny", endpoint=served.url, token=f"{TOKEN} {TOKEN}")
    assert result["error"]["code"] == "token_malformed"
    assert TOKEN not in printed


@pytest.fixture
def certificate(served: FaultyHub, tmp_path: Path) -> Path:
    """The hub speaks TLS; this is the certificate to trust."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=hub"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *request.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    served.socket = context.wrap_socket(served.socket, server_side=True)
    return certificate


def test_without_an_endpoint_the_hub_is_the_one_of_the_environment(served: FaultyHub, tmp_path: Path) -> None:
    result, _ = run(tmp_path, environment={"HF_ENDPOINT": served.url}, repository="org/tiny")
    assert result["verified"]
    result, _ = run(tmp_path, environment={"HF_ENDPOINT": "https://hub.invalid"}, repository="org/other", retries=0)
    assert (result["error"]["code"], "https://hub.invalid" in result["error"]["message"]) == ("hub_unreachable", True)


def test_files_come_over_tls_from_who_has_a_trusted_certificate(
    served: FaultyHub, tmp_path: Path, certificate: Path
) -> None:
    served.token = TOKEN
    url = served.url.replace("http:", "https:")
    given: dict[str, Any] = {"repository": "org/tiny", "endpoint": url, "token_endpoint": url, "token": TOKEN}
    result, _ = run(tmp_path, retries=0, **given)
    assert result["error"]["code"] == "hub_unreachable"
    assert "CERTIFICATE_VERIFY_FAILED" in result["error"]["message"]
    assert served.asked == []
    served.faults = [Fault("cut", "*/model.safetensors", at=3000)]
    result, _ = run(tmp_path, environment={"SSL_CERT_FILE": str(certificate)}, **given)
    assert result["verified"]
    assert [a.headers.get("range") for a in served.asked if a.path.endswith(".safetensors")] == [None, "bytes=3000-"]
    assert (Path(result["path"]) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_redirect_from_tls_to_plain_http_is_refused(served: FaultyHub, tmp_path: Path, certificate: Path) -> None:
    with running(tmp_path / "hub") as plain:
        served.faults = [Fault("redirect", "*/resolve/*", FOR_EVER, to=plain.url)]
        trusted, endpoint = {"SSL_CERT_FILE": str(certificate)}, served.url.replace("http:", "https:")
        result, _ = run(tmp_path, environment=trusted, repository="org/tiny", endpoint=endpoint)
        assert result["error"]["code"] == "insecure_redirect"
        assert plain.asked == []


@pytest.mark.parametrize("no_proxy", ["", "hub.invalid"])
def test_the_environments_proxy_is_asked(served: FaultyHub, tmp_path: Path, no_proxy: str) -> None:
    """The list and the bytes go through it; only a proxy can answer for a name that does not exist."""
    settings = {"http_proxy": served.url, "no_proxy": no_proxy, "HTTP_PROXY": served.url, "NO_PROXY": no_proxy}
    hub = "http://hub.invalid"
    result, _ = run(tmp_path, environment=settings, repository="org/tiny", endpoint=hub, retries=0)
    if no_proxy:
        assert (result["error"]["code"], served.asked) == ("hub_unreachable", [])
        return
    assert result["verified"]
    assert {asked.path.partition("/org/")[0] for asked in served.asked} == {f"{hub}/api/models", hub}


def test_certificates_that_cannot_be_read_are_named(served: FaultyHub, tmp_path: Path) -> None:
    nothing = {"SSL_CERT_FILE": str(tmp_path / "none.pem")}
    result, _ = run(tmp_path, environment=nothing, repository="org/tiny", endpoint=served.url)
    assert result["error"]["code"] == "bad_certificates"
    assert f"SSL_CERT_FILE={tmp_path / 'none.pem'}" in result["error"]["message"]
    assert served.asked == []


def test_the_command_in_the_documentation(served: FaultyHub, tmp_path: Path) -> None:
    """The command of docs/weights.md, with another model and other paths."""
    section = (COLLECTIONS.parent / "docs/weights.md").read_text().partition("## Use the module directly")[2]
    ansible, *words = shlex.split(section.split("```")[1].replace("\\\n", " "))
    changes = {
        "repository=Qwen/Qwen3-VL-2B-Instruct-FP8": "repository=org/tiny",
        "root=/opt/vllm/models": f"root={tmp_path / 'models'} endpoint={served.url}",
        "/opt/vllm/venv/bin/python": sys.executable,
    }
    for old, new in changes.items():
        assert sum(old in word for word in words) == 1
        words = [word.replace(old, new) for word in words]
    assert words.pop() == "--check"
    command_line = [str(Path(sys.executable).with_name(ansible)), *words]

    def result(*options: str) -> dict[str, Any]:
        given = {**command(tmp_path, served), "args": [*command_line, *options]}
        done = subprocess.run(**given, check=True)
        return dict(yaml.safe_load(re.sub(r"^.*=>", "", done.stdout[done.stdout.index("localhost |") :])))

    size = sum(map(len, FILES.values()))
    would = result("--check")
    assert (would["changed"], would["verified"], would["bytes_to_fetch"]) == (True, False, size)
    assert not (tmp_path / "models").exists()
    did = result()
    assert (did["changed"], did["verified"], did["bytes_fetched"]) == (True, True, size)


def command(tmp_path: Path, server: FaultyHub, *options: str) -> dict[str, Any]:
    """How to run the module alone, as its documentation shows; the arguments of ``subprocess``."""
    values = f"repository=org/tiny root={tmp_path / 'models'} endpoint={server.url}"
    return {
        "args": [
            *(Path(sys.executable).with_name("ansible"), "localhost", "-m", "inference.vllm.hf_snapshot"),
            *("-a", " ".join([values, *options]), "-e", f"ansible_python_interpreter={sys.executable}"),
        ],
        "cwd": COLLECTIONS.parent,
        "env": {**os.environ, "ANSIBLE_CONFIG": str(COLLECTIONS.parent / "ansible.cfg")},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }


def ansible(tmp_path: Path, server: FaultyHub, *options: str) -> str:
    """Run the module alone. Returns what a person sees, in a log without a terminal."""
    done = subprocess.run(**command(tmp_path, server, *options), check=False)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


def test_a_play_that_is_killed_does_not_end_the_download(served: FaultyHub, tmp_path: Path) -> None:
    """Pieces are held back until the controller is dead; then the job on the host goes on to the end."""
    base, killed = tmp_path / "models/org/tiny", threading.Event()

    def hold_back() -> None:
        killed.wait(60)

    served.alarms = [(1, hold_back)]
    with subprocess.Popen(**command(tmp_path, served), start_new_session=True) as play:
        wait_for((base / ".progress.json").exists)
        os.killpg(play.pid, signal.SIGKILL)
    assert not (base / "lock.json").exists()
    killed.set()
    wait_for((base / "lock.json").exists)
    served.asked.clear()
    ansible(tmp_path, served)
    assert served.files_asked() == []


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_person_sees_how_far_it_is(served: FaultyHub, tmp_path: Path) -> None:
    slow = ("progress_interval=1", f"max_bytes_per_second={len(FILES['model.safetensors']) // 6}")
    seen = ansible(tmp_path, served, *slow)
    assert re.search(
        r"^  \.\.\. localhost: org/tiny  fetch: [\d.]+ kB of 7\.0 kB \(\d+%\), .*B/s, ", seen, re.MULTILINE
    )
    assert '"verified": true' in seen or "verified: true" in seen
    assert "ansible_job_id" not in seen


def test_silence_where_it_was_asked_for(served: FaultyHub, tmp_path: Path) -> None:
    assert "..." not in ansible(tmp_path, served, "progress_interval=0")


def test_a_failure_on_the_host_is_the_failure_of_the_task(served: FaultyHub, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="revision_not_found"):
        ansible(tmp_path, served, "revision=none")


def test_check_mode_promises_nothing_that_it_cannot_know(served: FaultyHub, tmp_path: Path) -> None:
    result, _ = run(tmp_path, repository="org/tiny", endpoint=served.url, _ansible_check_mode=True)
    assert (result["changed"], result["verified"], result["bytes_fetched"]) == (True, False, 0)
    assert result["fetched"] == ["config.json", "model.safetensors"]
    assert not (tmp_path / "models").exists()


def test_a_failure_has_a_code_and_no_secret(served: FaultyHub, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o600)
    served.token = "another"
    result, printed = run(
        tmp_path,
        repository="org/tiny",
        endpoint=served.url,
        token_endpoint=served.url,
        token_file=str(token_file),
        retries=0,
    )
    assert result["failed"]
    assert result["error"]["code"] == "unauthorized"
    assert set(result["error"]) == {"code", "message", "fix"}
    assert result["error"]["fix"] in result["msg"]
    assert served.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in printed


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow/huggingface_hub.py").write_text("raise ImportError('not here')")
    result, _ = run(tmp_path, str(tmp_path / "shadow"), repository="org/tiny", endpoint="http://127.0.0.1:9")
    assert result["error"]["code"] == "library_missing"
    assert "host_python" in result["error"]["fix"]


def test_options_are_those_that_the_documentation_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class SpecTakenError(Exception):
        pass

    def take(argument_spec: dict[str, Any], **_: Any) -> None:
        raise SpecTakenError(argument_spec)

    monkeypatch.setattr(module, "AnsibleModule", take)
    with pytest.raises(SpecTakenError) as taken:
        module.main()
    spec = taken.value.args[0]
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert set(spec) == set(documented)
    for name, option in documented.items():
        for key in ("type", "default", "choices", "elements", "required"):
            assert option.get(key) == spec[name].get(key), f"{name}: {key}"


@pytest.mark.parametrize(
    ("content", "mode", "code"),
    [
        (TOKEN, 0o640, "token_exposed"),
        (TOKEN, 0o604, "token_exposed"),
        ("", 0o600, "token_malformed"),
        (f"{TOKEN} {TOKEN}", 0o600, "token_malformed"),
        (f"{TOKEN}\nmore", 0o600, "token_malformed"),
        (None, 0o600, "token_unreadable"),
    ],
)
def test_a_token_file_that_is_not_fit_is_refused(tmp_path: Path, content: str | None, mode: int, code: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(RefusalError) as refused:
        module.read_token(str(path))
    assert refused.value.refusals[0].code == code
    assert TOKEN not in str(refused.value)


def test_a_token_file_that_is_fit(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o400)
    assert module.read_token(str(path)) == TOKEN
    assert module.read_token(None) is None


@pytest.mark.parametrize("name", module.LEAST)
def test_a_number_that_cannot_be_meant_is_refused_by_name(name: str) -> None:
    with pytest.raises(RefusalError, match=rf"{name} is -1; at least") as refused:
        module.check_numbers({**module.LEAST, name: -1})
    assert refused.value.refusals[0].code == "out_of_range"
    module.check_numbers(module.LEAST)


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "does not exist"), ("{", "is not JSON"), ("[]", "must be a mapping")]
)
def test_a_lock_file_that_is_none_is_refused(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "lock.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RefusalError, match=problem) as refused:
        module.given_lock(str(path))
    assert refused.value.refusals[0].code == "bad_lock"
    assert module.given_lock(None) is None
