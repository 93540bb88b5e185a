"""Bad input, for each check and down to the verdict: a named failure, no traceback, no green report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks import stability as stability_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import CHECKS
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import run as vram_run
from ansible_collections.inference.vllm.plugins.module_utils.report import view as report
from ansible_collections.inference.vllm.plugins.modules import verdict
from support import fake_nvml
from support.fake_docker import NAME, FakeContainer, FakeTool, fake_docker, requesting
from support.fake_nvml import FakeGpu
from support.lying_server import KEY, MODEL, lying_server
from support.modules import run_module
from support.paths import ROOT

RAW = (ROOT / "tests/unit/fixtures/vllm_bench/0.32.0-image.json").read_text()
DEAD = "http://127.0.0.1:9/v1"
CARD = (24564, 413, 12000)
MODULES = {
    check.name: import_module(f"ansible_collections.inference.vllm.plugins.modules.{check.role}") for check in CHECKS
}
LOADED = ("vram", "stability")


class Proof:
    """A host with a good service, of which a test takes something away before it is checked."""

    def __init__(self, folder: Path, stack: ExitStack, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.stack, self.capsys = folder, stack, capsys
        self.container = FakeContainer(tool=FakeTool(RAW), compose=requesting(device_ids=["0"]))
        (folder / "api_key").write_text(f"{KEY}\n")
        self.docker_host = stack.enter_context(fake_docker(self.container))
        self.base_url = self.serve()
        self.model = MODEL

    def serve(self, lie: str = "", certificate: Path | None = None) -> str:
        self.base_url = self.stack.enter_context(lying_server(lie, certificate))
        return self.base_url

    def arguments(self, step: str) -> dict[str, Any]:
        """What a role would give to the module."""
        own = self.folder / f"{step}.json"
        shared: dict[str, Any] = {
            "base_url": self.base_url,
            "model": self.model,
            "api_key_file": str(self.folder / "api_key"),
        }
        shared |= {"release": "r1", "report_path": str(own), "fail_on_verdict": False, "timeout": 5}
        metrics = {"metrics_url": self.base_url.removesuffix("v1") + "metrics"}
        docker = {"container": NAME, "docker_host": self.docker_host}
        text = {"name": "text", "input_tokens": 8, "output_tokens": 8, "concurrency": [1]}
        more: dict[str, dict[str, Any]] = {
            "smoke": {"extent": "short"},
            "vram": {"max_pixels": 65536, "interval": 0.01, "settle": 0.03, "concurrency": 2, **metrics, **docker},
            # A little soak, so that memory is judged; how even it is says more of this machine.
            "stability": {
                "minutes": 0.01,
                "latency_drift": 1000,
                "interval": 0.01,
                "max_pixels": 65536,
                **metrics,
                **docker,
            },
            "benchmark": {"workloads": [text], "home": str(self.folder), **docker},
        }
        return shared | more[step]

    def failures(self, step: str) -> set[str]:
        """Run the check, join its result to a verdict, and give the names of what failed in that."""
        # The module itself ends without a traceback, or this raises.
        run_module(MODULES[step], self.capsys, self.arguments(step), KEY)
        stored = self.folder / "verdict.json"
        results = {"results": [str(self.folder / f"{step}.json")], "junit_path": str(self.folder / "junit.xml")}
        judged = run_module(
            verdict, self.capsys, {"release": "r1", "path": str(stored), "fail_on_verdict": True, **results}, KEY
        )
        data = json.loads(stored.read_text())
        assert judged["failed"] is not data["ok"]
        files = {path.name: path.read_text() for path in self.folder.glob("*.json")}
        assert report.view(files, "r1", "host", "", "/r")["ok"] is data["ok"]
        names = {check["runbook"] for check in data["checks"] if not check["ok"] and check["severity"] == "error"}
        assert ("<failure" in (self.folder / "junit.xml").read_text()) is bool(names)
        for name in names:
            assert (ROOT / "docs/runbooks" / f"{name}.md").is_file(), name
        return names


@pytest.fixture
def proof(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proof]:
    # Docker is given 10 s to learn of a death; the fake one needs less.
    monkeypatch.setattr(vram_run, "_DEATH_SECONDS", 0.4)
    # A soak of half a second on a busy machine has few requests and readings.
    monkeypatch.setattr(stability_run, "_LEAST_REQUESTS", 1)
    monkeypatch.setattr(stability_run, "_LEAST_READINGS", 1)
    fake_nvml.install(monkeypatch, FakeGpu(memory=CARD))
    with ExitStack() as stack:
        yield Proof(tmp_path, stack, capsys)


@pytest.mark.parametrize("step", MODULES)
def test_nothing_is_wrong_with_what_the_tests_break(proof: Proof, step: str) -> None:
    assert proof.failures(step) == set()


@pytest.mark.parametrize("step", MODULES)
def test_dead_url(proof: Proof, step: str) -> None:
    proof.base_url = DEAD
    assert proof.failures(step) == {"endpoint_unreachable"}


@pytest.mark.parametrize("step", MODULES)
def test_wrong_model_name(proof: Proof, step: str) -> None:
    proof.model = "no-such-model"
    assert proof.failures(step) == {"unknown_model"}


@pytest.mark.parametrize("step", MODULES)
def test_untrusted_certificate(proof: Proof, step: str, tmp_path: Path) -> None:
    both = tmp_path / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(tmp_path / "key"), "-out", str(both), "-days", "2", "-subj", "/CN=elsewhere"]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(both.read_text() + (tmp_path / "key").read_text())
    proof.serve(certificate=both)
    assert proof.failures(step) == {"tls_error"}


@pytest.mark.parametrize("step", ["smoke", *LOADED])
def test_server_that_dies_meanwhile(proof: Proof, step: str) -> None:
    proof.serve("dies_midway")
    assert "connection_lost" in proof.failures(step)


def test_server_that_dies_under_the_tool_that_measures(proof: Proof) -> None:
    proof.container.tool = FakeTool(json.dumps({**json.loads(RAW), "completed": 1, "failed": 7}))
    assert proof.failures("benchmark") == {"bench_failed"}


@pytest.mark.parametrize("step", LOADED)
@pytest.mark.parametrize("missing", ["library", "driver"])
def test_nvml_that_is_missing(proof: Proof, step: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        fake_nvml.install(monkeypatch, nvmlInitWithFlags=9)
    assert proof.failures(step) == {"gpu_unreadable"}


@pytest.mark.parametrize("step", LOADED)
def test_gpu_that_vanishes(proof: Proof, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(dict[str, int]):
        """Answers of a GPU that falls off the bus after a few readings."""

        readings = 0

        def get(self, name: str, default: Any = None) -> Any:
            self.readings += name == "nvmlDeviceGetMemoryInfo_v2"
            return 15 if self.readings > 4 and name == "nvmlDeviceGetMemoryInfo_v2" else default

    fake_nvml.install(monkeypatch, FakeGpu(memory=CARD, broken=Later()))
    assert proof.failures(step) == {"gpu_unreadable"}


@pytest.mark.parametrize("tool", [FakeTool(image=False), FakeTool(code=127, log="sh: vllm: not found")])
def test_tool_that_is_missing(proof: Proof, tool: FakeTool) -> None:
    proof.container.tool = tool
    assert proof.failures("benchmark") == {"bench_tool_missing"}


@pytest.mark.parametrize("lie", ["wrong", "blind", "empty", "hang"])
def test_server_that_looks_healthy_and_lies(proof: Proof, lie: str) -> None:
    """Right JSON and wrong answers; green health and no tokens."""
    names = {"wrong": "wrong_answer", "blind": "wrong_answer", "empty": "no_tokens", "hang": "timeout"}
    proof.serve(lie)
    found = proof.arguments("smoke") | {"timeout": 0.4 if lie == "hang" else 5}
    proof.arguments = lambda step: found  # type: ignore[method-assign]
    assert names[lie] in proof.failures("smoke")
