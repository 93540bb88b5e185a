"""API keys: what may be one, and the engine's own on a host, during a rotation with the one before it.

``api_key`` is what checks and gateway use. ``former_api_key`` is empty, but while a key is being changed: then the
engine takes both.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

CURRENT, FORMER = "api_key", "former_api_key"
#: The characters that a key is made of, as a class of a regular expression: ASCII without blanks, since clients send it
#: as one word of a header.
CHARACTERS = "[!-~]"
#: Fewer characters in the engine's key could be guessed.
ENGINE_SHORTEST = 16
_LENGTH = 48
_WORD = re.compile(f"{CHARACTERS}+")


@dataclass(frozen=True, repr=False)
class Keys:
    """Both keys; without a repr, so that no traceback shows them.

    Attributes:
        current: The key in use, empty where there is none yet.
        former: The key before it, while both are valid; else empty.
    """

    current: str = ""
    former: str = ""

    @property
    def overlap(self) -> bool:
        """Whether two keys are valid."""
        return bool(self.former) and self.former != self.current


def reason_invalid(key: str, shortest: int = 1, longest: int | None = None) -> str:
    """Why a text is not accepted as an API key, without the key; empty where it is.

    Args:
        key: The text.
        shortest: Fewest characters.
        longest: Most characters, None for no limit.
    """
    if not _WORD.fullmatch(key):
        return "it is not one word of ASCII characters" if key else "it is empty"
    if len(key) < shortest:
        return f"it has less than {shortest} characters"
    if longest is not None and len(key) > longest:
        return f"it has more than {longest} characters"
    return ""


def reason_invalid_for_engine(key: str) -> str:
    """As :func:`reason_invalid`, for the key that vLLM is started with."""
    if key.startswith("-"):
        return "it begins with a dash, which vLLM would read as a flag"
    return reason_invalid(key, ENGINE_SHORTEST)


def made() -> str:
    """A new random key."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(_LENGTH))


def present(keys: Keys, given: str) -> Keys:
    """A given key, else the one that is there, else a new one; a rotation that is under way goes on."""
    return Keys(_checked(given) or keys.current or made(), keys.former)


def rotated(keys: Keys, given: str) -> Keys:
    """Another key beside the one in use. A rotation that is under way is left as it is.

    Raises:
        RefusalError: There is no key to change, or a third one is given.
    """
    given = _checked(given)
    if not keys.current:
        raise RefusalError(Refusal("no_key", "There is no key to change.", "Deploy first."))
    if keys.overlap:
        if given and given != keys.current:
            message = "A former rotation is not finished: two keys are valid, and another one is given."
            raise RefusalError(Refusal("rotation_open", message, "Finish it first: -e vllm_service_key_overlap=false."))
        return keys
    if given == keys.current:
        message = "vllm_service_api_key_file holds the key that is in use."
        raise RefusalError(Refusal("same_key", message, "Write a new key into that file."))
    return Keys(given or made(), keys.current)


def finished(keys: Keys) -> Keys:
    """Only the key in use."""
    return Keys(keys.current, "")


def _checked(given: str) -> str:
    if given and (reason := reason_invalid_for_engine(given)):
        message = f"The given key is not accepted: {reason}."
        raise RefusalError(Refusal("bad_key", message, "Make one with: openssl rand -hex 32"))
    return given
