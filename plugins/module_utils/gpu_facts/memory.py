"""Used memory of GPUs by NVML, cheap enough to be read many times a second."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.problems import of_nvml, problem
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

GIB = 2**30


class GpuMemory:
    """NVML between its start and its end: a context manager, whose methods raise RefusalError for what NVML fails at.

    "Used" is what processes hold, without what the driver keeps for itself; "usable" is the card without that part.
    Drivers before 510 do not tell the two apart: there both figures have the driver's part in them.
    """

    def __init__(self, pynvml: ModuleType | None, devices: Sequence[str] = ()) -> None:
        """Watch these GPUs, given by UUID or number; all of the host where none is given. Nothing is started yet."""
        self.nvml = pynvml
        self.devices = tuple(devices)
        self.gpus: tuple[dict[str, Any], ...] = ()
        self._handles: dict[str, Any] = {}

    def __enter__(self) -> GpuMemory:
        """Start NVML and find the GPUs."""
        if self.nvml is None:
            raise RefusalError(problem("driver_not_installed", "there is no nvidia-ml-py"))
        try:
            self.nvml.nvmlInit()
        except self.nvml.NVMLError as error:
            raise RefusalError(of_nvml(error.value)) from error
        try:
            self._find()
        except BaseException:
            self.nvml.nvmlShutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End NVML."""
        if self.nvml is not None:
            self.nvml.nvmlShutdown()

    def used_gib(self) -> dict[str, float]:
        """GiB that processes hold now, by the name of the GPU, such as ``GPU 0``."""
        return {name: self._memory(name, handle).used / GIB for name, handle in self._handles.items()}

    def _find(self) -> None:
        found = []
        for index in range(self._ask("", "nvmlDeviceGetCount")):
            name = f"GPU {index}"
            handle = self._ask(name, "nvmlDeviceGetHandleByIndex", index)
            uuid = self._ask(name, "nvmlDeviceGetUUID", handle)
            if self.devices and not {str(index), uuid} & set(self.devices):
                continue
            memory = self._memory(name, handle)
            usable = memory.total - getattr(memory, "reserved", 0)
            found.append({"index": index, "name": self._ask(name, "nvmlDeviceGetName", handle), "uuid": uuid})
            found[-1]["usable_gib"] = round(usable / GIB, 2)
            found[-1]["compute_capability"] = self._capability(name, handle)
            self._handles[name] = handle
        if not found:
            raise RefusalError(problem("no_devices_found", ", ".join(self.devices)))
        self.gpus = tuple(found)

    def _capability(self, name: str, handle: Any) -> float:
        major, minor = self._ask(name, "nvmlDeviceGetCudaComputeCapability", handle)
        return float(f"{major}.{minor}")

    def _memory(self, name: str, handle: Any) -> Any:
        if self.nvml is None:
            raise RuntimeError("GpuMemory is read inside its with block")
        try:
            return self.nvml.nvmlDeviceGetMemoryInfo(handle, self.nvml.nvmlMemory_v2)
        except (self.nvml.NVMLError_FunctionNotFound, self.nvml.NVMLError_NotSupported):
            return self._ask(name, "nvmlDeviceGetMemoryInfo", handle)
        except self.nvml.NVMLError as error:
            raise RefusalError(of_nvml(error.value, name)) from error

    def _ask(self, name: str, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self.nvml, function)(*arguments)
        except self.nvml.NVMLError as error:  # type: ignore[union-attr]
            raise RefusalError(of_nvml(error.value, name)) from error
