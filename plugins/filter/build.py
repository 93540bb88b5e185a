"""Filters that the build of the engine's image uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.image.packages import pip_target
from ansible_collections.inference.vllm.plugins.module_utils.image.recipe import debian_sources
from ansible_collections.inference.vllm.plugins.module_utils.image.wheels import wheel_sources


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"debian_sources": debian_sources, "pip_target": pip_target, "wheel_sources": wheel_sources}
