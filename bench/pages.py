"""Replaces a generated section of a page in docs/, between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""

from __future__ import annotations


def between_markers(page: str, name: str, text: str) -> str:
    """Page with the text between its markers. Raises ValueError if a marker is missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"
