"""GPUs by name, by figures, by facts and as a host has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import gpu_facts
from ansible_collections.inference.vllm.plugins.module_utils.planner import gpus
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import FIXTURES
from support.plans import gpu_plan

NAMES = [
    ("RTX 3090", 23.5, 8.6, "marlin"),
    ("RTX 4090", 23.5, 8.9, "marlin"),
    ("RTX 5090", 31.3, 12.0, "native"),
    ("RTX 6000 Ada", 47.3, 8.9, "marlin"),
    ("RTX PRO 6000", 94.9, 12.0, "native"),
    ("L4", 21.9, 8.9, "marlin"),
    ("L40S", 44.3, 8.9, "marlin"),
    ("A10", 21.9, 8.6, "marlin"),
    ("A100 40GB", 39.3, 8.0, "marlin"),
    ("A100 80GB", 79.1, 8.0, "marlin"),
    ("H100", 79.1, 9.0, "native"),
    ("H200", 139.8, 9.0, "native"),
    ("B200", 178.3, 10.0, "native"),
]


@pytest.mark.parametrize(("name", "usable", "capability", "path"), NAMES)
def test_row(name: str, usable: float, capability: float, path: str) -> None:
    gpu = gpus.find(name)
    assert (gpu.name, gpu.compute_capability, gpu.fp8_path) == (name, capability, path)
    assert gpu.usable_gib == pytest.approx(usable, abs=0.1)
    # A process never gets all that the card reports.
    assert gpu.usable_gib < gpu.reported_mib / 1024 - 0.2


def test_no_two_cards_share_a_name_or_an_identifier() -> None:
    names = [alias.lower() for gpu in gpus.TABLE for alias in {gpu.name, *gpu.aliases}]
    identifiers = [identifier for gpu in gpus.TABLE for identifier in gpu.pci_ids]
    assert len(set(names)) == len(names)
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize(
    ("written", "name", "count"),
    [
        ("2x RTX 4090", "RTX 4090", 2),
        ("2 x rtx4090", "RTX 4090", 2),
        ("H100", "H100", 1),
        ("8xH200", "H200", 8),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 1),
        ("NVIDIA H100 80GB HBM3", "H100", 1),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 1),
        ("A100", "A100 80GB", 1),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 1),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000", 1),
        ("NVIDIA L4", "L4", 1),
    ],
)
def test_names_as_people_and_drivers_write_them(written: str, name: str, count: int) -> None:
    host = gpus.parse(written)
    assert (host.gpu.name, host.count) == (name, count)


@pytest.mark.parametrize("other", ["RTX 3090 Ti", "RTX 4080", "RTX 4090 D", "L40", "A10G", "RTX 6000"])
def test_another_card_is_not_taken_for_one_of_the_table(other: str) -> None:
    with pytest.raises(RefusalError) as caught:
        gpus.find(other)
    assert caught.value.refusals[0].code == "unknown_gpu"
    assert "RTX" in caught.value.refusals[0].fix or "L4" in caught.value.refusals[0].fix or "A10" in str(caught.value)


@pytest.mark.parametrize("written", ["", "0x RTX 4090", "2x", "x RTX 4090"])
def test_impossible_counts_are_refused(written: str) -> None:
    with pytest.raises(RefusalError):
        gpus.parse(written)


def test_facts_of_a_host_that_does_not_exist_yet() -> None:
    named = gpus.from_facts([{"name": "RTX 4090", "count": 2}])
    assert (named.gpu.name, named.count, str(named)) == ("RTX 4090", 2, "2x RTX 4090")
    figures = gpus.from_facts([{"name": "my card", "total_gib": 30.5, "compute_capability": 8.9, "count": 3}])
    assert (figures.gpu.name, figures.gpu.usable_gib, figures.gpu.fp8_path) == ("my card", 30.5, "marlin")


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ([{"name": "RTX 4090"}, {"name": "RTX 3090"}], "mixed_gpus"),
        ([{"count": 2}], "impossible_gpu"),
        ([{"name": "RTX 4090", "count": 0}], "impossible_gpu"),
        ([{"name": "RTX 4090", "memory": 24}], "impossible_gpu"),
        ([{"name": "RTX 4080"}], "unknown_gpu"),
    ],
)
def test_facts_that_are_refused(facts: list[dict[str, object]], code: str) -> None:
    with pytest.raises(RefusalError) as caught:
        gpus.from_facts(facts)
    assert caught.value.refusals[0].code == code


def found(**known: Any) -> dict[str, Any]:
    """A GPU as gpu_facts reads it."""
    return gpu_facts({path.replace("__", "."): value for path, value in known.items()})


def test_gpus_of_a_host() -> None:
    one = found(
        name="NVIDIA GeForce RTX 4090",
        memory__total_mib=24564,
        memory__reserved_mib=413,
        compute_capability=8.9,
    )
    host = gpus.from_host([one, one])
    assert (host.gpu, host.count) == (gpus.find("RTX 4090"), 2)


def test_gpu_that_the_table_does_not_know() -> None:
    one = found(name="NVIDIA Z1", memory__total_mib=40960, memory__reserved_mib=512, compute_capability=9.0)
    host = gpus.from_host([one])
    assert (host.gpu.name, host.gpu.usable_gib, host.gpu.native_fp8) == ("NVIDIA Z1", 39.5, True)


def test_gpu_that_the_table_does_not_know_and_that_does_not_tell_its_capability() -> None:
    with pytest.raises(RefusalError) as caught:
        gpus.from_host([found(name="NVIDIA Z1", memory__total_mib=40960)])
    assert caught.value.refusals[0].code == "unknown_gpu"


def test_another_edition_of_a_known_card() -> None:
    host = gpus.from_host([found(name="NVIDIA H100 NVL", memory__total_mib=95830, compute_capability=9.0)])
    assert host.gpu.usable_gib == pytest.approx(95830 / 1024 - 0.47, abs=0.01)


def test_host_without_gpus() -> None:
    with pytest.raises(RefusalError, match="vram_plan_gpus"):
        gpus.from_host([])


def test_gpus_that_only_the_bus_shows() -> None:
    one, unknown = found(pci_device="2684"), found(pci_device="ffff")
    assert str(gpus.from_host([one, one, unknown])) == "2x RTX 4090"
    with pytest.raises(RefusalError, match="vram_plan_gpus"):
        gpus.from_host([unknown])


def test_a_real_host_is_planned_by_the_uuids_that_its_driver_listed() -> None:
    facts = json.loads((FIXTURES / "gpu_facts" / "h200.json").read_text())
    host = gpus.from_host(facts["gpus"])
    assert (str(host), host.gpu.usable_gib) == ("1x H200", 139.8)
    assert host.cards == (gpus.Card(0, "GPU-7180d3dd-0000-0000-0000-000000000000"),)
    (row,) = gpu_plan(host).selected
    assert (row.uuid, row.index) == ("GPU-7180d3dd-0000-0000-0000-000000000000", 0)


@pytest.mark.parametrize(
    ("name", "kv_cache_dtype", "flashinfer"),
    [
        ("RTX 4090", "fp8", True),
        ("RTX 4090", "bfloat16", False),
        ("RTX 5090", "fp8", True),
        ("H100", "fp8", False),
        ("B200", "bfloat16", True),
    ],
)
def test_which_gpus_take_flashinfer(name: str, kv_cache_dtype: str, flashinfer: bool) -> None:
    assert gpus.find(name).takes_flashinfer(kv_cache_dtype) is flashinfer


def test_marlin_can_be_forced() -> None:
    assert gpus.custom(80.0, 1, 9.0).gpu.fp8_path == "native"
    assert gpus.custom(80.0, 1, 9.0, forces_marlin=True).gpu.fp8_path == "marlin"
