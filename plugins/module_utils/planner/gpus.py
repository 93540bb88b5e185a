"""The GPU table: reported and usable memory of each card, and its kernels for FP8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

# Memory that the driver reserves on a card that is not in the table; the RTX 4090 and the H100 both lose 0.47 GiB
# (24564 MiB reported, 23.52 GiB in torch; 81559 MiB reported, 79.18 GiB in torch).
DRIVER_RESERVE_GIB = 0.47

# Compute capabilities with FP8 kernels for 128x128 blocks (vLLM: cutlass_block_fp8_supported). Others repack the
# weights for Marlin, which computes in BF16; SM89 has FP8 units but no such kernel and takes Marlin from vLLM 0.29.
_NATIVE_FP8_MAJORS = (9, 10, 11, 12)
LOWEST_CAPABILITY = 7.5
_HOPPER = 9
_FLASHINFER_FIRST = (7, 10)


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: Short name for operators.
        reported_mib: ``memory.total`` of nvidia-smi.
        usable_gib: Memory available to a CUDA process (torch: ``total_memory``).
        compute_capability: Such as 8.9.
        peer_to_peer: Whether GPUs of this kind can access each other's memory (NVLink or PCIe).
        pci_ids: PCI device identifiers, to identify the card before a driver is installed.
        aliases: Other names, for example nvidia-smi's.
        forces_marlin: Whether the engine is configured to use Marlin although the GPU has native kernels.
    """

    name: str
    reported_mib: int
    usable_gib: float
    compute_capability: float
    peer_to_peer: bool
    pci_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    forces_marlin: bool = False

    @property
    def native_fp8(self) -> bool:
        """Whether FP8 weights in blocks are used unchanged; otherwise they are repacked for Marlin."""
        return int(self.compute_capability) in _NATIVE_FP8_MAJORS and not self.forces_marlin

    def takes_flashinfer(self, kv_cache_dtype: str) -> bool:
        """Whether vLLM chooses FlashInfer for attention, which has a workspace, instead of FlashAttention.

        Source: platforms/cuda.py (order of backends), attention/backends/fa_utils.py: an FP8 cache needs FlashAttention
        3, which is for Hopper; Turing has no FlashAttention; Blackwell of datacenters takes FlashInfer first.
        """
        major = int(self.compute_capability)
        return major in _FLASHINFER_FIRST or (kv_cache_dtype == "fp8" and major != _HOPPER)

    @property
    def takes_machete(self) -> bool:
        """Whether vLLM chooses Machete for 4-bit weights: on Hopper only, unless Marlin is forced."""
        return int(self.compute_capability) == _HOPPER and not self.forces_marlin

    @property
    def fp8_path(self) -> Literal["native", "marlin"]:
        """The kernel for FP8 weights in blocks of 128x128."""
        return "native" if self.native_fp8 else "marlin"


# Usable sizes: RTX 4090 and H100 from the boots that the planner is fitted on; others from what PyTorch prints on such
# cards ("has a total capacity of"), the lowest that was seen.
TABLE = (
    Gpu("RTX 3090", 24576, 23.56, 8.6, False, ("2204",), ("GeForce RTX 3090",)),
    Gpu("RTX 4090", 24564, 23.52, 8.9, False, ("2684",), ("GeForce RTX 4090",)),
    Gpu("RTX 5090", 32607, 31.36, 12.0, False, ("2b85",), ("GeForce RTX 5090",)),
    Gpu("RTX 6000 Ada", 49140, 47.38, 8.9, True, ("26b1",), ("RTX 6000 Ada Generation", "RTX6000 Ada")),
    Gpu("RTX PRO 6000", 97887, 94.97, 12.0, True, ("2bb1", "2bb4", "2bb5"), ("RTX PRO 6000 Blackwell",)),
    Gpu("RTX A6000", 49140, 47.41, 8.6, True, ("2230",), ("A6000",)),
    Gpu("L4", 23034, 21.95, 8.9, True, ("27b8",)),
    Gpu("L40S", 46068, 44.39, 8.9, True, ("26b9",)),
    Gpu("A10", 23028, 21.98, 8.6, True, ("2236",)),
    Gpu(
        "A100 40GB", 40960, 39.38, 8.0, True, ("20b0", "20b1", "20f1"), ("A100-SXM4-40GB", "A100-PCIE-40GB", "A100 40")
    ),
    Gpu(
        "A100 80GB", 81920, 79.14, 8.0, True, ("20b2", "20b5"), ("A100-SXM4-80GB", "A100 80GB PCIe", "A100 80", "A100")
    ),
    Gpu("H100", 81559, 79.18, 9.0, True, ("2330", "2331"), ("H100 80GB HBM3", "H100 PCIe", "H100 80GB", "H100 SXM")),
    Gpu("H200", 143771, 139.80, 9.0, True, ("2335",), ("H200 141GB",)),
    Gpu("B200", 183359, 178.35, 10.0, True, ("2901",)),
)


