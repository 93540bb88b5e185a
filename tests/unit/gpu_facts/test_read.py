"""All facts of a machine: the source, the facts of the host, the problems; and the module."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import host, kernel_log, problems, smi
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import read as reader
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import gpu_facts
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import Machine, Output, read, read_gpus
from ansible_collections.inference.vllm.plugins.modules import gpu_info as module
from support.fake_nvml import FakeGpu, install
from support.modules import run_module
from support.paths import FIXTURES, PLUGINS

SMI_OUTPUT = FIXTURES / "nvidia_smi"
LOGS = FIXTURES / "kernel_log"
JOURNAL, DMESG = kernel_log.COMMANDS
KEYS = set(gpu_facts({}))
H100S: dict[tuple[str, ...], Output] = {
    smi.QUERY: Output(0, (SMI_OUTPUT / "580.105.08-h100.xml").read_text()),
    smi.CAPABILITIES: Output(
        0, "0, GPU-00000000-0000-0000-0000-000000000000, 9.0\n1, GPU-00000001-0000-0000-0000-000000000001, 9.0\n"
    ),
}


def machine(root: Path, output: dict[tuple[str, ...], Output] | None = None, nvml: Any = None) -> Machine:
    answers = output or {}

    def run(arguments: Sequence[str]) -> Output:
        return answers.get(tuple(arguments), Output(None, err="program_missing"))

    return Machine(run, root, nvml)


def device(root: Path, slot: str, name: str, kind: str = "0x030000", driver: str = "") -> None:
    folder = root / "sys/bus/pci/devices" / slot
    folder.mkdir(parents=True)
    for file, value in (("vendor", "0x10de"), ("class", kind), ("device", "0x" + name)):
        (folder / file).write_text(value + "\n")
    if driver:
        (folder / "driver").symlink_to(f"../../../drivers/{driver}")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def codes(facts: dict[str, Any]) -> list[str]:
    return [each["code"] for each in facts["host"]["problems"]]


def test_every_source_gives_the_same_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device(tmp_path, "0000:53:00.0", "2330")
    device(tmp_path, "0000:64:00.0", "2330")
    install(monkeypatch, FakeGpu(), FakeGpu(bus="00000000:64:00.0"))
    by_nvml = read(machine(tmp_path, nvml=pynvml))
    by_smi = read(machine(tmp_path, H100S))
    by_bus = read(machine(tmp_path))
    for facts, source in ((by_nvml, "nvml"), (by_smi, "nvidia_smi"), (by_bus, "pci")):
        assert facts["host"]["source"] == source
        assert [set(gpu) for gpu in facts["gpus"]] == [KEYS, KEYS]
        assert [gpu["pci_bus_id"] for gpu in facts["gpus"]] == ["0000:53:00.0", "0000:64:00.0"]
        assert {gpu["pci_device"] for gpu in facts["gpus"]} == {"2330"}
        assert json.loads(json.dumps(facts)) == facts
    for gpu in by_nvml["gpus"][0], by_smi["gpus"][0]:
        assert (gpu["name"], gpu["compute_capability"], gpu["memory"]["total_gib"]) == (
            "NVIDIA H100 80GB HBM3",
            9.0,
            79.65,
        )
    assert by_bus["gpus"][0]["name"] is None
    assert by_bus["gpus"][0]["missing"]["name"] == "no_driver"
    assert codes(by_bus) == ["driver_not_installed"]


def test_a_null_always_has_a_reason_and_a_value_never(tmp_path: Path) -> None:
    device(tmp_path, "0000:53:00.0", "2330")
    for facts in (read(machine(tmp_path, H100S)), read(machine(tmp_path))):
        for part in (facts["host"], *facts["gpus"]):
            nulls = {
                path
                for path, value in _leaves({key: value for key, value in part.items() if key != "missing"})
                if value is None and not path.endswith("_gib")
            }
            assert nulls == set(part["missing"])


def _leaves(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in data.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def test_nvidia_smi_answers_where_nvml_does_not(tmp_path: Path) -> None:
    # The real bindings, on a machine without the library.
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    facts = read(machine(tmp_path, H100S, pynvml))
    assert (facts["host"]["source"], codes(facts)) == ("nvidia_smi", [])


def test_no_gpu_and_no_driver_is_no_problem(tmp_path: Path) -> None:
    facts = read(machine(tmp_path))
    assert (facts["gpus"], facts["host"]["source"], codes(facts)) == ([], "none", [])


def test_number_and_capability_are_found_by_uuid(tmp_path: Path) -> None:
    swapped = Output(0, "1, GPU-00000000-0000-0000-0000-000000000000, 9.0\n")
    gpus = read_gpus(machine(tmp_path, H100S | {smi.CAPABILITIES: swapped}))
    assert (gpus[0]["index"], gpus[0]["compute_capability"]) == (1, 9.0)
    assert gpus[1]["missing"]["compute_capability"] == "not_reported"


def test_links_and_peers_by_nvidia_smi(tmp_path: Path) -> None:
    links = {
        smi.NVLINKS: Output(0, (SMI_OUTPUT / "nvlink-h100.txt").read_text()),
        smi.PATHS: Output(0, (SMI_OUTPUT / "topo-m-a100-nics.txt").read_text()),
        smi.PEER_READS: Output(0, " \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n"),
    }
    first, second = read(machine(tmp_path, H100S | links))["gpus"]
    assert first["nvlink"] == {"present": True, "links": 18}
    assert first["peers"] == [{"index": 1, "path": "NV", "p2p": "ok"}]
    assert second["missing"]["nvlink.links"] == "not_reported"
    without = read(machine(tmp_path, H100S))["gpus"][0]
    assert without["missing"]["peers"] == without["missing"]["nvlink.present"] == "program_missing"


def test_gpu_that_the_driver_does_not_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device(tmp_path, "0000:53:00.0", "2330", driver="nvidia")
    device(tmp_path, "0000:64:00.0", "2330", driver="nvidia")
    device(tmp_path, "0000:75:00.0", "2330", driver="vfio-pci")
    install(monkeypatch, FakeGpu(), FakeGpu(broken={"*": 15}))
    facts = read(machine(tmp_path, nvml=pynvml))
    assert [(gpu["index"], gpu["pci_bus_id"]) for gpu in facts["gpus"]] == [(0, "0000:53:00.0"), (None, "0000:64:00.0")]
    assert facts["gpus"][1]["missing"]["name"] == "not_listed_by_driver"
    assert codes(facts) == ["gpu_lost", "gpu_not_listed"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Output(None, err="program_missing"), "driver_not_installed"),
        (Output(None, err="program_timeout"), "driver_timeout"),
        (Output(18, "Failed to initialize NVML: Driver/library version mismatch\n"), "driver_library_mismatch"),
        (
            Output(9, "", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
            "driver_not_loaded",
        ),
        (Output(15, "Unable to determine the device handle for GPU0000:02:00.0: GPU is lost."), "gpu_lost"),
        (Output(0, "unheard of"), "unreadable_nvidia_smi"),
    ],
)
def test_driver_that_fails_leaves_the_bus(tmp_path: Path, answer: Output, code: str) -> None:
    device(tmp_path, "0000:02:00.0", "2684")
    facts = read(machine(tmp_path, {smi.QUERY: answer}))
    assert (facts["host"]["source"], facts["gpus"][0]["pci_device"], codes(facts)) == ("pci", "2684", [code])


def test_module_and_library_that_disagree(tmp_path: Path) -> None:
    write(
        tmp_path / "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.173.02  Tue Jun 23 08:38:17 UTC 2026\n"
        "GCC version:  gcc version 14.2.0 (Ubuntu 14.2.0-4ubuntu2~24.04.1)\n",
    )
    library = tmp_path / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.178.04"
    write(library, "")
    library.with_name("libnvidia-ml.so.1").symlink_to(library.name)
    device(tmp_path, "0000:02:00.0", "2684")
    output = {smi.QUERY: Output(18, "Failed to initialize NVML: Driver/library version mismatch\n")}
    facts = read(machine(tmp_path, output))
    assert facts["host"]["kernel_module"] == {"version": "580.173.02", "kind": "proprietary"}
    assert (facts["host"]["userspace_version"], facts["host"]["versions_agree"]) == ("580.178.04", False)
    assert codes(facts) == ["driver_library_mismatch"]
    assert "module 580.173.02, libraries 580.178.04" in facts["host"]["problems"][0]["message"]
    library.rename(library.with_name("libnvidia-ml.so.580.173.02"))
    library.with_name("libnvidia-ml.so.1").unlink()
    library.with_name("libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.580.173.02")
    assert read(machine(tmp_path))["host"]["versions_agree"] is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build  (dvs-builder@host)\n",
            ("580.105.08", "open"),
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 2024\n", ("550.90.07", "proprietary")),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  595.80  Release Build\n", ("595.80", "open")),
        ("GCC version: 12\n", None),
    ],
)
def test_version_of_the_kernel_module(text: str, expected: tuple[str, str] | None) -> None:
    assert host.parse_driver_version(text) == expected


@pytest.mark.parametrize("foreign", ["nouveau", "nova_core"])
def test_foreign_driver(tmp_path: Path, foreign: str) -> None:
    device(tmp_path, "0000:02:00.0", "2684")
    write(tmp_path / "proc/modules", f"{foreign} 2400256 1 - Live 0x0000000000000000\nnvidia_wmi 16384 0 - Live 0x0\n")
    facts = read(machine(tmp_path))
    assert facts["host"]["modules"][foreign] is True
    assert facts["host"]["modules"]["nvidia"] is False
    assert codes(facts) == ["foreign_driver_loaded", "driver_not_installed"]
    write(tmp_path / "proc/modules", f"{foreign} 2400256 0 - Live 0x0\nnvidia 1 0 - Live 0x0\n")
    assert "foreign_driver_loaded" not in codes(read(machine(tmp_path)))


def test_nvswitches_need_their_manager(tmp_path: Path) -> None:
    device(tmp_path, "0000:53:00.0", "2330", kind="0x030200")
    device(tmp_path, "0000:64:00.0", "2330", kind="0x030200")
    device(tmp_path, "0000:83:00.0", "22a3", kind="0x068000")
    facts = read(machine(tmp_path, H100S))
    assert (facts["host"]["nvswitches"], facts["host"]["fabric_manager_running"]) == (1, False)
    assert codes(facts) == ["fabric_not_ready"]
    write(tmp_path / "proc/812/comm", "nv-fabricmanage\n")
    facts = read(machine(tmp_path, H100S))
    assert (facts["host"]["fabric_manager_running"], codes(facts)) == (True, [])
    waiting = Output(0, H100S[smi.QUERY].out.replace("Completed", "In Progress", 1))
    assert codes(read(machine(tmp_path, H100S | {smi.QUERY: waiting}))) == ["fabric_not_ready"]


@pytest.mark.parametrize(
    ("efi", "variable", "state", "reason"),
    [
        (False, None, False, None),
        (True, b"\x06\x00\x00\x00\x01", True, None),
        (True, b"\x06\x00\x00\x00\x00", False, None),
        (True, b"", None, "unreadable"),
        (True, None, None, "efi_variable_not_found"),
    ],
)
def test_secure_boot(tmp_path: Path, efi: bool, variable: bytes | None, state: bool | None, reason: str | None) -> None:
    variables = tmp_path / "sys/firmware/efi/efivars"
    if efi:
        variables.mkdir(parents=True)
    if variable is not None:
        (variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(variable)
    facts = read(machine(tmp_path))["host"]
    assert (facts["secure_boot"], facts["missing"].get("secure_boot")) == (state, reason)


def test_xids_go_to_their_gpu(tmp_path: Path) -> None:
    log = {JOURNAL: Output(0, (LOGS / "journal-iso.txt").read_text())}
    facts = read(machine(tmp_path, H100S | log))
    assert [xid["code"] for xid in facts["gpus"][0]["xids"]] == [79, 9999]
    assert facts["gpus"][0]["xids"][0]["time"] == "2026-05-18T03:11:08+00:00"
    assert "fallen off the PCI bus" in facts["gpus"][0]["xids"][0]["meaning"]
    assert facts["gpus"][0]["xids"][1]["meaning"] is None
    assert facts["gpus"][1]["xids"] == []
    assert [(xid["code"], xid["pci_bus_id"]) for xid in facts["host"]["other_xids"]] == [(45, "0000:dc:00.0")]


def test_kernel_log_by_dmesg_or_with_the_reason_why_not(tmp_path: Path) -> None:
    empty, closed = Output(0, ""), Output(1, "", "dmesg: read kernel buffer failed: Operation not permitted")
    log = Output(0, (LOGS / "journal-iso.txt").read_text())
    assert read(machine(tmp_path, H100S | {JOURNAL: empty, DMESG: log}))["gpus"][0]["xids"]
    facts = read(machine(tmp_path, H100S | {JOURNAL: empty, DMESG: closed}))
    assert facts["gpus"][0]["missing"]["xids"] == facts["host"]["missing"]["other_xids"] == "no_permission"
    assert read(machine(tmp_path, H100S))["gpus"][0]["missing"]["xids"] == "kernel_log_not_available"


def test_xids_of_dmesg() -> None:
    found = kernel_log.parse((LOGS / "dmesg-uptime.txt").read_text())
    assert [(xid["code"], xid["pci_bus_id"], xid["time"]) for xid in found] == [
        (31, "0000:0a:00.0", "14328.198504"),
        (62, "0000:0a:00.0", "14370.687545"),
        (45, "0000:0a:00.0", "14370.688139"),
    ]
    assert all(xid["meaning"] for xid in found)
    assert found[0]["text"].startswith("pid=13332, name=cuda_plot_k32_v")


def test_gpu_lost_before_the_driver_started_counts_as_79() -> None:
    found = kernel_log.parse((LOGS / "dmesg-no-number.txt").read_text())
    assert [(xid["code"], xid["pci_bus_id"]) for xid in found] == [(79, "0000:b3:00.0")]


@given(st.text(alphabet=st.sampled_from("NVRM: Xid(PCI:0123456789abf.),T-+[]\n")) | st.text())
def test_any_kernel_log_is_read(text: str) -> None:
    for xid in kernel_log.parse(text):
        assert xid["pci_bus_id"]
    kernel_log.parse("NVRM: Xid (PCI:" + text)


@pytest.mark.parametrize(
    ("output", "value", "reason", "code"),
    [
        (Output(0, "0\n"), 0, None, None),
        (Output(0, "802\n"), 802, None, "cuda_not_ready"),
        (Output(0, "803\n"), 803, None, "cuda_driver_mismatch"),
        (Output(0, "804\n"), 804, None, "cuda_compatibility_unsupported"),
        (Output(0, "100\n"), 100, None, "cuda_no_device"),
        (Output(0, "999\n"), 999, None, "cuda_error"),
        (Output(None, err="program_timeout"), None, "program_timeout", "driver_timeout"),
        (Output(1, "", "OSError: libcuda.so.1: cannot open shared object file"), None, "library_not_found", None),
        (Output(-11), None, "program_failed", None),
    ],
)
def test_start_of_cuda(tmp_path: Path, output: Output, value: int | None, reason: str | None, code: str | None) -> None:
    facts = read(machine(tmp_path, H100S | {tuple(reader._CU_INIT): output}), start_cuda=True)
    assert (facts["host"]["cuda_init"], facts["host"]["missing"].get("cuda_init")) == (value, reason)
    assert codes(facts) == ([code] if code else [])


def test_cuda_is_not_started_unasked(tmp_path: Path) -> None:
    facts = read(machine(tmp_path, H100S | {tuple(reader._CU_INIT): Output(0, "802\n")}))
    assert facts["host"]["missing"]["cuda_init"] == "not_asked"


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_start_of_cuda_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "cuda.c"
    source.write_text("int cuInit(unsigned int flags) { return flags == 0 ? 803 : 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert reader.run(reader._CU_INIT).out == "803\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("CUDA error 802: system not yet initialized", "cuda_not_ready"),
        ("Error 803: system has unsupported display driver / cuda driver combination", "cuda_driver_mismatch"),
        ("all is well", None),
    ],
)
def test_words_of_the_cuda_runtime(words: str, code: str | None) -> None:
    found = problems.of_text(words)
    assert (found.code if found else None) == code


def test_programs_are_run_without_ever_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reader.run(["no-such-program"]) == Output(None, err="program_missing")
    assert reader.run([str(tmp_path)]) == Output(None, err="program_missing")
    monkeypatch.setattr(reader, "_SECONDS", 0.05)
    assert reader.run(["sleep", "5"]) == Output(None, err="program_timeout")


@pytest.mark.parametrize("check_mode", [False, True])
def test_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check_mode: bool
) -> None:
    cuda = {tuple(reader._CU_INIT): Output(0, "0\n")}
    monkeypatch.setattr(module, "this_machine", lambda: machine(tmp_path, H100S | cuda))
    arguments = {"start_cuda": True, "_ansible_check_mode": check_mode}
    result = run_module(module, capsys, arguments)
    assert (result["changed"], result["failed"]) == (False, False)
    assert [gpu["name"] for gpu in result["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2
    assert result["host"]["cuda_init"] == (None if check_mode else 0)


def test_nothing_else_in_the_project_reads_gpus() -> None:
    elsewhere = [
        path.relative_to(PLUGINS)
        for path in PLUGINS.rglob("*.py")
        if "gpu_facts" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Constant) and node.value in ("nvidia-smi", "pynvml"))
        or (isinstance(node, ast.Import) and any(name.name == "pynvml" for name in node.names))
    ]
    assert elsewhere == []
