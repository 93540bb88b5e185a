"""The user's folders of catalogue entries, for plugins that run where Ansible runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError


def catalogue_dirs(lookup: LookupBase, variables: Mapping[str, Any] | None) -> list[Path]:
    """Variable ``vllm_catalogue_dirs`` with its templates resolved; empty where it is not set.

    Raises RefusalError where it is not a list of absolute paths.
    """
    value = lookup._templar.template((variables or {}).get("vllm_catalogue_dirs", []))
    if not isinstance(value, list) or not all(isinstance(path, str) and Path(path).is_absolute() for path in value):
        raise RefusalError(
            Refusal(
                "wrong_type",
                f"vllm_catalogue_dirs is {value!r}, but must be a list of absolute paths.",
                'Set it to a list such as ["{{ inventory_dir }}/catalogue"].',
            )
        )
    return [Path(path) for path in value]
