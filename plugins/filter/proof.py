"""Filters that choose the checks of a run of the verify playbook; `registry` decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.inference.vllm.plugins.module_utils.checks import registry


def proof_chain(also: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """See `registry.chain_of`; an error of it is one of the filter."""
    try:
        return registry.chain_of(list(also), list(without))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def proof_results(
    chosen: Sequence[str], skipped: Sequence[str] = (), chain: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """See `registry.results_of`; an error of it is one of the filter. Without a chain, that of all checks."""
    everything = [check.name for check in registry.CHECKS]
    try:
        return registry.results_of(list(chosen), list(skipped), everything if chain is None else list(chain))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def proof_roles(results: Mapping[str, Any]) -> list[str]:
    """The roles of the checks that `proof_results` names."""
    return registry.roles_of(results)


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {"proof_chain": proof_chain, "proof_results": proof_results, "proof_roles": proof_roles}
