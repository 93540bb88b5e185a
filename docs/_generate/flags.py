"""docs/reference/flags.md: every flag of ``vllm serve`` that the project knows, and who may set it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from docs._generate import variables
from docs._generate.markdown import code, generated, table

from ansible_collections.inference.vllm.plugins.module_utils.service.flags import LAYERS, TABLE, Flag

#: Where a person changes what a layer sets.
_SET_IN = {
    "catalogue": "the model's file in `catalogue/`",
    "service": "[role vllm_service](variables.md#vllm_service)",
    "plan": "the plan ([role vram_plan](variables.md#vram_plan))",
    "user": "[`vllm_service_extra_flags`](variables.md#vllm_service_extra_flags)",
}
_PREFIXES = ("vram_plan_", "vllm_service_", "vllm_")


def page() -> str:
    """The whole page."""
    known = {name for entries in variables.roles().values() for name in variables.options(entries)}
    free = [flag for flag in TABLE.values() if "user" in flag.owners]
    owned = [flag for flag in TABLE.values() if flag.owners and "user" not in flag.owners]
    refused = [flag for flag in TABLE.values() if not flag.owners]
    parts = [
        generated("plugins/module_utils/service/flags.py"),
        "# Flags of vLLM",
        f"The project knows {len(TABLE)} flags of `vllm serve`. Each has owners, which are merged in this order: "
        f"{', '.join(_SET_IN[layer] for layer in LAYERS)}. A flag that is not listed is refused.",
        "## Flags for `vllm_service_extra_flags`",
        "Other owners may set a value too; `vllm_service_extra_flags` is merged last.",
        table(("flag", "value", "also set by", "vLLM"), [_row(flag, known) for flag in free]),
        "## Flags that belong to the plan, the catalogue or the service",
        table(("flag", "value", "set by", "vLLM"), [_row(flag, known) for flag in owned]),
        "## Flags that are always refused",
        table(("flag", "reason"), [(code(flag.name), flag.why) for flag in refused]),
    ]
    return "\n\n".join(parts) + "\n"


def _row(flag: Flag, known: Collection[str]) -> tuple[str, ...]:
    return code(flag.name), _value(flag), _owners(flag, known), _versions(flag)


def _owners(flag: Flag, known: Collection[str]) -> str:
    own = [prefix + flag.name.replace("-", "_") for prefix in _PREFIXES]
    named = [f"[`{name}`](variables.md#{name})" for name in own if name in known]
    covered = ("user", "plan", "service") if named else ("user",)
    others = [_SET_IN[owner] for owner in flag.owners if owner not in covered]
    return ", ".join([*named, *others]) + (f": {flag.why}" if flag.why else "")


def _value(flag: Flag) -> str:
    limits = [
        *([f"above {flag.above:g}"] if flag.above is not None else []),
        *([f"from {flag.low:g}"] if flag.low is not None else []),
        *([f"to {flag.high:.10g}"] if flag.high is not None else []),
        *([f"keys {_codes(flag.keys)}"] if flag.keys else []),
        *([_codes(flag.choices)] if flag.choices else []),
    ]
    return f"{flag.kind}: {', '.join(limits)}" if limits else flag.kind


def _codes(values: Iterable[str]) -> str:
    return ", ".join(code(value) for value in values)


def _versions(flag: Flag) -> str:
    since = [f"from {flag.since}"] if flag.since else []
    return ", ".join([*since, *([f"before {flag.removed}"] if flag.removed else [])])
