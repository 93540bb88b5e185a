"""The parser of nvidia-smi, on output of drivers 535 to 610; fixtures/README.md says where each is from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import smi
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import LEAVES, Missing, pci_bus_id
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import FIXTURES

SMI_OUTPUT = FIXTURES / "nvidia_smi"
NO_ECC = Missing("not_supported")


def smi_output(name: str) -> str:
    return (SMI_OUTPUT / name).read_text()


GENERATIONS: list[tuple[str, dict[str, Any]]] = [
    (
        "535.54.03-a100.xml",
        {
            "name": "NVIDIA A100-SXM4-80GB",
            "pci_bus_id": "0000:01:00.0",
            "pci_device": "20b2",
            "memory.total_mib": 81920,
            "memory.reserved_mib": 869,
            "memory.used_mib": 50,
            "memory.free_mib": 80999,
            "driver_version": "535.54.03",
            "cuda_version": "12.2",
            "pcie.generation": 4,
            "pcie.generation_max": 4,
            "pcie.width": 16,
            "pcie.width_max": 16,
            "ecc.mode": True,
            "ecc.uncorrected_volatile": 0,
            "ecc.uncorrected_aggregate": 0,
            "mig.mode": True,
            "mig.instances": 2,
            "persistence_mode": False,
            "fabric_state": NO_ECC,
            "processes": [],
        },
    ),
    (
        "550.127.05-rtx4090.xml",
        {
            "name": "NVIDIA GeForce RTX 4090",
            "pci_device": "2684",
            "driver_version": "550.127.05",
            "cuda_version": "12.4",
            "pcie.generation": 1,
            "pcie.generation_max": 4,
            "ecc.mode": NO_ECC,
            "ecc.uncorrected_volatile": NO_ECC,
            "mig.mode": NO_ECC,
            "mig.instances": 0,
            "processes": [
                {"pid": 1234, "name": "/usr/bin/python3", "mib": 1010},
                {"pid": 2222, "name": "/usr/lib/xorg/Xorg", "mib": None},
            ],
        },
    ),
    (
        "570.148.08-a100.xml",
        {
            "name": "NVIDIA A100-SXM4-40GB",
            "driver_version": "570.148.08",
            "cuda_version": "12.8",
            "memory.reserved_mib": 518,
            "ecc.uncorrected_aggregate": 0,
            "mig.mode": False,
            "persistence_mode": True,
        },
    ),
    (
        "580.105.08-h100.xml",
        {
            "name": "NVIDIA H100 80GB HBM3",
            "uuid": "GPU-00000000-0000-0000-0000-000000000000",
            "pci_bus_id": "0000:53:00.0",
            "driver_version": "580.105.08",
            "cuda_version": "13.0",
            "pcie.generation_max": 5,
            "fabric_state": "completed",
        },
    ),
    (
        "590.44.01-rtx3090.xml",
        {
            "name": "NVIDIA GeForce RTX 3090",
            "driver_version": "590.44.01",
            "cuda_version": "13.1",
            "memory.total_mib": 24576,
            "memory.reserved_mib": 450,
            "persistence_mode": True,
        },
    ),
    (
        "595.84-processes.xml",
        {
            "driver_version": "595.84",
            "processes": [
                {"pid": 1842, "name": "cosmic-comp", "mib": 410},
                {"pid": 3190, "name": "/usr/bin/code", "mib": 451},
                {"pid": 4937, "name": "python", "mib": 160},
                {"pid": 34626, "name": "/usr/lib/chromium/chromium", "mib": 183},
            ],
        },
    ),
    ("610.57.04-renamed.xml", {"driver_version": "610.57.04", "cuda_version": "13.3", "memory.total_mib": 8192}),
]


@pytest.mark.parametrize(("name", "expected"), GENERATIONS, ids=[name for name, _ in GENERATIONS])
def test_generation(name: str, expected: dict[str, Any]) -> None:
    gpus, problems = smi.parse_query(smi_output(name))
    assert {leaf: gpus[0][leaf] for leaf in expected} == expected
    assert problems == []
    assert set(gpus[0]) <= set(LEAVES)
    assert [gpu["index"] for gpu in gpus] == list(range(len(gpus)))


def test_errors_that_ecc_did_not_correct_are_added_up() -> None:
    old = smi_output("535.54.03-a100.xml").replace("<sram_uncorrectable>0<", "<sram_uncorrectable>3<", 1)
    new = (
        smi_output("570.148.08-a100.xml").replace("_parity>0<", "_parity>1<", 1).replace("_secded>0<", "_secded>2<", 1)
    )
    for text in (old, new):
        assert smi.parse_query(text)[0][0]["ecc.uncorrected_volatile"] == 3
    assert smi.parse_query(smi_output("580.65.06-lost.xml"))[0][0]["ecc.uncorrected_aggregate"] == 8


@pytest.mark.parametrize(
    ("before", "after", "leaf", "reason"),
    [
        ("24576 MiB", "1" + "0" * 400 + " MiB", "memory.total_mib", "unreadable"),
        ("24576 MiB", "24576", "memory.total_mib", "unreadable"),
        ("24576 MiB", "[Insufficient Permissions]", "memory.total_mib", "no_permission"),
        ("<processes>", "<processes>N/A", "processes", "not_supported"),
        ("<processes>", "<processes>0", "processes", "unreadable"),
        ("<processes>\n    </processes>", "", "processes", "not_reported"),
    ],
)
def test_value_that_is_none(before: str, after: str, leaf: str, reason: str) -> None:
    text = smi_output("590.44.01-rtx3090.xml")
    assert before in text
    assert smi.parse_query(text.replace(before, after))[0][0][leaf] == Missing(reason)


def test_lost_gpu_keeps_its_place_and_is_named() -> None:
    gpus, problems = smi.parse_query(smi_output("580.65.06-lost.xml"))
    assert (gpus[0]["memory.total_mib"], gpus[1]["memory.total_mib"]) == (196608, Missing("gpu_lost"))
    assert gpus[1]["ecc.uncorrected_volatile"] == Missing("gpu_lost")
    assert [(each.code, "0000:0b:00.0" in each.message) for each in problems] == [("gpu_lost", True)]


def test_words_before_the_report_are_a_problem_and_the_report_is_read() -> None:
    words = "Unable to determine the device handle for GPU1: 0000:34:00.0: Unknown Error\n"
    gpus, problems = smi.parse_query(words + smi_output("570.148.08-a100.xml"))
    assert gpus[0]["name"] == "NVIDIA A100-SXM4-40GB"
    assert [(each.code, "0000:34:00.0" in each.message) for each in problems] == [("gpu_unreachable", True)]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.178\n",
            "driver_library_mismatch",
        ),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.\n",
            "driver_not_loaded",
        ),
        (
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display "
            "Driver is properly installed and present in your system.\n",
            "driver_not_installed",
        ),
        (
            "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system to recover "
            "this GPU\n",
            "gpu_lost",
        ),
        ("Unable to determine the device handle for GPU0000:07:00.0: Unknown Error\n", "gpu_unreachable"),
        ("No devices were found\n", "no_devices_found"),
        ("Failed to initialize NVML: Insufficient Permissions\n", "gpu_no_permission"),
        ("", "unreadable_nvidia_smi"),
        ("bash: syntax error", "unreadable_nvidia_smi"),
        ("<nvidia_smi_log><gpu>", "unreadable_nvidia_smi"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><nvidia_smi_log>&b;</nvidia_smi_log>', "unreadable_nvidia_smi"),
    ],
)
def test_text_without_a_report(words: str, code: str) -> None:
    with pytest.raises(RefusalError) as caught:
        smi.parse_query(words)
    assert [each.code for each in caught.value.refusals] == [code]


@given(st.text() | st.text().map(lambda text: f"<nvidia_smi_log>{text}</nvidia_smi_log>"))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        gpus, _ = smi.parse_query(text)
    except RefusalError as error:
        assert error.refusals[0].fix
    else:
        assert gpus == []


@given(st.sampled_from([name for name, _ in GENERATIONS]), st.data())
def test_any_damage_to_a_report_is_read_or_refused(name: str, data: st.DataObject) -> None:
    text = smi_output(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 200)))
    try:
        gpus, _ = smi.parse_query(text[:start] + data.draw(st.text(max_size=20)) + text[end:])
    except RefusalError:
        return
    for gpu in gpus:
        assert isinstance(gpu["memory.total_mib"], int | Missing)
        assert isinstance(gpu["processes"], list | Missing)


@given(st.text(alphabet=st.sampled_from('GPU0123456789 \t\nXNVLink:<>OKPHB,."[]/A-\0')))
def test_no_text_breaks_the_small_parsers(text: str) -> None:
    smi.parse_capabilities(text)
    smi.parse_nvlinks(text)
    for cell in smi.parse_matrix(text).values():
        assert cell


@given(st.text())
def test_bus_address_is_of_one_form_or_refused(text: str) -> None:
    try:
        address = pci_bus_id(text)
    except ValueError:
        return
    assert pci_bus_id(address) == address


def test_bus_addresses() -> None:
    assert pci_bus_id("00000000:8F:00.0") == pci_bus_id("0000:8f:00") == pci_bus_id("8f:00.0") == "0000:8f:00.0"


def test_compute_capabilities() -> None:
    text = '0, GPU-a, 8.9\n1, GPU-b, [N/A]\nField "compute_cap" is not a valid field to query.\n'
    assert smi.parse_capabilities(text) == [(0, "GPU-a", 8.9), (1, "GPU-b", Missing("not_supported"))]
    assert smi.parse_capabilities("0, GPU-a, 12.0\n") == [(0, "GPU-a", 12.0)]


def test_peers_without_nvlink() -> None:
    paths, reads = smi.parse_matrix(smi_output("topo-m-5090.txt")), smi.parse_matrix(smi_output("topo-p2p-5090.txt"))
    assert smi.peers(paths, reads, 0) == [{"index": 1, "path": "PHB", "p2p": "gpu_not_supported"}]
    assert smi.peers(paths, reads, 1) == [{"index": 0, "path": "PHB", "p2p": "gpu_not_supported"}]


def test_peers_in_a_matrix_with_network_cards() -> None:
    paths = smi.parse_matrix(smi_output("topo-m-a100-nics.txt"))
    assert paths == {(0, 0): "X", (0, 1): "NV12", (1, 0): "NV12", (1, 1): "X"}
    assert smi.peers(paths, {}, 0) == [{"index": 1, "path": "NV", "p2p": "unknown"}]


@pytest.mark.parametrize(
    ("name", "present", "links"),
    [
        ("nvlink-h100.txt", True, 18),
        ("nvlink-v100.txt", True, 4),
        ("nvlink-l40s.txt", False, 0),
        ("nvlink-mig.txt", Missing("mig_enabled"), Missing("mig_enabled")),
    ],
)
def test_nvlinks(name: str, present: Any, links: Any) -> None:
    assert smi.parse_nvlinks(smi_output(name)) == {0: {"nvlink.present": present, "nvlink.links": links}}
