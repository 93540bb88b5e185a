"""GPUs through NVML, by the bindings of nvidia-ml-py (module ``pynvml``)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import Missing, pci_bus_id
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.problems import of_nvml, problem
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

MIB = 2**20

# Numbers of nvml.h. pynvml has them by name, but not all right: its NVML_P2P_CAPS_INDEX_READ is a tuple.
_P2P_READ, _P2P_NVLINK = 0, 2
_UNCORRECTED, _VOLATILE, _AGGREGATE = 1, 0, 1
_NOT_SUPPORTED, _NO_PERMISSION, _FUNCTION_NOT_FOUND, _GPU_IS_LOST, _RESET_REQUIRED = 3, 4, 13, 15, 16
_REASONS = {
    _NOT_SUPPORTED: "not_supported",
    _NO_PERMISSION: "no_permission",
    _FUNCTION_NOT_FOUND: "not_in_this_driver",
    _GPU_IS_LOST: "gpu_lost",
    _RESET_REQUIRED: "gpu_needs_reset",
}
_PATHS = {0: "INTERNAL", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_P2P = {
    0: "ok",
    1: "chipset_not_supported",
    2: "gpu_not_supported",
    3: "topology_not_supported",
    4: "disabled_by_registry",
    5: "not_supported",
}
_FABRIC = {0: Missing("not_supported"), 1: "not_started", 2: "in_progress", 3: "completed"}
_MOST_LINKS = 36


def read(pynvml: ModuleType) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """All GPUs as values by path, and the problems of GPUs.

    Raises:
        RefusalError: NVML does not start; the refusal says why.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RefusalError(of_nvml(error.value)) from error
    try:
        return _Session(pynvml).gpus()
    finally:
        pynvml.nvmlShutdown()


