"""Filters that make the report of a release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import report


def report_view(
    slurped: Sequence[Mapping[str, Any]], release: str, host: str, key_file: str, folder: str
) -> dict[str, Any]:
    """All that the report shows, from the results of `ansible.builtin.slurp`; see `report.view`."""
    return report.view(report.files_of(slurped), str(release), str(host), str(key_file), str(folder))


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"report_view": report_view, "report_html": report.html, "report_text": report.text}
