"""Filters that create the report of a release.

A task that uses any filter of the collection loads all files of filters, each task in a separate process. So modules
that take long to load, such as those of the report, are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any


def report_view(
    read: Sequence[Mapping[str, Any]], release: str, host: str, key_file: str, folder: str, *, again: str = ""
) -> dict[str, Any]:
    """Everything that the report shows, from the result of module read_files; see `report.view`."""
    from ansible_collections.inference.vllm.plugins.module_utils.report import view as report

    return report.view(report.files_of(read), str(release), str(host), str(key_file), str(folder), again=str(again))


def report_paths(folders: Sequence[str]) -> list[str]:
    """The files that a report is made of, in each of the folders."""
    from ansible_collections.inference.vllm.plugins.module_utils.report import view as report

    return report.paths_of(map(str, folders))


def report_html(seen: Mapping[str, Any], template: str, style: str) -> str:
    """The report or the comparison as a page; see `report.html`."""
    from ansible_collections.inference.vllm.plugins.module_utils.report import view as report

    return report.html(seen, template, style)


def report_text(seen: Mapping[str, Any]) -> str:
    """The report as plain text; see `report.text`."""
    from ansible_collections.inference.vllm.plugins.module_utils.report import view as report

    return report.text(seen)


def compare_view(
    read: Sequence[Mapping[str, Any]], names: Sequence[str], host: str, tolerance: float
) -> dict[str, Any]:
    """Comparison of two releases; a file belongs to the release that its folder is named after."""
    from ansible_collections.inference.vllm.plugins.module_utils.report import compare as report_compare
    from ansible_collections.inference.vllm.plugins.module_utils.report import view as report

    before, after = (
        report.files_of([file for file in read if PurePosixPath(str(file["path"])).parent.name == name])
        for name in names
    )
    return report_compare.view(before, after, (str(names[0]), str(names[1])), str(host), float(tolerance))


def compare_text(seen: Mapping[str, Any]) -> str:
    """The comparison as plain text; see `report_compare.text`."""
    from ansible_collections.inference.vllm.plugins.module_utils.report import compare as report_compare

    return report_compare.text(seen)


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {
            "report_paths": report_paths,
            "report_view": report_view,
            "report_html": report_html,
            "report_text": report_text,
            "report_compare": compare_view,
            "report_compare_text": compare_text,
        }
