"""Filters of role nvidia_container_toolkit: its decisions, made by module_utils/host/container_toolkit.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.host import container_toolkit
from ansible_collections.inference.vllm.plugins.module_utils.refusal import join


def refused(proof: Mapping[str, Any], host: Sequence[str], image: str) -> str:
    """Why containers cannot use the host's GPUs, as text; empty where they can."""
    return join(container_toolkit.refusals(proof, host, image))


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {
            "toolkit_daemon_config": container_toolkit.daemon_config,
            "toolkit_refused": refused,
            "toolkit_wrong_packages": container_toolkit.wrong_packages,
        }
