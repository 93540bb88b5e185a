"""Markdown for the generated pages: tables, code and Ansible's markup."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def read(path: str) -> Any:
    """The data of a YAML file of the repository."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def generated(source: str) -> str:
    """The comment at the top of a generated page."""
    return f"<!-- Written by bin/make-docs from {source}. Do not edit: run `make docs`. -->"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; a pipe or a line break in a cell is escaped."""
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def code(value: object) -> str:
    """The value between backticks, on one line."""
    return f"`{' '.join(str(value).split())}`"


def prose(text: str, links: Collection[str] = ()) -> str:
    """Text with Ansible's markup (``C(x)``, ``V(x)``, ``O(x)``, ``B(x)``, ``L(x, url)``) as Markdown.

    Args:
        text: What an argument spec says.
        links: Names that have an anchor of their own on the page.
    """

    def mark(found: re.Match[str]) -> str:
        kind, inner = found[1], found[2].replace("\\)", ")")
        if kind == "L":
            label, _, url = inner.rpartition(",")
            return f"[{label.strip()}]({url.strip()})"
        if kind in "BI":
            return f"{'**' if kind == 'B' else '*'}{inner}{'**' if kind == 'B' else '*'}"
        return f"[`{inner}`](#{inner})" if inner in links else f"`{inner}`"

    plain = text.replace("<", "&lt;")
    marked = re.sub(r"\b(RV|[CVOEBIMLU])\(((?:[^()\\]|\\.|\([^()]*\))*)\)", mark, plain)
    # Inside code a browser shows the entity itself.
    return re.sub(r"`[^`]*`", lambda found: found[0].replace("&lt;", "<"), marked)
