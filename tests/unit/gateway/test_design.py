"""The gateway's settings: what they become, and what is refused. test_gateway_haproxy.py has what a client sees of it.

`UPDATE_GOLDEN=1 pytest tests/unit/gateway/test_design.py` updates the golden files; review the diff.
"""

from __future__ import annotations

import hashlib
import json
import os
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.filter.gateway import gateway_design
from ansible_collections.inference.vllm.plugins.module_utils.gateway import design as gateway
from ansible_collections.inference.vllm.plugins.module_utils.gateway.runtime import parse
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.modules import gateway_config as module
from support.gateway import ALICE, BOB, CHECK, KEYS, rendered, settings
from support.modules import run_module
from support.paths import GOLDEN

TWO_ENGINES = [
    {"name": "blue", "address": "127.0.0.1", "port": 8001},
    {"name": "green", "address": "127.0.0.1", "port": 8002},
]
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "two_engines": {
        "gateway_backends": [TWO_ENGINES[0], {**TWO_ENGINES[1], "standby": True}],
        "gateway_bind_address": "::1",
        "gateway_tls": "disabled",
        "gateway_endpoints": ["embeddings", "models"],
        "gateway_source": "image",
        "gateway_image": f"docker.io/library/haproxy@sha256:{'1' * 64}",
        "metrics": False,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = rendered(gateway.design(settings(**CASES[name]))["config"])
    golden = GOLDEN / f"gateway_{name}_haproxy.cfg"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs"


def test_the_rest_of_the_design() -> None:
    design = gateway.design(settings())
    assert design["url"] == "https://127.0.0.1:8443"
    assert design["subject_alt_names"] == ["DNS:gpu1.example.org", "IP:192.0.2.10"]
    assert design["open_files"] > 2 * 4096
    plain = gateway.design(settings(gateway_tls="disabled", gateway_bind_address="::1"))
    assert plain["url"] == "http://[::1]:8443"


def test_the_map_holds_digests_and_names_only() -> None:
    text = gateway.keys_map([*KEYS, {"name": "carol", "sha256": "ab" * 32}, {"name": "alice", "key": ALICE}])
    assert gateway.names_in(text) == {
        hashlib.sha256(ALICE.encode()).hexdigest().upper(): "alice",
        hashlib.sha256(BOB.encode()).hexdigest().upper(): "bob",
        "AB" * 32: "carol",
    }
    assert text.count("\n") == 3


def refused(**given_settings: Any) -> list[str]:
    """Codes of the refusals; checks that none of them shows a key."""
    texts = gateway_design(settings(**given_settings))["refusals"]
    for key in (ALICE, BOB):
        assert key not in "".join(texts)
    assert all("Fix: " in text for text in texts)
    return [text[1:].partition("]")[0] for text in texts]


@pytest.mark.parametrize(
    ("given_settings", "code"),
    [
        ({"gateway_port": 0}, "bad_number"),
        ({"gateway_port": 65536}, "bad_number"),
        ({"gateway_max_body_mib": True}, "bad_number"),
        ({"gateway_request_timeout": "soon"}, "bad_number"),
        ({"gateway_bind_address": "localhost"}, "bad_address"),
        ({"gateway_bind_address": "127.0.0.1\n    bind :80"}, "bad_address"),
        ({"gateway_tls": "disabled"}, "plain_http_exposed"),
        ({"gateway_tls": "disabled", "gateway_bind_address": "::"}, "plain_http_exposed"),
        ({"vllm_bind_address": "0.0.0.0"}, "engine_exposed"),
        ({"vllm_bind_address": "192.0.2.10"}, "engine_exposed"),
        ({"gateway_metrics_port": 8443}, "port_taken"),
        ({"gateway_endpoints": []}, "no_endpoints"),
        ({"gateway_endpoints": ["models", "metrics"]}, "unknown_endpoint"),
        ({"gateway_endpoints": ["/metrics"]}, "unknown_endpoint"),
        ({"gateway_backends": []}, "no_backends"),
        ({"gateway_backends": [{**TWO_ENGINES[0], "standby": True}]}, "no_backends"),
        ({"gateway_backends": [{**TWO_ENGINES[0], "name": "Blue Engine"}]}, "bad_backend"),
        ({"gateway_backends": [{**TWO_ENGINES[0], "port": "8001"}]}, "bad_backend"),
        ({"gateway_backends": [{**TWO_ENGINES[0], "address": "gpu2"}]}, "bad_backend"),
        ({"gateway_backends": [{**TWO_ENGINES[0], "address": "192.0.2.11"}]}, "remote_backend"),
        ({"gateway_backends": [{**TWO_ENGINES[0], "port": 8443}]}, "port_taken"),
        ({"gateway_backends": [TWO_ENGINES[0], {**TWO_ENGINES[0], "port": 9}]}, "same_backend_twice"),
        ({"gateway_backends": [TWO_ENGINES[0], {**TWO_ENGINES[0], "name": "x"}]}, "same_backend_twice"),
        ({"gateway_keys": []}, "no_keys"),
        ({"gateway_keys": [{"name": "Alice Smith", "key": ALICE}]}, "bad_key_name"),
        ({"gateway_keys": [{"name": "alice"}]}, "bad_key"),
        ({"gateway_keys": [{"name": "alice", "key": ALICE, "sha256": "0" * 64}]}, "bad_key"),
        ({"gateway_keys": [{"name": "alice", "key": f"{ALICE} {BOB}"}]}, "bad_key"),
        ({"gateway_keys": [{"name": "alice", "sha256": "0" * 63}]}, "bad_key"),
        ({"gateway_keys": [{"name": "alice", "key": ALICE[:31]}]}, "weak_key"),
        ({"gateway_keys": [{"name": "alice", "key": "abcdefg" * 8}]}, "weak_key"),
        ({"gateway_keys": [{"name": "alice", "key": ALICE}, {"name": "bob", "key": ALICE}]}, "same_key_twice"),
        ({"gateway_tls": "maybe"}, "bad_tls"),
        ({"gateway_tls": "given"}, "bad_tls"),
        ({"gateway_tls": "given", "gateway_tls_certificate": "/a", "gateway_tls_key": "b"}, "bad_tls"),
        ({"gateway_tls_names": []}, "bad_tls"),
        ({"gateway_tls_names": ["a b"]}, "bad_tls"),
        ({"gateway_source": "source"}, "bad_source"),
        ({"gateway_source": "image", "gateway_image": "haproxy:3.0"}, "image_not_pinned"),
        ({"gateway_source": "image", "gateway_image": f"a@sha256:{'1' * 64}", "gateway_port": 443}, "port_needs_root"),
    ],
)
def test_refusals(given_settings: dict[str, Any], code: str) -> None:
    assert set(refused(**given_settings)) == {code}


def test_all_reasons_are_reported_together() -> None:
    assert refused(gateway_keys=[], gateway_endpoints=[], gateway_port=0) == ["bad_number", "no_endpoints", "no_keys"]


@pytest.mark.parametrize(
    "given_settings",
    [
        {"gateway_tls": "disabled", "gateway_unsafe_plain_http": True},
        {"gateway_tls": "disabled", "gateway_bind_address": "127.0.0.1"},
        {"vllm_bind_address": "192.0.2.10", "gateway_unsafe_exposed_engine": True},
        {
            "gateway_backends": [{"name": "far", "address": "192.0.2.11", "port": 8000}],
            "gateway_unsafe_remote_backends": True,
        },
        {"gateway_tls": "given", "gateway_tls_certificate": "/a", "gateway_tls_key": "/b", "gateway_tls_names": []},
        {"gateway_keys": [{"name": "a", "sha256": "ab" * 32}]},
    ],
)
def test_what_is_allowed_or_unsafe_by_name_passes(given_settings: dict[str, Any]) -> None:
    assert refused(**given_settings) == []


@given(st.text(alphabet=string.printable, max_size=80), st.text(alphabet=string.printable, max_size=80))
def test_a_setting_never_breaks_out_of_its_line(name: str, key: str) -> None:
    """Whatever names and keys hold: refused, or a map of one line with that name."""
    design = gateway_design(settings(gateway_keys=[{"name": name, "key": key}]))
    if not design["refusals"]:
        assert design["keys_map"] == f"{gateway.digest(key)} {name}\n"
    shown = "".join(design["refusals"])
    assert len(key) < 4 or key not in shown or key in name


# --- Reading HAProxy's answers ----------------------------------------------------------------------------------------


def test_an_unknown_answer_of_haproxy_is_reported() -> None:
    assert parse("", "") == {}
    for states, statistics in (("nonsense here\na b c\n", "x"), ("# srv_name\nblue\n", "# svname,scur\nblue,0\n")):
        with pytest.raises(RefusalError, match="gateway_unreadable"):
            parse(states, statistics)


# --- The module that writes -------------------------------------------------------------------------------------------

CONFIG = "listen one\n    bind 127.0.0.1:1\n    timeout client 1s\n    timeout server 1s\n    timeout connect 1s\n"
ENGINE_KEY = "an-engine-key-of-many-letters"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    key_file = tmp_path / "engine_key"
    key_file.write_text(f"{ENGINE_KEY}\n")

    def call(**arguments: Any) -> dict[str, Any]:
        given_arguments = {
            "path": str(tmp_path / "gateway"),
            "config": CONFIG,
            "keys_map": gateway.keys_map(KEYS),
            "engine_key_file": str(key_file),
            "check": CHECK,
            **arguments,
        }
        return run_module(module, capsys, given_arguments, ENGINE_KEY)

    return call


def test_second_run_changes_nothing_and_an_opened_file_is_closed_again(run: Any, tmp_path: Path) -> None:
    first = run()
    assert (first["changed"], first["names"], first["fingerprint"]) == (True, ["alice", "bob"], "")
    assert Path(first["config"]).read_text() == CONFIG
    assert (tmp_path / "gateway/current/engine_key.map").read_text() == f"engine {ENGINE_KEY}\n"
    assert run()["changed"] is False
    Path(first["config"]).chmod(0o644)
    assert run()["changed"] is True
    assert Path(first["config"]).stat().st_mode & 0o777 == 0o600


def test_check_mode_writes_nothing_and_diff_shows_no_secret(run: Any, tmp_path: Path) -> None:
    predicted = run(_ansible_check_mode=True, _ansible_diff=True)
    assert predicted["changed"] is True
    assert not (tmp_path / "gateway").exists()
    shown = json.dumps(predicted["diff"])
    assert f"alice sha256:{gateway.digest(ALICE)[:12].lower()}" in shown
    assert gateway.digest(ALICE).lower() not in shown.lower()
    run()
    later = run(keys_map=gateway.keys_map(KEYS[:1]), _ansible_check_mode=True, _ansible_diff=True)
    assert [entry["after_header"] for entry in later["diff"]] == ["new/keys.map"]
    assert run(_ansible_check_mode=True)["changed"] is False
    assert run(engine_key_file=str(tmp_path / "none"), _ansible_check_mode=True)["changed"] is True


def test_old_sets_go(run: Any, tmp_path: Path) -> None:
    for number in range(4):
        run(config=f"{CONFIG}# {number}\n")
    assert len(list((tmp_path / "gateway/sets").iterdir())) == 2


def test_what_cannot_be_is_refused_with_a_fix(run: Any, tmp_path: Path) -> None:
    run()
    own = gateway.keys_map([{"name": "mallory", "key": ENGINE_KEY}])
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "text").write_text("no certificate\n")
    for arguments, code in (
        ({"config": f"{CONFIG}nonsense\n"}, "gateway_config_refused"),
        ({"keys_map": own}, "engine_key_given_out"),
        ({"engine_key_file": str(tmp_path / "none")}, "missing_input"),
        ({"engine_key_file": str(tmp_path / "short")}, "bad_engine_key"),
        ({"certificate": str(tmp_path / "text"), "private_key": str(tmp_path / "text")}, "bad_certificate"),
        ({"path": str(tmp_path / "short" / "x")}, "gateway_not_written"),
    ):
        result = run(**arguments)
        assert result["failed"] is True
        assert f"[{code}]" in result["msg"]
        assert "Fix: " in result["msg"]
    assert run()["changed"] is False
