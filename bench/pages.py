"""Pages of docs/ that a command writes a part of, between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""

from __future__ import annotations


def between_markers(page: str, name: str, text: str) -> str:
    """The page with the text between its markers; raises ValueError where it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"
