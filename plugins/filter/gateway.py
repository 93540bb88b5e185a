"""Filters of role gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.inference.vllm.plugins.filter.service import as_plain
from ansible_collections.inference.vllm.plugins.module_utils.gateway.design import design
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError


def gateway_design(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the gateway runs with, or why it cannot.

    Returns:
        What :func:`design` returns, and ``refusals``: every reason against the settings as a text, none with a key.
        Where there is one, nothing else is there.
    """
    try:
        return {**design(as_plain(settings)), "refusals": []}
    except RefusalError as error:
        return {"refusals": [str(refusal) for refusal in error.refusals]}


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"gateway_design": gateway_design}
