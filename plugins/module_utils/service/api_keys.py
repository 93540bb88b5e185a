"""The engine's keys on a host: the one in use, and during a rotation the one before it.

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
#: A dash at the beginning would be a flag of vLLM.
ALLOWED = re.compile(r"(?!-)[!-~]{16,}")
_LENGTH = 48


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
    if given and not ALLOWED.fullmatch(given):
        message = "The given key is not allowed; allowed: at least 16 ASCII letters without blanks or a leading dash."
        raise RefusalError(Refusal("bad_key", message, "Make one with: openssl rand -hex 32"))
    return given
