"""Figures beside their goals, as `make bench-service` and `make bench-fleet` show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table; ``most`` tells whether the goal is an upper or a lower limit."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    most: bool = True

    @property
    def met(self) -> bool:
        """Whether the goal is reached; true where there is none."""
        return self.goal is None or (self.value <= self.goal if self.most else self.value >= self.goal)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    width = max((len(row.name) for row in rows), default=4)
    lines = [f"{'what':<{width}}  {'value':>9}  {'unit':<5}  goal"]
    for row in rows:
        goal = "" if row.goal is None else f"{'<=' if row.most else '>='} {row.goal:g}{'' if row.met else '  missed'}"
        lines.append(f"{row.name:<{width}}  {row.value:>9.2f}  {row.unit:<5}  {goal}".rstrip())
    return "\n".join(lines)
