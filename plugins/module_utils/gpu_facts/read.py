"""Reads a machine's GPUs: through NVML, else nvidia-smi, else the PCI bus. Used by all other parts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import host, kernel_log, nvml, smi
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import Missing, gpu_facts, nest
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.problems import of_cuda, of_text, problem
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

# A GPU that hangs makes its tools hang.
_SECONDS = 60
_NO_DRIVER = "driver_not_installed"
# In a separate process: cuInit may hang or crash, and stays in effect for the life of a process.
_CU_INIT = (sys.executable, "-c", "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))")


@dataclass(frozen=True)
class Output:
    """Result of a program.

    Attributes:
        code: Its exit status; None if it is missing or did not end in time.
        out: Its output.
        err: Its error output; if code is None, the reason: ``program_missing`` or ``program_timeout``.
    """

    code: int | None
    out: str = ""
    err: str = ""


@dataclass(frozen=True)
class Machine:
    """Where facts are read from.

    Attributes:
        run: Runs a program and gives its output.
        root: Folder that holds the machine's ``proc``, ``sys`` and ``usr``.
        pynvml: The module of nvidia-ml-py, or None.
    """

    run: Callable[[Sequence[str]], Output]
    root: Path = Path("/")
    pynvml: ModuleType | None = None


@dataclass(frozen=True)
class Found:
    """GPUs as values by path, and where they come from."""

    source: str
    gpus: list[dict[str, Any]]
    problems: list[Refusal]


def this_machine() -> Machine:
    """The machine that this runs on."""
    try:
        pynvml: ModuleType | None = importlib.import_module("pynvml")
    except ImportError:
        pynvml = None
    return Machine(run, Path("/"), pynvml)


def run(arguments: Sequence[str]) -> Output:
    """Run a program in the C locale; never raises."""
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            list(arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Output(None, err="program_timeout")
    except OSError:
        return Output(None, err="program_missing")
    return Output(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def read_gpus(machine: Machine) -> list[dict[str, Any]]:
    """Only the GPUs, and of them only the result of one call to the driver: no topology, no kernel log."""
    return _finished(_found(machine))


def read(machine: Machine, start_cuda: bool = False) -> dict[str, Any]:
    """All facts, under ``gpus`` and ``host``.

    Args:
        machine: The machine to read.
        start_cuda: Whether to test if CUDA starts. This may load the module nvidia_uvm.
    """
    found = _found(machine)
    if found.source == "nvidia_smi":
        _add_links(machine, found.gpus)
    log = _kernel_log(machine)
    buses = {gpu.get("pci_bus_id") for gpu in found.gpus}
    for gpu in found.gpus:
        gpu["xids"] = log if isinstance(log, Missing) else kernel_log.latest(log, gpu.get("pci_bus_id"))
    around = host.facts(machine.root)
    cuda, cuda_problems = _cuda(machine, found, start_cuda)
    problems = [*_host_problems(found, around), *found.problems, *cuda_problems]
    around |= {
        "source": found.source,
        "cuda_init": cuda,
        "other_xids": log if isinstance(log, Missing) else [xid for xid in log if xid["pci_bus_id"] not in buses],
        "problems": [each.as_dict() for each in _once(problems)],
    }
    return {"gpus": _finished(found), "host": nest(around)}


def _found(machine: Machine) -> Found:
    on_bus = host.pci_gpus(machine.root)
    problems: list[Refusal] = []
    for source, ask in (("nvml", _by_nvml), ("nvidia_smi", _by_smi)):
        try:
            gpus, reported = ask(machine)
        except RefusalError as error:
            problems += error.refusals
            continue
        lost = [gpu for gpu in on_bus if gpu["pci_bus_id"] not in {known.get("pci_bus_id") for known in gpus}]
        # A GPU that cannot be opened has a number but no address; the bus has its address.
        gpus = [gpu for gpu in gpus if set(gpu) != {"index"}] + lost
        reported += [problem("gpu_not_listed", gpu["pci_bus_id"]) for gpu in lost]
        return Found(source, gpus, reported)
    # A missing driver is no problem without a GPU, and a missing tool is none if the other one answers.
    if not on_bus or any(each.code != _NO_DRIVER for each in problems):
        problems = [each for each in problems if each.code != _NO_DRIVER]
    return Found("pci" if on_bus else "none", on_bus, problems)


def _finished(found: Found) -> list[dict[str, Any]]:
    unlisted = "no_driver" if found.source == "pci" else "not_listed_by_driver"
    return [gpu_facts(gpu, "not_reported" if "index" in gpu else unlisted) for gpu in found.gpus]


def _by_nvml(machine: Machine) -> tuple[list[dict[str, Any]], list[Refusal]]:
    if machine.pynvml is None:
        raise RefusalError(problem(_NO_DRIVER))
    return nvml.read(machine.pynvml)


def _by_smi(machine: Machine) -> tuple[list[dict[str, Any]], list[Refusal]]:
    report = machine.run(smi.QUERY)
    if report.code is None:
        raise RefusalError(problem("driver_timeout" if report.err == "program_timeout" else _NO_DRIVER))
    gpus, problems = smi.parse_query(report.out if "<nvidia_smi_log" in report.out else report.out + report.err)
    answer = machine.run(smi.CAPABILITIES)
    by_uuid = {uuid: (index, capability) for index, uuid, capability in smi.parse_capabilities(answer.out)}
    for gpu in gpus:
        gpu["index"], gpu["compute_capability"] = by_uuid.get(gpu["uuid"], (gpu["index"], Missing(_why(answer))))
    return gpus, problems + [found for found in (of_text(report.err),) if found]


def _add_links(machine: Machine, gpus: Iterable[dict[str, Any]]) -> None:
    """Add NVLink and peers, which nvidia-smi reports by separate commands."""
    links = machine.run(smi.NVLINKS)
    by_index = smi.parse_nvlinks(links.out)
    paths, reads = machine.run(smi.PATHS), machine.run(smi.PEER_READS)
    matrix, readable = smi.parse_matrix(paths.out), smi.parse_matrix(reads.out)
    for gpu in gpus:
        if "index" not in gpu:
            continue
        unknown = Missing(_why(links))
        gpu.update(by_index.get(gpu["index"], {"nvlink.present": unknown, "nvlink.links": unknown}))
        gpu["peers"] = smi.peers(matrix, readable, gpu["index"]) if matrix or readable else Missing(_why(paths))


def _why(output: Output) -> str:
    """The reason for a value that a program did not return."""
    if output.code is None:
        return output.err
    return "not_reported" if output.code == 0 else "program_failed"


def _kernel_log(machine: Machine) -> Any:
    outputs = []
    for command in kernel_log.COMMANDS:
        output = machine.run(command)
        # A journal that is missing, or that the user may not read, is empty.
        if output.code == 0 and output.out.strip():
            return kernel_log.parse(output.out)
        outputs.append(output)
    denied = any("not permitted" in output.err.lower() for output in outputs)
    return Missing("no_permission" if denied else "kernel_log_not_available")


def _cuda(machine: Machine, found: Found, start: bool) -> tuple[Any, list[Refusal]]:
    """Return code of cuInit, 0 if CUDA starts, and the problem for any other code."""
    if not start or found.source not in ("nvml", "nvidia_smi"):
        return Missing("not_asked" if not start else "no_driver"), []
    output = machine.run(_CU_INIT)
    if output.code is None:
        return Missing(output.err), [problem("driver_timeout", "cuInit")]
    if not output.out.strip().isdecimal():
        return Missing("library_not_found" if "libcuda.so.1" in output.err else "program_failed"), []
    code = int(output.out)
    return code, [of_cuda(code)] if code else []


def _host_problems(found: Found, around: dict[str, Any]) -> list[Refusal]:
    problems = []
    if around["versions_agree"] is False:
        where = f"module {around['kernel_module.version']}, libraries {around['userspace_version']}"
        problems.append(problem("driver_library_mismatch", where))
    if found.gpus and around["modules.nvidia"] is not True and (names := host.foreign_drivers(around)):
        problems.append(problem("foreign_driver_loaded", ", ".join(names)))
    states = {gpu.get("fabric_state") for gpu in found.gpus if not isinstance(gpu.get("fabric_state"), Missing)}
    if around["nvswitches"] and not around["fabric_manager_running"]:
        problems.append(problem("fabric_not_ready", f"{around['nvswitches']} NVSwitches and no fabric manager"))
    elif states & {"not_started", "in_progress"}:
        problems.append(problem("fabric_not_ready", "a GPU's fabric state is not completed"))
    return problems


def _once(problems: Iterable[Refusal]) -> list[Refusal]:
    """Each problem once; problems of the driver once per host, by code."""
    seen: dict[str, Refusal] = {}
    for each in problems:
        seen.setdefault(each.code if each.code.startswith("driver_") else each.message, each)
    return list(seen.values())