@dataclass(frozen=True)
class Card:
    """Identity of a GPU on its host.

    Attributes:
        index: Its index in the driver's order; None if no driver listed it.
        uuid: Its UUID; None if no driver listed it.
    """

    index: int | None = None
    uuid: str | None = None


@dataclass(frozen=True)
class Host:
    """Equal GPUs of one host.

    Attributes:
        gpu: Their kind.
        count: Their number.
        read: Their identities in the host's order, if the host was read; otherwise empty.
    """

    gpu: Gpu
    count: int
    read: tuple[Card, ...] = ()

    @property
    def cards(self) -> tuple[Card, ...]:
        """One card for each GPU; without identity if the host was not read."""
        return self.read or (Card(),) * self.count

    def __str__(self) -> str:
        """Count and name, for example ``2x RTX 4090``."""
        return f"{self.count}x {self.gpu.name}"


def find(name: str) -> Gpu:
    """The row for a name such as ``RTX 4090`` or nvidia-smi's; raises RefusalError with the closest names."""
    wanted = _plain(name)
    for gpu in TABLE:
        if wanted in (_plain(gpu.name), *map(_plain, gpu.aliases)):
            return gpu
    longest_first = sorted(((_plain(alias), gpu) for gpu in TABLE for alias in (gpu.name, *gpu.aliases)), key=_longest)
    for alias, gpu in longest_first:
        # nvidia-smi appends the edition; a suffix such as "ti" or "super" is another card.
        if len(alias) >= _SAFE_PREFIX and wanted.startswith(alias) and wanted[len(alias) :].startswith(_EDITIONS):
            return gpu
    like = closest(name, [gpu.name for gpu in TABLE])
    raise RefusalError(
        Refusal(
            "unknown_gpu",
            f"gpu: {name!r} is not in the GPU table.",
            f"Set it to {' or '.join(like)}." if like else f"Known GPUs: {', '.join(gpu.name for gpu in TABLE)}.",
        )
    )


_SAFE_PREFIX = 4
_EDITIONS = ("workstation", "maxq", "server", "80gb", "generation", "sxm", "pcie", "nvl", "hbm")


def find_pci(device: str) -> Gpu | None:
    """The row for a PCI device identifier such as ``2684``, or None."""
    return next((gpu for gpu in TABLE if device.lower() in gpu.pci_ids), None)


