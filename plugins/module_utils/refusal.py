"""The form of every refusal of invalid input: code, message, fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Refusal:
    """One reason why an input is not accepted.

    Attributes:
        code: Stable identifier in snake_case, e.g. ``unknown_model``; a runbook carries the same name.
        message: The variable, its value, and the allowed values.
        fix: What to change, as an instruction.
    """

    code: str
    message: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        """The refusal as plain data for JSON and module results."""
        return asdict(self)

    def __str__(self) -> str:
        """One line: code, message and fix."""
        return f"[{self.code}] {self.message} Fix: {self.fix}"


class RefusalError(ValueError):
    """One or more refusals, from a function that cannot return them."""

    def __init__(self, *refusals: Refusal) -> None:
        """Store the refusals; the message of the exception is their text."""
        super().__init__("\n".join(map(str, refusals)))
        self.refusals = refusals


def join(refusals: Iterable[Refusal]) -> str:
    """All refusals as one text, one per line, for a module's ``msg``."""
    return "\n".join(map(str, refusals))
