"""The measured boots in catalogue/calibration.json, each with the verdict of the planner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case, Plan
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import judge

ROWS = Path(__file__).parents[2] / "catalogue" / "calibration.json"


@dataclass(frozen=True)
class Boot:
    """One measured boot: settings, measurements, GPU, and the planner's verdict."""

    name: str
    date: str
    measured_on: str
    note: str
    entry: catalogue.Entry
    measured: Mapping[str, Any]
    plan: Plan
    max_model_len: int | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the longest possible request, limited by its flag and the KV cache; None if unknown."""
        return min(self.max_model_len or self.tokens, self.tokens) if self.tokens else None

    @property
    def tokens(self) -> int | None:
        """Measured size of the KV cache in tokens: as reported, or from the message of a failed start."""
        return self.measured.get("kv_cache_tokens") or self.measured.get("longest")


def boots(path: Path = ROWS) -> list[Boot]:
    """All measured boots, each judged with its own settings."""
    return [_boot(row) for row in json.loads(path.read_text(encoding="utf-8"))["boots"]]


def _boot(row: Mapping[str, Any]) -> Boot:
    entry = catalogue.load(row["model"])
    model = from_entry(entry)
    gpu = row["gpu"]
    host = gpus.custom(
        gpu["total_gib"],
        gpu["count"],
        gpu["compute_capability"],
        peer_to_peer=gpu.get("peer_to_peer", False),
        forces_marlin=gpu.get("marlin", False),
    )
    case = Case(model, host, engines.engine(row["engine"], is_moe=model.is_moe))
    return Boot(
        name=row["name"],
        date=row["date"],
        measured_on=gpu["measured_on"],
        note=row.get("note", ""),
        entry=entry,
        max_model_len=row["settings"].get("max_model_len"),
        measured=row["measured"],
        plan=judge(case, Requirements(**row["settings"], caches_kept=row["measured"].get("caches_kept", False))),
    )
