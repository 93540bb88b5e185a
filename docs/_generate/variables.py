"""docs/reference/variables.md: every public variable, from the argument specs of the roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from docs._generate.markdown import ROOT, code, generated, prose, read, table

#: Roles in the order of the chain; a role that is not listed comes after them.
ORDER = (
    "vllm",
    "preflight",
    "vram_plan",
    "nvidia_driver",
    "docker_engine",
    "nvidia_container_toolkit",
    "host_python",
    "model_weights",
    "engine_image",
    "vllm_service",
    "gateway",
    "watchdog",
    "smoke_test",
    "vram_check",
    "stability",
    "benchmark",
    "deploy_report",
)
_LONGEST = 90

Options = Mapping[str, Mapping[str, Any]]


def roles() -> dict[str, Mapping[str, Any]]:
    """The entry points of each public role by name; internal roles begin with an underscore."""
    found = {path.parents[1].name: path for path in ROOT.glob("roles/[!_]*/meta/argument_specs.yml")}
    names = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    return {name: read(f"roles/{name}/meta/argument_specs.yml")["argument_specs"] for name in names}


def options(entries: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The variables of a role: those of its entry point ``main`` first, then those that only another one takes."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in sorted(entries, key=lambda name: name != "main"):
        for name, option in (entries[entry].get("options") or {}).items():
            found.setdefault(name, option)
    return found


def page() -> str:
    """The whole page."""
    all_roles = roles()
    names = {name for entries in all_roles.values() for name in options(entries)}
    contents = [(f"[{role}](#{role})", len(options(e)), _summary(e)) for role, e in all_roles.items()]
    parts = [
        generated("roles/*/meta/argument_specs.yml"),
        "# Variables",
        f"All {len(names)} public variables, by role, in the order of the chain. Set them in the inventory "
        "(`group_vars/vllm.yml`) or with `-e`. A default that contains `{{ ... }}` is computed from other variables. "
        "[How to](../howto.md) lists which ones to set for a given goal.",
        table(("role", "variables", "what it does"), contents),
        *(_section(role, options(entries), names) for role, entries in all_roles.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(entries: Mapping[str, Any]) -> str:
    return prose((entries.get("main") or {}).get("short_description", ""))


def _section(role: str, variables: Options, names: set[str]) -> str:
    rows = [
        (f'<a id="{name}"></a>`{name}`', _type(option), _default(role, option), _description(option, names))
        for name, option in variables.items()
    ]
    readme = f"[README](../../roles/{role}/README.md)" if (ROOT / "roles" / role / "README.md").exists() else ""
    defaults = f"[defaults](../../roles/{role}/defaults/main.yml)"
    head = f"## {role}\n\n{', '.join(filter(None, (readme, defaults)))}"
    return f"{head}\n\n{table(('variable', 'type', 'default', 'description'), rows)}"


def _type(option: Mapping[str, Any]) -> str:
    kind = f"{option['type']} of {option['elements']}" if "elements" in option else str(option.get("type", "str"))
    if choices := option.get("choices"):
        return f"{kind}: {', '.join(code(choice) for choice in choices)}"
    return kind


def _default(role: str, option: Mapping[str, Any]) -> str:
    if option.get("required"):
        return "required"
    if "default" not in option:
        return ""
    text = _plain(option["default"])
    if len(text) > _LONGEST:
        return f"see [defaults](../../roles/{role}/defaults/main.yml)"
    return code(text)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split()) or '""'
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _description(option: Mapping[str, Any], names: set[str]) -> str:
    text = option.get("description", "")
    lines = [prose(line, names) for line in ([text] if isinstance(text, str) else text)]
    keys = [f"{code(key)}: {_description(inner, names)}" for key, inner in (option.get("options") or {}).items()]
    return " ".join(lines) + (f"<br>Keys: {' '.join(keys)}" if keys else "")
