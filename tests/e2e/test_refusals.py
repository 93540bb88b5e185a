"""Invalid input is refused with the name of the variable, before anything is installed or written."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.conftest import HOME, Run


@pytest.fixture
def held_port() -> Iterator[int]:
    """Port on loopback that another server uses."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("vllm_model", "tiny-qwen-vl", ["[unknown_model]", "tiny-qwen3-vl"]),
        ("vllm_port", -1, ["[out_of_range]", "1 to 65535"]),
        ("vllm_servce_pids_limit", 5, ["[unknown_variable]", "vllm_service_pids_limit"]),
        ("vllm_service_api_key_file", "/nowhere/key", ["[missing_file]", "/nowhere/key"]),
        ("vllm_catalogue_dirs", ["/nowhere/models"], ["[missing_catalogue_dir]", "/nowhere/models"]),
        ("vram_plan_context", 32768, ["[renamed_variable]", "vram_plan_max_model_len"]),
        ("vram_plan_max_model_len", "long", ["[wrong_type]", "auto or a number"]),
        ("vllm_max_model_len", 32768, ["[unknown_variable]", "Did you mean vram_plan_max_model_len?"]),
        ("max_model_len", 32768, ["[unknown_variable]", "Did you mean vram_plan_max_model_len?"]),
        ("preflight_min_free_gib", 10**6, ["[disk_too_small]", "vllm_home"]),
        ("preflight_min_memory_gib", 10**6, ["[memory_too_small]"]),
        ("vllm_accelerator", "gpu", ["vllm_accelerator", "nvidia, cpu"]),
        ("engine_image_extra_packages", ["av"], ["[extra_package_unpinned]"]),
        ("vllm_bind_address", "192.0.2.1", ["[public_address]", "preflight_allow_public_address"]),
        ("vllm_service_extra_flags", {"trust-remote-code": True, "tp": 2}, ["[flag_refused]", "[flag_of_plan]"]),
        ("vllm_service_environment", {"LD_PRELOAD": "x"}, ["[refused_environment]", "LD_PRELOAD"]),
        ("vllm_service_memory_limit", "32GiB", ["[bad_size]", "4g"]),
        ("vllm_service_stop_timeout", 0, ["[out_of_range]", "1 or more"]),
    ],
)
def test_bad_value_is_refused_by_name(
    playbook: Callable[..., Run], variable: str, value: object, message: list[str]
) -> None:
    before = sorted(HOME.rglob("*")) if HOME.exists() else []
    run = playbook("deploy.yml", **{variable: value})
    assert run.rc != 0
    assert run.changed == 0
    for words in [variable, *message]:
        assert words in run.text
    assert (sorted(HOME.rglob("*")) if HOME.exists() else []) == before


def test_taken_port_is_refused_by_name(playbook: Callable[..., Run], held_port: int) -> None:
    run = playbook("deploy.yml", vllm_port=held_port)
    assert run.rc != 0
    assert run.changed == 0
    assert "[port_taken]" in run.text
    assert str(held_port) in run.text


def test_unreachable_address_is_reported(playbook: Callable[..., Run], tmp_path: Path) -> None:
    run = playbook(
        "playbooks/verify.yml",
        verify_url="http://127.0.0.1:9/v1",
        verify_dir=str(tmp_path),
        verify_name="dead",
        smoke_test_extent="short",
    )
    assert run.rc != 0
    assert "endpoint_identity: endpoint_unreachable" in run.text
    assert "Traceback" not in run.text
    report = tmp_path / "reports" / "dead"
    verdict = json.loads((report / "verdict.json").read_text())
    assert verdict["ok"] is False
    assert {check["runbook"] for check in verdict["checks"]} == {"endpoint_unreachable"}
    assert "Not proven" in (report / "report.html").read_text()
    assert "<failure" in (report / "junit.xml").read_text()
