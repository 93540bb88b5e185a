"""Table of figures and their goals, for `make bench-service` and `make bench-fleet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of the table. ``most`` is true if the goal is an upper limit."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    most: bool = True

    @property
    def met(self) -> bool:
        """Whether the goal is met; true without a goal."""
        return self.goal is None or (self.value <= self.goal if self.most else self.value >= self.goal)


def table(rows: Sequence[Row]) -> str:
    """Rows as an aligned text table."""
    width = max((len(row.name) for row in rows), default=6)
    lines = [f"{'figure':<{width}}  {'value':>9}  {'unit':<5}  goal"]
    for row in rows:
        goal = "" if row.goal is None else f"{'<=' if row.most else '>='} {row.goal:g}{'' if row.met else '  missed'}"
        lines.append(f"{row.name:<{width}}  {row.value:>9.2f}  {row.unit:<5}  {goal}".rstrip())
    return "\n".join(lines)
