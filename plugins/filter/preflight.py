"""Filters of role preflight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.host import table as host_table
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import GIB, from_shapes, total_bytes


def preflight_row(
    checked: Mapping[str, Any], name: str, system: str, accelerator: str, model: Mapping[str, Any]
) -> dict[str, Any]:
    """One host of the table.

    Args:
        checked: What module host_check returned.
        name: Name of the host.
        system: Distribution and major version.
        accelerator: ``nvidia`` or ``cpu``.
        model: Entry of the catalogue, as lookup ``inference.vllm.model`` gives it.
    """
    entry = Entry.from_dict(model)
    weights = total_bytes(from_shapes(from_entry(entry)))
    row = {
        "name": name,
        "system": system,
        "accelerator": accelerator,
        "model": entry.name,
        "weights_gib": weights / GIB,
    }
    return row | {"free_gib": checked["free_gib"], "found": dict(checked["found"])}


def preflight_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What a deployment will do to each host, a line each; ``rows`` are of :func:`preflight_row`.

    One text: as a list, a play would fold its long lines.
    """
    return "\n".join(host_table.table(list(rows)))


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"preflight_row": preflight_row, "preflight_table": preflight_table}
