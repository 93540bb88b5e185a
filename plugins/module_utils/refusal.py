"""The one shape in which every part of the project refuses bad input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Refusal:
    """One reason why an input is not accepted.

    Attributes:
        code: Stable identifier in snake_case, e.g. ``unknown_model``; a runbook carries the same name.
        message: What is wrong: the variable, its value, and what is allowed.
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
    """Raised where a function cannot return a list of refusals; carries at least one."""

    def __init__(self, *refusals: Refusal) -> None:
        """Keep the refusals; their text is the exception's."""
        super().__init__("\n".join(map(str, refusals)))
        self.refusals = refusals


def join(refusals: Iterable[Refusal]) -> str:
    """All refusals as one message of several lines, for a module's ``msg``."""
    return "\n".join(map(str, refusals))