class _Session:
    """NVML between its start and its end."""

    def __init__(self, pynvml: ModuleType) -> None:
        self.nvml = pynvml
        self.problems: list[Refusal] = []

    def gpus(self) -> tuple[list[dict[str, Any]], list[Refusal]]:
        count = self.ask("nvmlDeviceGetCount")
        if isinstance(count, Missing):
            return [], [problem("nvml_error", f"counting the GPUs: {count.reason}")]
        handles = {index: handle for index in range(count) if (handle := self.handle(index)) is not None}
        gpus = [self.gpu(index, handles) if index in handles else {"index": index} for index in range(count)]
        if not count:
            self.problems.append(problem("no_devices_found"))
        return gpus, self.problems

    def ask(self, function: str, *arguments: Any) -> Any:
        """The result of an NVML function, or the reason for its failure."""
        call = getattr(self.nvml, function, None)
        if call is None:
            return Missing("not_in_this_library")
        try:
            return call(*arguments)
        except self.nvml.NVMLError as error:
            return Missing(_REASONS.get(error.value, f"nvml_error_{error.value}"))

    def handle(self, index: int) -> Any:
        try:
            return self.nvml.nvmlDeviceGetHandleByIndex(index)
        except self.nvml.NVMLError as error:
            found = of_nvml(error.value, f"GPU {index}")
            # An unknown error occurs here if a GPU is present but does not start.
            self.problems.append(problem("gpu_unreachable", f"GPU {index}") if found.code == "nvml_error" else found)
            return None

    def gpu(self, index: int, handles: dict[int, Any]) -> dict[str, Any]:
        handle = handles[index]

        def get(function: str, *arguments: Any, then: Callable[[Any], Any] = lambda value: value) -> Any:
            return _then(self.ask(function, handle, *arguments), then)

        pci = get("nvmlDeviceGetPciInfo")
        gpu = {
            "index": index,
            "name": get("nvmlDeviceGetName", then=_text),
            "uuid": get("nvmlDeviceGetUUID", then=_text),
            "pci_bus_id": _then(pci, lambda info: pci_bus_id(_text(info.busId))),
            "pci_device": _then(pci, lambda info: f"{info.pciDeviceId >> 16:04x}"),
            "compute_capability": get(
                "nvmlDeviceGetCudaComputeCapability", then=lambda pair: float(f"{pair[0]}.{pair[1]}")
            ),
            "driver_version": _then(self.ask("nvmlSystemGetDriverVersion"), _text),
            "cuda_version": _then(
                self.ask("nvmlSystemGetCudaDriverVersion_v2"), lambda value: f"{value // 1000}.{value % 1000 // 10}"
            ),
            "pcie.generation": get("nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie.generation_max": get("nvmlDeviceGetMaxPcieLinkGeneration"),
            "pcie.width": get("nvmlDeviceGetCurrPcieLinkWidth"),
            "pcie.width_max": get("nvmlDeviceGetMaxPcieLinkWidth"),
            "peers": [self.peer(handle, other, handles[other]) for other in handles if other != index],
            "ecc.mode": get("nvmlDeviceGetEccMode", then=lambda modes: bool(modes[0])),
            "ecc.uncorrected_volatile": get("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
            "ecc.uncorrected_aggregate": get("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _AGGREGATE),
            "mig.mode": get("nvmlDeviceGetMigMode", then=lambda modes: bool(modes[0])),
            "mig.instances": self.instances(handle),
            "persistence_mode": get("nvmlDeviceGetPersistenceMode", then=bool),
            "fabric_state": self.fabric(handle),
            "processes": self.processes(handle),
        }
        memory = self.memory(handle)
        total = memory["memory.total_mib"]
        if isinstance(total, Missing) and total.reason in ("gpu_lost", "gpu_needs_reset"):
            self.problems.append(problem(total.reason, f"GPU {index}"))
        return gpu | memory | self.nvlinks(handle)

    def memory(self, handle: Any) -> dict[str, Any]:
        """Memory by the call that separates reserved from used; drivers before 510 have only the sum of both."""
        split = self.ask("nvmlDeviceGetMemoryInfo", handle, self.nvml.nvmlMemory_v2)
        info = self.ask("nvmlDeviceGetMemoryInfo", handle) if isinstance(split, Missing) else split
        return {f"memory.{part}_mib": _then(info, _part(part)) for part in ("total", "used", "free")} | {
            "memory.reserved_mib": _then(split, _part("reserved"))
        }

    def nvlinks(self, handle: Any) -> dict[str, Any]:
        """NVLinks; the first link number that the GPU refuses ends the list."""
        states: list[bool] = []
        for link in range(_MOST_LINKS):
            state = self.ask("nvmlDeviceGetNvLinkState", handle, link)
            if isinstance(state, Missing):
                if not states and state.reason != "not_supported":
                    return {"nvlink.present": state, "nvlink.links": state}
                break
            states.append(bool(state))
        return {"nvlink.present": bool(states), "nvlink.links": sum(states)}

    def peer(self, one: Any, index: int, other: Any) -> dict[str, Any]:
        linked = self.ask("nvmlDeviceGetP2PStatus", one, other, _P2P_NVLINK) == 0
        path = self.ask("nvmlDeviceGetTopologyCommonAncestor", one, other)
        read_status = self.ask("nvmlDeviceGetP2PStatus", one, other, _P2P_READ)
        return {
            "index": index,
            "path": "NV" if linked else None if isinstance(path, Missing) else _PATHS.get(path),
            "p2p": "unknown" if isinstance(read_status, Missing) else _P2P.get(read_status, "unknown"),
        }

    def instances(self, handle: Any) -> Any:
        most = self.ask("nvmlDeviceGetMaxMigDeviceCount", handle)
        if isinstance(most, Missing):
            return 0 if most.reason == "not_supported" else most
        slots = (self.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in range(most))
        return sum(not isinstance(slot, Missing) for slot in slots)

    def fabric(self, handle: Any) -> Any:
        shape = getattr(self.nvml, "c_nvmlGpuFabricInfo_v2_t", None)
        if shape is None:
            return Missing("not_in_this_library")
        info = shape()
        answer = self.ask("nvmlDeviceGetGpuFabricInfoV", handle, self.nvml.byref(info))
        return answer if isinstance(answer, Missing) else _FABRIC.get(info.state, Missing("unknown_state"))

    def processes(self, handle: Any) -> Any:
        """Compute and graphics processes; one that is both is listed once."""
        lists = [self.ask(f"nvmlDeviceGet{kind}RunningProcesses", handle) for kind in ("Compute", "Graphics")]
        answers = [answer for answer in lists if not isinstance(answer, Missing)]
        if not answers:
            return lists[0]
        found = {process.pid: process.usedGpuMemory for answer in answers for process in answer}
        return [
            {
                "pid": pid,
                "name": self.process_name(pid),
                "mib": None if used is None else used // MIB,
            }
            for pid, used in sorted(found.items())
        ]

    def process_name(self, pid: int) -> str | None:
        name = self.ask("nvmlSystemGetProcessName", pid)
        return None if isinstance(name, Missing) else _text(name)


def _then(value: Any, convert: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, Missing) else convert(value)


def _part(name: str) -> Callable[[Any], int]:
    return lambda info: int(getattr(info, name)) // MIB


def _text(value: str | bytes) -> str:
    """Text of NVML: nvidia-ml-py decodes most of it, and leaves the fields of structures as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
