"""The one parser of nvidia-smi: its XML report, the compute capabilities, topology and NVLink.

Element names are those of drivers 535 to 610; where a generation renamed one, both names are read.
"""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.gpu import Missing, pci_bus_id
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.problems import of_text, problem
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

Command = tuple[str, ...]

QUERY: Command = ("nvidia-smi", "-q", "-x")
# The XML report has neither the compute capability nor the index that topology and NVLink use.
CAPABILITIES: Command = ("nvidia-smi", "--query-gpu=index,uuid,compute_cap", "--format=csv,noheader")
PATHS: Command = ("nvidia-smi", "topo", "-m")
PEER_READS: Command = ("nvidia-smi", "topo", "-p2p", "r")
NVLINKS: Command = ("nvidia-smi", "nvlink", "-s")

# What nvidia-smi writes in place of a value, in lower case and without brackets.
_NO_VALUE = (
    ("n/a", "not_supported"),
    ("not supported", "not_supported"),
    ("not found", "not_reported"),
    ("requested functionality has been deprecated", "deprecated"),
    ("insufficient permissions", "no_permission"),
    ("gpu is lost", "gpu_lost"),
    ("gpu requires reset", "gpu_needs_reset"),
    ("unknown error", "unknown_error"),
    ("err!", "unknown_error"),
)
# Reasons that concern the whole GPU, with the problem of each.
_BROKEN = {"gpu_lost": "gpu_lost", "gpu_needs_reset": "gpu_needs_reset", "unknown_error": "gpu_unreachable"}
_PEER = {
    "OK": "ok",
    "CNS": "chipset_not_supported",
    "GNS": "gpu_not_supported",
    "TNS": "topology_not_supported",
    "NS": "not_supported",
    "DR": "disabled_by_registry",
    "U": "unknown",
}


def parse_query(text: str) -> tuple[list[dict[str, Any]], list[Refusal]]:
    """GPUs of ``nvidia-smi -q -x``, as values by path, and the problems that it reports.

    Raises:
        RefusalError: The text has no report; with the reason if the text has one.
    """
    preface, tag, _ = text.partition("<nvidia_smi_log")
    if not tag:
        raise RefusalError(of_text(text) or problem("unreadable_nvidia_smi", _first_line(text)))
    try:
        log = ET.fromstring(text[len(preface) :])  # noqa: S314 - the driver's own tool; entities went with the preface
    except (ET.ParseError, ValueError) as error:
        raise RefusalError(problem("unreadable_nvidia_smi", str(error))) from error
    problems = [found for line in preface.splitlines() if (found := of_text(line))]
    gpus = [_gpu(log, element, number) for number, element in enumerate(log.findall("gpu"))]
    for gpu in gpus:
        total = gpu["memory.total_mib"]
        if isinstance(total, Missing) and total.reason in _BROKEN:
            problems.append(problem(_BROKEN[total.reason], str(gpu["pci_bus_id"])))
    return gpus, problems


def parse_capabilities(text: str) -> list[tuple[int, str, float | Missing]]:
    """Index, UUID and compute capability of each line of CAPABILITIES; lines of another form are left out."""
    found = []
    for row in csv.reader(text.replace("\0", "").splitlines(), skipinitialspace=True):
        if len(row) == len(("index", "uuid", "compute_cap")) and re.fullmatch(r"[0-9]{1,4}", row[0]):
            found.append((int(row[0]), row[1].strip(), _leaf(row[2], _decimal)))
    return found


def parse_matrix(text: str) -> dict[tuple[int, int], str]:
    """Cells of a ``nvidia-smi topo`` matrix by the pair of GPU numbers, without those of other devices."""
    columns: list[int] = []
    cells: dict[tuple[int, int], str] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        words = line.split()
        numbers = [int(word[3:]) for word in words if re.fullmatch(r"GPU[0-9]{1,4}", word)]
        if len(numbers) > 1 or (numbers and not columns):
            columns = numbers
        elif len(numbers) == 1 and words[0] == f"GPU{numbers[0]}":
            cells |= {(numbers[0], column): cell for column, cell in zip(columns, words[1:], strict=False)}
    return cells


def peers(paths: dict[tuple[int, int], str], reads: dict[tuple[int, int], str], index: int) -> list[dict[str, Any]]:
    """The other GPUs as one GPU sees them: path between the two, and whether it may read the other's memory."""
    others = sorted({other for one, other in (*paths, *reads) if one == index and other != index})
    return [
        {
            "index": other,
            # NV18 is a path over 18 NVLinks; nvlink.links has their number.
            "path": re.sub(r"^NV[0-9]+$", "NV", paths.get((index, other), "")) or None,
            "p2p": _PEER.get(reads.get((index, other), ""), "unknown"),
        }
        for other in others
    ]


def parse_nvlinks(text: str) -> dict[int, dict[str, Any]]:
    """By GPU number of ``nvidia-smi nvlink -s``: whether the GPU has NVLink, and how many links are up."""
    found: dict[int, dict[str, Any]] = {}
    number = -1
    for line in text.splitlines():
        if head := re.match(r"GPU ([0-9]{1,4}):", line):
            number = int(head[1])
            found[number] = {"nvlink.present": False, "nvlink.links": 0}
        elif number >= 0 and "not supported for devices in mig mode" in line.lower():
            found[number] = {leaf: Missing("mig_enabled") for leaf in found[number]}
        elif number >= 0 and (link := re.match(r"\s*Link [0-9]+:\s*(\S+)", line)):
            up = bool(re.match(r"[0-9]", link[1]))
            found[number] = {"nvlink.present": True, "nvlink.links": (found[number]["nvlink.links"] or 0) + up}
    return found


