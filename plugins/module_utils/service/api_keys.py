"""API keys: which texts are accepted, and the engine's keys on a host.

Checks and gateway use ``api_key``. ``former_api_key`` is empty, except during a rotation: then the engine accepts both.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

CURRENT, FORMER = "api_key", "former_api_key"
#: Allowed characters of a key, as a class of a regular expression: ASCII without blanks, because clients send the key
#: as one word of a header.
CHARACTERS = "[!-~]"
#: Least length of the engine's key; a shorter key could be guessed.
ENGINE_SHORTEST = 16
_LENGTH = 48
_WORD = re.compile(f"{CHARACTERS}+")


@dataclass(frozen=True, repr=False)
class Keys:
    """Both keys; without a repr, so that no traceback shows them.

    Attributes:
        current: The key in use; empty if there is none yet.
        former: The previous key while both are valid; otherwise empty.
    """

    current: str = ""
    former: str = ""

    @property
    def overlap(self) -> bool:
        """Whether two keys are valid."""
        return bool(self.former) and self.former != self.current


def reason_invalid(key: str, shortest: int = 1, longest: int | None = None) -> str:
    """Why a text is not accepted as an API key, without the key; empty if it is accepted.

    Args:
        key: The text.
        shortest: Fewest characters.
        longest: Most characters, None for no limit.
    """
    if not _WORD.fullmatch(key):
        return "it is not one word of ASCII characters" if key else "it is empty"
    if len(key) < shortest:
        return f"it has fewer than {shortest} characters"
    if longest is not None and len(key) > longest:
        return f"it has more than {longest} characters"
    return ""


def reason_invalid_for_engine(key: str) -> str:
    """As :func:`reason_invalid`, for the key that vLLM is started with."""
    if key.startswith("-"):
        return "it begins with a dash, which vLLM would read as a flag"
    return reason_invalid(key, ENGINE_SHORTEST)


def generate() -> str:
    """Generate a random key."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(_LENGTH))


def present(keys: Keys, requested: str) -> Keys:
    """The requested key, else the existing one, else a random one. A rotation in progress continues."""
    return Keys(_checked(requested) or keys.current or generate(), keys.former)


def rotated(keys: Keys, requested: str) -> Keys:
    """The requested or a random key, with the one in use as the former key. A rotation in progress is not changed.

    Raises:
        RefusalError: There is no key to change, or a third one is requested.
    """
    requested = _checked(requested)
    if not keys.current:
        raise RefusalError(Refusal("no_key", "There is no key to change.", "Deploy first."))
    if keys.overlap:
        if requested and requested != keys.current:
            message = "An earlier rotation is not finished: two keys are valid, and a third one is configured."
            raise RefusalError(Refusal("rotation_open", message, "Finish it first: -e vllm_service_key_overlap=false."))
        return keys
    if requested == keys.current:
        message = "vllm_service_api_key_file holds the key that is in use."
        raise RefusalError(Refusal("same_key", message, "Write a new key into that file."))
    return Keys(requested or generate(), keys.current)


def finished(keys: Keys) -> Keys:
    """Only the key in use."""
    return Keys(keys.current, "")


def _checked(requested: str) -> str:
    if requested and (reason := reason_invalid_for_engine(requested)):
        message = f"The configured key is not accepted: {reason}."
        raise RefusalError(Refusal("bad_key", message, "Make one with: openssl rand -hex 32"))
    return requested
