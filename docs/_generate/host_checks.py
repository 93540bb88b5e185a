"""docs/reference/host_checks.md: the values of the host that are checked, and their default limits."""

from __future__ import annotations

from docs._generate.markdown import code, generated, table

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import HOST_CHECKS


def page() -> str:
    """The whole page."""
    rows = [
        (
            code(row.code),
            row.what,
            f"{row.warn:g} {row.unit}",
            f"{row.fail:g} {row.unit}",
            f"[{row.failure}](../runbooks/{row.failure}.md)",
        )
        for row in HOST_CHECKS
    ]
    parts = [
        generated("the registry of checks"),
        "# Host checks",
        "Role `smoke_test` checks these values of the host for a deployed release. A value below `warn` is a warning, "
        "a value below `fail` fails the release. `smoke_test_host_limits` changes the limits.",
        table(("check", "value", "warn", "fail", "runbook"), rows),
    ]
    return "\n\n".join(parts) + "\n"
