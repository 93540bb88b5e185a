"""The list of generated files. To add one, write a function that returns its text and add a row here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from docs._generate import chain, flags, host_checks, models, runbooks, schemas, support, variables
from docs._generate.markdown import ROOT

#: Path in the repository -> function that makes the whole text.
PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/variables.md": variables.page,
    "docs/reference/models.md": models.page,
    "docs/reference/support.md": support.page,
    "docs/reference/flags.md": flags.page,
    "docs/reference/host_checks.md": host_checks.page,
    "docs/runbooks/README.md": runbooks.page,
    "docs/chain.svg": chain.picture,
    **{path: partial(schemas.text, kind) for path, kind in schemas.paths().items()},
}


def stale() -> list[str]:
    """Paths of the files that differ from what the program makes now."""
    return [path for path, make in PAGES.items() if not (ROOT / path).exists() or _text(path) != make()]


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Write the files that differ, or with ``--check`` only name them; returns the exit code."""
    changed = stale()
    if "--check" in arguments:
        print("\n".join(f"stale: {path}" for path in changed), file=sys.stderr)
        return 1 if changed else 0
    for path in changed:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(PAGES[path](), encoding="utf-8")
        print(f"wrote {path}")
    return 0
