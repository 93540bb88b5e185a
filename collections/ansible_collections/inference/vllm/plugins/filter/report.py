"""Filters that make the report of a release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import report, report_compare


def report_view(
    slurped: Sequence[Mapping[str, Any]], release: str, host: str, key_file: str, folder: str, *, again: str = ""
) -> dict[str, Any]:
    """All that the report shows, from the results of `ansible.builtin.slurp`; see `report.view`."""
    return report.view(report.files_of(slurped), str(release), str(host), str(key_file), str(folder), again=str(again))


def compare_view(
    slurped: Sequence[Mapping[str, Any]], names: Sequence[str], host: str, tolerance: float
) -> dict[str, Any]:
    """Two releases side by side; a file belongs to the release that its folder is named after."""
    before, after = (
        report.files_of([item for item in slurped if PurePosixPath(str(item.get("source"))).parent.name == name])
        for name in names
    )
    return report_compare.view(before, after, (str(names[0]), str(names[1])), str(host), float(tolerance))


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {
            "report_view": report_view,
            "report_html": report.html,
            "report_text": report.text,
            "report_compare": compare_view,
            "report_compare_text": report_compare.text,
        }
