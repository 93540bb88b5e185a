"""Simulated NVML library with NVML's C interface, which nvidia-ml-py calls instead of libnvidia-ml.so.1."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

MIB = 2**20
OK, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE, UNKNOWN = 0, 3, 6, 7, 999
# NVML_VALUE_NOT_AVAILABLE in bytes.
NO_MEMORY_FIGURE = 2**64 - 1


@dataclass
class FakeGpu:
    """One GPU. ``broken`` maps a function to the error code that it returns; ``*`` means opening the GPU."""

    name: str = "NVIDIA H100 80GB HBM3"
    bus: str = "00000000:53:00.0"
    device: int = 0x233010DE
    capability: tuple[int, int] = (9, 0)
    memory: tuple[int, int, int] = (81559, 480, 1010)
    links: tuple[int, ...] = (1,) * 18
    ecc: tuple[int, int] | None = (2, 7)
    mig: int | None = 0
    fabric: int | None = 3
    compute: tuple[tuple[int, int], ...] = ()
    graphics: tuple[tuple[int, int], ...] = ()
    broken: dict[str, int] = field(default_factory=dict)


class FakeNvml:
    """The library. Its attributes are C functions, like those of ctypes.CDLL."""

    def __init__(self, gpus: list[FakeGpu], broken: dict[str, int]) -> None:
        self.gpus, self.broken = gpus, broken
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        answer = getattr(type(self), "_" + name, None)
        if answer is None or self.broken.get(name) == -1:
            raise AttributeError(name)
        function = self._c_function(name, answer)
        setattr(self, name, function)
        return function

    def _c_function(self, name: str, answer: Callable[..., int]) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.broken:
                return self.broken[name]
            of_gpu = name.startswith("nvmlDeviceGet") and arguments and not name.endswith(("Index_v2", "Count_v2"))
            code = self.gpus[arguments[0] - 1].broken.get(name) if of_gpu else None
            return answer(self, *arguments) if code is None else code

        hints = inspect.get_annotations(answer, eval_str=True)
        kinds = [_KINDS[hints[parameter]] for parameter in inspect.signature(answer).parameters if parameter != "self"]
        return ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(call)

    def _nvmlInitWithFlags(self, flags: int) -> int:
        return OK

    def _nvmlShutdown(self) -> int:
        return OK

    def _nvmlSystemGetDriverVersion(self, text: Address, size: int) -> int:
        return _write(text, b"580.105.08")

    def _nvmlSystemGetCudaDriverVersion_v2(self, out: Address) -> int:
        return _set(ctypes.c_int, out, 13000)

    def _nvmlSystemGetProcessName(self, pid: int, text: Address, size: int) -> int:
        return _write(text, b"VLLM::EngineCore") if pid == 4711 else NOT_FOUND

    def _nvmlDeviceGetCount_v2(self, out: Address) -> int:
        return _set(ctypes.c_uint, out, len(self.gpus))

    def _nvmlDeviceGetHandleByIndex_v2(self, index: int, out: Address) -> int:
        return self.gpus[index].broken.get("*") or _set(ctypes.c_void_p, out, index + 1)

    def _nvmlDeviceGetName(self, gpu: Address, text: Address, size: int) -> int:
        return _write(text, self.gpus[gpu - 1].name.encode())

    def _nvmlDeviceGetUUID(self, gpu: Address, text: Address, size: int) -> int:
        return _write(text, f"GPU-{gpu - 1:08}".encode())

    def _nvmlDeviceGetPciInfo_v3(self, gpu: Address, out: Address) -> int:
        info = pynvml.nvmlPciInfo_t.from_address(out)
        info.busId, info.pciDeviceId = self.gpus[gpu - 1].bus.encode(), self.gpus[gpu - 1].device
        return OK

    def _nvmlDeviceGetMemoryInfo_v2(self, gpu: Address, out: Address) -> int:
        info = pynvml.c_nvmlMemory_v2_t.from_address(out)
        total, reserved, used = (part * MIB for part in self.gpus[gpu - 1].memory)
        info.total, info.reserved, info.used, info.free = total, reserved, used, total - reserved - used
        return OK

    def _nvmlDeviceGetMemoryInfo(self, gpu: Address, out: Address) -> int:
        info = pynvml.c_nvmlMemory_t.from_address(out)
        total, reserved, used = (part * MIB for part in self.gpus[gpu - 1].memory)
        info.total, info.used, info.free = total, reserved + used, total - reserved - used
        return OK

    def _nvmlDeviceGetCudaComputeCapability(self, gpu: Address, major: Address, minor: Address) -> int:
        one, two = self.gpus[gpu - 1].capability
        return _set(ctypes.c_int, major, one) or _set(ctypes.c_int, minor, two)

    def _nvmlDeviceGetCurrPcieLinkGeneration(self, gpu: Address, out: Address) -> int:
        return _set(ctypes.c_uint, out, 1)

    def _nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: Address, out: Address) -> int:
        return _set(ctypes.c_uint, out, 5)

    def _nvmlDeviceGetCurrPcieLinkWidth(self, gpu: Address, out: Address) -> int:
        return _set(ctypes.c_uint, out, 8)

    def _nvmlDeviceGetMaxPcieLinkWidth(self, gpu: Address, out: Address) -> int:
        return _set(ctypes.c_uint, out, 16)

    def _nvmlDeviceGetNvLinkState(self, gpu: Address, link: int, out: Address) -> int:
        links = self.gpus[gpu - 1].links
        return _set(ctypes.c_uint, out, links[link]) if link < len(links) else NOT_SUPPORTED

    def _nvmlDeviceGetP2PStatus(self, one: Address, other: Address, what: int, out: Address) -> int:
        linked = bool(self.gpus[one - 1].links)
        return _set(ctypes.c_int, out, 0 if linked else {0: 2, 2: 5}[what])

    def _nvmlDeviceGetTopologyCommonAncestor(self, one: Address, other: Address, out: Address) -> int:
        return _set(ctypes.c_int, out, 30)

    def _nvmlDeviceGetEccMode(self, gpu: Address, now: Address, pending: Address) -> int:
        on = self.gpus[gpu - 1].ecc is not None
        return (_set(ctypes.c_uint, now, 1) or _set(ctypes.c_uint, pending, 1)) if on else NOT_SUPPORTED

    def _nvmlDeviceGetTotalEccErrors(self, gpu: Address, kind: int, counter: int, out: Address) -> int:
        counts = self.gpus[gpu - 1].ecc
        return _set(ctypes.c_ulonglong, out, counts[counter]) if counts and kind == 1 else NOT_SUPPORTED

    def _nvmlDeviceGetMigMode(self, gpu: Address, now: Address, pending: Address) -> int:
        mode = self.gpus[gpu - 1].mig
        return NOT_SUPPORTED if mode is None else _set(ctypes.c_uint, now, mode) or _set(ctypes.c_uint, pending, mode)

    def _nvmlDeviceGetMaxMigDeviceCount(self, gpu: Address, out: Address) -> int:
        return NOT_SUPPORTED if self.gpus[gpu - 1].mig is None else _set(ctypes.c_uint, out, 7)

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Address, slot: int, out: Address) -> int:
        return _set(ctypes.c_void_p, out, 99) if self.gpus[gpu - 1].mig and slot in (0, 2) else NOT_FOUND

    def _nvmlDeviceGetPersistenceMode(self, gpu: Address, out: Address) -> int:
        return _set(ctypes.c_uint, out, 1)

    def _nvmlDeviceGetGpuFabricInfoV(self, gpu: Address, out: Address) -> int:
        info = pynvml.c_nvmlGpuFabricInfo_v2_t.from_address(out)
        state = self.gpus[gpu - 1].fabric
        if state is None:
            return NOT_SUPPORTED
        info.state = state
        return OK

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, gpu: Address, count: Address, out: Address) -> int:
        return self._processes(self.gpus[gpu - 1].compute, count, out)

    def _nvmlDeviceGetGraphicsRunningProcesses_v3(self, gpu: Address, count: Address, out: Address) -> int:
        return self._processes(self.gpus[gpu - 1].graphics, count, out)

    def _processes(self, processes: tuple[tuple[int, int], ...], count: int, out: int) -> int:
        room = ctypes.c_uint.from_address(count)
        fits = room.value >= len(processes)
        room.value = len(processes)
        if not fits:
            return INSUFFICIENT_SIZE
        entries = (pynvml.c_nvmlProcessInfo_v3_t * len(processes)).from_address(out) if processes else ()
        for entry, (pid, used) in zip(entries, processes, strict=True):
            entry.pid, entry.usedGpuMemory = pid, used
        return OK


def install(monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu, **broken: int) -> FakeNvml:
    """Install a simulated library with these GPUs in nvidia-ml-py.

    ``broken`` maps functions to the error codes that they return; -1 means that the library lacks the function.
    """
    library = FakeNvml(list(gpus), broken)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return library


class Address(int):
    """A pointer argument of the functions above."""


_KINDS: dict[type, Any] = {int: ctypes.c_uint, Address: ctypes.c_void_p}


def _set(kind: Any, address: int, value: int) -> int:
    kind.from_address(address).value = value
    return OK


def _write(address: int, text: bytes) -> int:
    ctypes.memmove(address, text + b"\0", len(text) + 1)
    return OK
