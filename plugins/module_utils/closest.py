"""Suggest the closest known names for the fix of a refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache


def closest(word: str, known: Iterable[str], count: int = 3, cutoff: float = 0.4) -> list[str]:
    """The known names that are most similar to a word, ignoring case, best first.

    Args:
        word: The unknown word. Names that begin with it come before similar names.
        known: The known names.
        count: Maximum number of names to return.
        cutoff: Least similarity, from 0 to 1 (``difflib.SequenceMatcher.ratio``).
    """
    by_lower = {name.lower(): name for name in known}
    begun = sorted((name for name in by_lower if word and name.startswith(word.lower())), key=len)
    alike = difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=cutoff)
    return [by_lower[name] for name in dict.fromkeys([*begun, *alike])][:count]


def misspelt(name: str, option: str, role: str) -> bool:
    """Whether a name is probably a misspelt variable of a role.

    It is if one letter differs; if the words are the same in another order or each differs by one letter; if one word
    is missing or additional between others; or if it has the prefix ``vllm_`` instead of the role's own.

    Args:
        name: The name to check.
        option: A variable of a role.
        role: The role.
    """
    rest = option.removeprefix(f"{role}_")
    one, other = _letters(name), _letters(option)
    if one_letter_off(one, other) and (len(rest) > _SHORT or sorted(one) == sorted(other)):
        return True
    words, ours, theirs = _words(rest), _words(name), _words(option)
    if name == f"vllm_{rest}" and len(words) > 1:
        return True
    if abs(len(ours) - len(theirs)) > 1 or not _same_word(ours[0], theirs[0]):
        return False
    if len(ours) != len(theirs) and sum(any(_same_word(word, our) for our in ours) for word in words) < _WORDS:
        return False
    if len(ours) <= len(theirs):
        return _all_found(ours, theirs)
    # An additional last word makes another name, e.g. gateway_tls_names_of_site.
    return _all_found(theirs, ours) and _same_word(ours[-1], theirs[-1])


#: Words of at most this many letters are too short to compare by letter, e.g. ``uid`` and ``id``.
_SHORT = 3

#: Words, apart from the role's name, that must match if another word is missing or additional.
_WORDS = 2


@lru_cache(maxsize=1024)
def _letters(name: str) -> str:
    return name.replace("_", "").lower()


@lru_cache(maxsize=1024)
def _words(name: str) -> list[str]:
    return name.lower().split("_")


def _same_word(one: str, other: str) -> bool:
    return one.rstrip("s") == other.rstrip("s") or (max(len(one), len(other)) > _SHORT and one_letter_off(one, other))


def _all_found(words: Sequence[str], among: Sequence[str]) -> bool:
    """Whether each word has a distinct match among the others."""
    left = list(among)
    for word in words:
        match = next((other for other in left if _same_word(word, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def one_letter_off(one: str, other: str) -> bool:
    """Whether two words differ by one letter: missing, added, replaced, or swapped with its neighbour."""
    if abs(len(one) - len(other)) > 1:
        return False
    start = _common(one, other)
    one, other = one[start:][::-1], other[start:][::-1]
    end = _common(one, other)
    one, other = one[end:], other[end:]
    return max(len(one), len(other)) <= 1 or (not one[2:] and one == other[::-1])


def _common(one: str, other: str) -> int:
    """Length of the common prefix of two words."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
