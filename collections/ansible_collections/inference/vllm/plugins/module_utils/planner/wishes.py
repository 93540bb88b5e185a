"""What a caller may ask of a plan, and the refusal by name of what nobody can ask."""

from __future__ import annotations

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError


def whole_number(name: str, value: str | int, least: int = 1) -> int | None:
    """A whole number of at least ``least``, or None for ``auto``; raises RefusalError that names the variable."""
    if str(value).strip() == "auto":
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise RefusalError(
            Refusal(
                "impossible_value",
                f"{name}: {value!r} is not a whole number of at least {least}.",
                f"Set {name} to auto or to a whole number from {least}.",
            )
        )
    return number
