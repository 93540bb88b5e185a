"""Decisions of role nvidia_container_toolkit: pure functions over facts of the host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.host.docker_daemon import parse
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

_CGROUP_DRIVER = "native.cgroupdriver="
_GPU = re.compile(r"^GPU \d+:.*\(UUID: (GPU-[^)]+)\)", re.MULTILINE)


def wrong_packages(names: Iterable[str], installed: Mapping[str, str], version: str) -> list[str]:
    """Packages that are not installed in this version.

    Args:
        names: The toolkit's packages.
        installed: Version by name as the package manager writes it; an epoch 0 and rpm's distribution tag do not count.
        version: The wanted one, such as ``1.19.1-1``.
    """
    known = {name: installed.get(name, "").removeprefix("0:") for name in names}
    return [name for name, found in known.items() if found != version and not found.startswith(f"{version}.")]


def daemon_config(text: str, cgroup_driver: str, default_runtime: bool) -> dict[str, Any]:
    """Keys of daemon.json that make Docker use the toolkit.

    Args:
        text: The daemon.json that is there; of one that cannot be read nothing is kept, because the module that merges
            these keys refuses it.
        cgroup_driver: ``cgroupfs`` or ``systemd``; empty says nothing about it.
        default_runtime: Whether containers that name no runtime get this one.
    """
    config: dict[str, Any] = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}
    if default_runtime:
        config["default-runtime"] = "nvidia"
    if cgroup_driver:
        # A list is replaced as a whole when it is merged, so what others put there is repeated.
        try:
            options = parse(text, "").get("exec-opts", [])
        except RefusalError:
            options = []
        others = [option for option in options if not str(option).startswith(_CGROUP_DRIVER)]
        config["exec-opts"] = [*others, f"{_CGROUP_DRIVER}{cgroup_driver}"]
    return config


def listed_gpus(output: str) -> list[str]:
    """UUIDs of the GPUs that ``nvidia-smi -L`` printed; MIG devices are parts of one and do not count."""
    return _GPU.findall(output)


def refusals(proof: Mapping[str, Any], host: Sequence[str], image: str) -> list[Refusal]:
    """Why containers cannot use the host's GPUs; empty if they can.

    Args:
        proof: ``rc``, ``stdout`` and ``stderr`` of ``nvidia-smi -L`` in a container.
        host: UUIDs of the host's GPUs.
        image: The container's image.
    """
    if not host:
        return [
            Refusal(
                "no_gpu_on_host",
                "The driver of this host lists no GPU, so no container can use one.",
                "Make `nvidia-smi -L` list them, or set nvidia_container_toolkit_prove to false.",
            )
        ]
    seen = listed_gpus(str(proof.get("stdout", "")))
    if proof.get("rc") == 0 and set(seen) == set(host):
        return []
    output = " ".join(str(proof.get("stderr") or proof.get("stdout") or "").split())[-400:]
    return [
        Refusal(
            "gpu_missing_in_container",
            f"The host lists {', '.join(sorted(host))}; a container of {image} started with --gpus all lists "
            f"{', '.join(sorted(seen)) or 'none'}: {output or 'no message'}",
            "Follow docs/runbooks/gpu_missing_in_container.md; if the image is not available, set "
            "nvidia_container_toolkit_proof_image.",
        )
    ]