def parse(text: str) -> Host:
    """Read ``2x RTX 4090`` (a count of 1 may be left out); raises RefusalError."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?(\S.*?)\s*", text)
    count = int(match[1] or 1) if match else 0
    if match is None or count < 1:
        raise RefusalError(
            Refusal("impossible_gpu", f"--gpu: {text!r} is not a count and a name.", 'Write it as "2x RTX 4090".')
        )
    return Host(find(match[2]), count)


def custom(
    total_gib: float, count: int, compute_capability: float, *, peer_to_peer: bool = False, forces_marlin: bool = False
) -> Host:
    """GPUs by figures instead of a name; ``total_gib`` is the memory available to a CUDA process."""
    name = f"GPU with {total_gib:g} GiB, SM {compute_capability:g}"
    reported = round((total_gib + DRIVER_RESERVE_GIB) * 1024)
    gpu = Gpu(name, reported, total_gib, compute_capability, peer_to_peer, forces_marlin=forces_marlin)
    return Host(gpu, count)


def from_facts(facts: Iterable[Mapping[str, Any]]) -> Host:
    """GPUs from facts, for example ``[{name: RTX 4090, count: 2}]``.

    Instead of a name in the table, a fact may have ``total_gib`` (or ``memory_mib`` as nvidia-smi reports it) and
    ``compute_capability``. Raises RefusalError if kinds are mixed or a fact is incomplete.
    """
    hosts = [_from_fact(fact) for fact in facts]
    kinds = {host.gpu for host in hosts}
    if len(kinds) != 1:
        names = ", ".join(map(str, hosts)) or "none"
        raise RefusalError(
            Refusal(
                "mixed_gpus",
                f"vram_plan_gpus: {names}; allowed: GPUs of one kind.",
                "Name GPUs of one kind; restrict the engine to them.",
            )
        )
    return Host(hosts[0].gpu, sum(host.count for host in hosts))


def from_host(found: Iterable[Mapping[str, Any]]) -> Host:
    """GPUs of a host from the result of ``module_utils/gpu_facts``.

    The usable memory is the total memory minus the memory that the driver reserves; if the driver does not report it,
    the table's figure. On a host without a driver, a GPU is identified by its PCI identifier; devices that are not in
    the table are ignored.
    """
    known = [(fact, Card(gpu["index"], gpu["uuid"])) for gpu in found if (fact := _driver_fact(gpu) or _bus_fact(gpu))]
    if not known:
        raise RefusalError(_NO_GPU)
    return replace(from_facts(fact for fact, _ in known), read=tuple(card for _, card in known))


def _driver_fact(gpu: Mapping[str, Any]) -> dict[str, Any] | None:
    memory, capability = gpu["memory"], gpu["compute_capability"]
    if gpu["name"] is None or memory["total_mib"] is None:
        return None
    fact = {"name": gpu["name"], "memory_mib": memory["total_mib"], "reserved_mib": memory["reserved_mib"]}
    return fact | ({"compute_capability": capability} if capability else {})


def _bus_fact(gpu: Mapping[str, Any]) -> dict[str, Any] | None:
    row = find_pci(gpu["pci_device"] or "")
    return {"name": row.name} if row else None


_NO_GPU = Refusal(
    "no_gpu",
    "No NVIDIA GPU found on the host: no driver answers and no PCI device is in the GPU table.",
    "Set vram_plan_gpus to the future GPUs, for example [{name: RTX 4090, count: 2}].",
)


def _from_fact(fact: Mapping[str, Any]) -> Host:
    unknown = set(fact) - {"name", "count", "total_gib", "memory_mib", "reserved_mib", "compute_capability"}
    count = fact.get("count", 1)
    if unknown or not isinstance(count, int) or count < 1 or not {"name", "total_gib"} & set(fact):
        raise RefusalError(
            Refusal(
                "impossible_gpu",
                f"vram_plan_gpus: {dict(fact)!r} is not a GPU: name or total_gib, count (at least 1), "
                "compute_capability.",
                "Write it as {name: RTX 4090, count: 2} or {total_gib: 23.5, compute_capability: 8.9, count: 2}.",
            )
        )
    if "total_gib" in fact:
        host = custom(float(fact["total_gib"]), count, float(fact.get("compute_capability", 0)))
        return replace(host, gpu=replace(host.gpu, name=str(fact.get("name", host.gpu.name))))
    try:
        gpu = find(str(fact["name"]))
    except RefusalError:
        if "memory_mib" not in fact or "compute_capability" not in fact:
            raise
        gpu = Gpu(str(fact["name"]), 0, 0.0, float(fact["compute_capability"]), False)
    return Host(_as_measured(gpu, fact), count)


def _as_measured(gpu: Gpu, fact: Mapping[str, Any]) -> Gpu:
    """The row with the memory that the host reports, if it is another edition of the card (H100 NVL, vGPU)."""
    reported = int(fact.get("memory_mib", gpu.reported_mib))
    if abs(reported - gpu.reported_mib) <= _SAME_EDITION * reported:
        return gpu
    reserve = fact.get("reserved_mib") or DRIVER_RESERVE_GIB * 1024
    return replace(gpu, reported_mib=reported, usable_gib=round((reported - reserve) / 1024, 2))


_SAME_EDITION = 0.02


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|nvidia|geforce|tesla", "", name.lower())


def _longest(item: tuple[str, Gpu]) -> int:
    return -len(item[0])
