"""The user's folders of catalogue entries, for plugins that run where Ansible runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase


def catalogue_dirs(lookup: LookupBase, variables: Mapping[str, Any] | None) -> list[Path]:
    """Variable ``vllm_catalogue_dirs`` with its templates resolved; empty where it is not set."""
    value = lookup._templar.template((variables or {}).get("vllm_catalogue_dirs", []))
    return [Path(folder) for folder in ([value] if isinstance(value, str) else value)]