def _gpu(log: ET.Element, gpu: ET.Element, number: int) -> dict[str, Any]:
    def leaf(path: str, convert: Callable[[str], Any] = str, at: ET.Element = gpu) -> Any:
        return _leaf(at.findtext(path), convert)

    pcie = "pci/pci_gpu_link_info/"
    bus = leaf("pci/pci_bus_id", pci_bus_id)
    return {
        "index": number,
        "name": leaf("product_name"),
        "uuid": leaf("uuid"),
        "pci_bus_id": _leaf(gpu.get("id"), pci_bus_id) if isinstance(bus, Missing) else bus,
        "pci_device": leaf("pci/pci_device_id", _device),
        "memory.total_mib": leaf("fb_memory_usage/total", _mib),
        "memory.reserved_mib": leaf("fb_memory_usage/reserved", _mib),
        "memory.used_mib": leaf("fb_memory_usage/used", _mib),
        "memory.free_mib": leaf("fb_memory_usage/free", _mib),
        "driver_version": _first(leaf("kmd_version", _version, log), leaf("driver_version", _version, log)),
        "cuda_version": _first(leaf("cuda_umd_version", _version, log), leaf("cuda_version", _version, log)),
        "pcie.generation": leaf(pcie + "pcie_gen/current_link_gen", int),
        "pcie.generation_max": leaf(pcie + "pcie_gen/max_link_gen", int),
        "pcie.width": leaf(pcie + "link_widths/current_link_width", _lanes),
        "pcie.width_max": leaf(pcie + "link_widths/max_link_width", _lanes),
        "ecc.mode": leaf("ecc_mode/current_ecc", _switch),
        "ecc.uncorrected_volatile": _uncorrected(gpu.find("ecc_errors/volatile")),
        "ecc.uncorrected_aggregate": _uncorrected(gpu.find("ecc_errors/aggregate")),
        "mig.mode": leaf("mig_mode/current_mig", _switch),
        "mig.instances": len(gpu.findall("mig_devices/mig_device")),
        "persistence_mode": leaf("persistence_mode", _switch),
        "fabric_state": leaf("fabric/state", lambda state: state.lower().replace(" ", "_")),
        "processes": _processes(gpu),
    }


def _processes(gpu: ET.Element) -> Any:
    section = gpu.find("processes")
    if section is None:
        return Missing("not_reported")
    if not len(section) and (section.text or "").strip():
        return _leaf(section.text, _unreadable)
    found = []
    for process in section.findall("process_info"):
        pid, name = _leaf(process.findtext("pid"), int), _leaf(process.findtext("process_name"), str)
        memory = _leaf(process.findtext("used_memory"), _mib)
        found.append({"pid": _or_none(pid), "name": _or_none(name), "mib": _or_none(memory)})
    return found


def _uncorrected(counters: ET.Element | None) -> Any:
    """All uncorrected errors: 535 has one SRAM counter, 550 and newer two, Volta and older count double-bit errors."""
    if counters is None:
        return Missing("not_reported")
    parts = [
        _leaf(counter.text, int)
        for counter in counters
        if re.fullmatch(r"(sram|dram)_uncorrectable(_parity|_secded)?", counter.tag)
    ]
    if (double := counters.findtext("double_bit/total")) is not None:
        parts.append(_leaf(double, int))
    counted = [part for part in parts if not isinstance(part, Missing)]
    # Half of the counters may be not supported; why the others have no value says more.
    telling = [part for part in parts if isinstance(part, Missing) and part.reason != "not_supported"]
    return sum(counted) if counted else next(iter(telling + parts), Missing("not_reported"))


def _leaf(text: str | None, convert: Callable[[str], Any]) -> Any:
    """The value of a text, or why there is none."""
    plain = (text or "").strip().removeprefix("[").removesuffix("]").strip()
    if not plain:
        return Missing("not_reported")
    for words, reason in _NO_VALUE:
        if plain.lower().startswith(words):
            return Missing(reason)
    try:
        return convert(plain)
    except ValueError:
        return Missing("unreadable")


def _first(*values: Any) -> Any:
    return next((value for value in values if not isinstance(value, Missing)), values[0])


def _or_none(value: Any) -> Any:
    return None if isinstance(value, Missing) else value


def _matched(pattern: str, text: str) -> str:
    match = re.fullmatch(pattern, text)
    if not match:
        raise ValueError(text)
    return match[1]


def _mib(text: str) -> int:
    return int(_matched(r"([0-9]{1,12}) MiB", text))


def _lanes(text: str) -> int:
    return int(_matched(r"([0-9]{1,4})x?", text))


def _decimal(text: str) -> float:
    return float(_matched(r"([0-9]{1,3}\.[0-9]{1,3})", text))


def _version(text: str) -> str:
    return _matched(r"([0-9]+(?:\.[0-9]+)+)", text)


def _device(text: str) -> str:
    """The device of a PCI identifier that ends in the vendor's: 268410DE is device 2684 of NVIDIA."""
    return _matched(r"(?:0x)?([0-9a-f]{4})10de", text.lower())


def _switch(text: str) -> bool:
    if text.lower() not in ("enabled", "disabled"):
        raise ValueError(text)
    return text.lower() == "enabled"


def _unreadable(text: str) -> None:
    """Converts nothing: only the words that stand for no value have a meaning here."""
    raise ValueError(text)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no output")[:200]
