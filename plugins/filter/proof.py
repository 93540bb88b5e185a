"""The filter that says which checks a run of the verify playbook makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.inference.vllm.plugins.module_utils.checks import registry as proof_steps


def proof_results(chosen: Sequence[str], skipped: Sequence[str], chain: Sequence[str]) -> dict[str, list[str]]:
    """See `proof_steps.results_of`; an error of it is one of the filter."""
    try:
        return proof_steps.results_of(list(chosen), list(skipped), list(chain))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"proof_results": proof_results}
