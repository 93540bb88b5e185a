"""The table of what a deployment will do to each host. Runs on the controller: it needs nothing that reads GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.columns import columns

HEADER = ("HOST", "SYSTEM", "MEMORY", "DISK", "GPUS", "DRIVER", "DOCKER", "TOOLKIT", "MODEL", "SERVICE")

_MIB_OF_GIB = 1024


def table(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is on each host and what a deployment will do to it, as lines of text.

    Args:
        hosts: One mapping a host: ``name``, ``system``, ``accelerator`` (``nvidia`` or ``cpu``), ``model``,
            ``weights_gib``, ``free_gib`` and ``found``, what :func:`host_survey.survey` returns.
    """
    return columns([HEADER, *map(_row, hosts)])


def _row(host: Mapping[str, Any]) -> tuple[str, ...]:
    found = host["found"]
    nvidia = host["accelerator"] == "nvidia"
    return (
        host["name"],
        host["system"],
        f"{found['memory_gib']:.0f} GiB",
        f"{host['free_gib']:.0f} GiB free",
        _gpus(found["gpus"]) if nvidia else "not used",
        _kept(found["driver"]) if nvidia else "-",
        _kept(found["docker"]),
        _kept(found["toolkit"]) if nvidia else "-",
        f"{host['model']}, {_size(host['weights_gib'])}",
        f"replace {found['release']}" if found["release"] else "first release",
    )


def _gpus(names: Sequence[str]) -> str:
    return ", ".join(f"{count}x {name}" for name, count in Counter(names).items()) or "none yet"


def _kept(version: str | None) -> str:
    return f"{version}, checked" if version else "install"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * _MIB_OF_GIB:.0f} MiB"
