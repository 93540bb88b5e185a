"""Filters that the host roles use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def pip_arguments(base: str, index_url: str, wheels: str) -> str:
    """Arguments of pip for an index of one's own, or for a folder of wheels without any network.

    Args:
        base: Arguments to begin with.
        index_url: Package index; empty leaves pip's own settings alone.
        wheels: Folder of wheels; when set, no index is asked and index_url is not used.

    Returns:
        One string of arguments, as ansible.builtin.pip's ``extra_args`` takes it.
    """
    if wheels:
        return f"{base} --no-index --find-links={wheels}".lstrip()
    if index_url:
        return f"{base} --index-url={index_url}".lstrip()
    return base


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"pip_arguments": pip_arguments}
