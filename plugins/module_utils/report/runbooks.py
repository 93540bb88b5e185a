"""The runbooks, ``docs/runbooks/<name>.md``: the one text that explains a failure.

A runbook begins with front matter that names its symptoms, then come its title, a message as an operator sees it, and a
paragraph whose first sentence is the summary. The report embeds runbooks, and the index of docs/runbooks is made of
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "docs" / "runbooks"

_PAGE = re.compile(
    r"---\nsymptoms: \[(?P<symptoms>[^\]\n]*)\]\n---\n\n"
    r"# (?P<name>\w+)\n\n"
    r"(?P<message>(?:> .*\n)+)\n"
    r"(?P<body>(?P<summary>(?:(?!\n\n)(?s:.))+?\.)(?=\s)(?s:.*))"
)


@dataclass(frozen=True)
class Runbook:
    """One runbook.

    Attributes:
        name: Name of the failure.
        symptoms: What an operator notices, such as ``slow`` or ``502``.
        message: A message as an operator sees it; it starts with the name.
        summary: What the failure means, one sentence.
        body: The page after the message, as Markdown.
    """

    name: str
    symptoms: tuple[str, ...]
    message: str
    summary: str
    body: str


def parse(text: str) -> Runbook:
    """Read a page.

    Raises:
        ValueError: It does not have the form of a runbook.
    """
    page = _PAGE.fullmatch(text)
    if not page:
        raise ValueError(f"not a runbook: {text[:80]!r}")
    return Runbook(
        name=page["name"],
        symptoms=tuple(filter(None, map(str.strip, page["symptoms"].split(",")))),
        message=" ".join(line.removeprefix("> ") for line in page["message"].splitlines()),
        summary=" ".join(page["summary"].split()),
        body=page["body"].strip(),
    )


def find(name: str) -> Runbook | None:
    """The runbook of a failure; None where there is none that can be read. The name need not be trusted."""
    if not re.fullmatch(r"[a-z]\w*", name, re.ASCII):
        return None
    try:
        return parse((FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def names() -> list[str]:
    """Names of all runbooks."""
    return sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
