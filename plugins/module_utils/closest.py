"""Which known names somebody may have meant, for the fix of a refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str], count: int = 3, cutoff: float = 0.4) -> list[str]:
    """The known names that are most like a word, without regard to case, best first.

    Args:
        word: What was written; a name that begins with it comes before one that is merely similar.
        known: The names that exist.
        count: Most names to return.
        cutoff: Similarity from 0 to 1 below which a name is not meant (``difflib.SequenceMatcher.ratio``).
    """
    by_lower = {name.lower(): name for name in known}
    begun = sorted((name for name in by_lower if word and name.startswith(word.lower())), key=len)
    alike = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=cutoff)
    return [by_lower[name] for name in dict.fromkeys([*begun, *alike])][:count]
