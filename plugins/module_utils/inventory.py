"""Checks of the variables of an inventory, without access to hosts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.closest import closest, misspelt
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import (
    AUTO,
    REQUIREMENTS,
    VARIABLE_OF_FLAG,
    variable_name,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: Ranges of numbers, which argument_specs cannot express: (least, most) by variable; None for a limit of the host.
RANGES: Mapping[str, tuple[float, float | None]] = {
    "vllm_port": (1, 65535),
    "vllm_spare_port": (0, 65535),
    "vllm_uid": (1, 2**31 - 1),
    "vllm_gid": (0, 2**31 - 1),
    "local_hub_port": (1, 65535),
    "docker_engine_start_timeout": (1, None),
    "nvidia_driver_branch": (0, 999),
    "nvidia_driver_reboot_timeout": (1, None),
    "preflight_min_free_gib": (0, None),
    "smoke_test_timeout": (1, None),
    "smoke_test_max_images": (-1, None),
    "stability_requests": (1, None),
    "stability_concurrency": (1, None),
    "stability_images": (-1, None),
    "stability_max_pixels": (1024, None),
    "vllm_check_images": (-1, None),
    "vllm_service_start_timeout": (1, None),
    "vllm_service_keep_releases": (1, None),
    "vllm_service_stop_timeout": (1, None),
    "vllm_service_pids_limit": (64, None),
    "vllm_service_log_max_files": (1, None),
    "vllm_service_health_interval": (1, None),
    "vllm_service_health_timeout": (1, None),
    "model_weights_max_workers": (1, 64),
    "model_weights_timeout": (1, None),
    "model_weights_retries": (0, None),
    **{variable_name(row.name): (row.least, row.most) for row in REQUIREMENTS if row.least is not None},
}

#: Sizes for Docker: a whole number and its unit.
SIZES = (
    "vllm_service_memory_limit",
    "vllm_service_shm_size",
    "vllm_service_tmp_size",
    "vllm_service_log_max_size",
)
_SIZE = re.compile(r"[1-9]\d*[bkmg]")

#: New name by former name of a variable. A former name is refused for one release, with the new name in the fix.
RENAMED: Mapping[str, str] = {
    "engine_image_unsafe_allow_old_version": "vllm_unsafe_allow_old_engine",
    "vllm_service_unsafe_allow_old_engine": "vllm_unsafe_allow_old_engine",
    "vram_plan_context": "vram_plan_max_model_len",
    "vram_plan_engine_version": "engine_image_vllm_version",
}

#: Flags of vLLM that may be mistaken for variables, and the variable that sets each.
SPELT_AS_FLAGS: Mapping[str, str] = {flag.replace("-", "_"): name for flag, name in VARIABLE_OF_FLAG.items()}

#: Texts of the command line that mean true or false.
TRUE_FALSE = ("true", "false", "yes", "no", "on", "off", "1", "0")


def _is_int(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return float(str(value)) == int(str(value))
    except ValueError:
        return False


def _is_float(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(str(value))
    except ValueError:
        return False
    return True


#: Accepted values by type of an argument spec; values are YAML or text of the command line. Stricter than Ansible's
#: validator, which accepts true as a number, a text as a list and anything as a text: it converts a copy, but tasks
#: read the original value.
_ACCEPTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_int, "a whole number"),
    "float": (_is_float, "a number"),
    "bool": (lambda v: isinstance(v, bool) or str(v).lower() in TRUE_FALSE, "true or false"),
    "dict": (lambda v: isinstance(v, Mapping), "a mapping"),
    "list": (lambda v: isinstance(v, Sequence) and not isinstance(v, str), "a list"),
    "str": (lambda v: isinstance(v, (str, int, float)), "text"),
    "path": (lambda v: isinstance(v, str), "a path"),
}


def unknown_variables(
    names: Collection[str], options: Collection[str], roles: Collection[str]
) -> tuple[list[Refusal], list[str]]:
    """Variables that no role reads: misspelt ones are refused, others may belong to other software.

    Args:
        names: Variables that the inventory sets for a host.
        options: Every public variable of every role.
        roles: Names of the roles.

    Returns:
        A refusal for each misspelt name, and a warning for each other name with the prefix of a role.
    """
    prefixes = {role: f"{role}_" for role in roles}
    owners = {option: _role_of(option, prefixes) for option in options}
    refusals, warnings = [], []
    for name in sorted(set(names) - set(options)):
        meant = [option for option, role in owners.items() if misspelt(name, option, role)]
        role = _role_of(name, prefixes)
        if name in RENAMED:
            refusals += renamed_variables([name])
        elif flag := SPELT_AS_FLAGS.get(name) or SPELT_AS_FLAGS.get(name.removeprefix(prefixes.get(role, ""))):
            message = f"{name} is set, but nothing reads it."
            refusals.append(Refusal("unknown_variable", message, f"Did you mean {flag}?"))
        elif meant:
            fix = f"Did you mean {' or '.join(closest(name, meant, cutoff=0))}?"
            refusals.append(Refusal("unknown_variable", f"{name} is set, but nothing reads it.", fix))
        elif role:
            alike = closest(name, [option for option in options if option.startswith(prefixes[role])], cutoff=0.85)
            hint = f" Its closest variables: {', '.join(alike)}." if alike else ""
            warnings.append(f"{name} has the prefix of role {role}, but no role reads it.{hint}")
    return refusals, warnings


def _role_of(name: str, prefixes: Mapping[str, str]) -> str:
    """The role whose prefix the name has, the longest one if there are several; empty for none."""
    return max((role for role, prefix in prefixes.items() if name.startswith(prefix)), key=len, default="")


def renamed_variables(names: Collection[str]) -> list[Refusal]:
    """Refusals of the variables that are set under a former name."""
    return [
        Refusal("renamed_variable", f"{name} was renamed to {new}.", f"Set {new} instead.")
        for name, new in RENAMED.items()
        if name in names
    ]


def value_refusal(name: str, value: Any, option: Mapping[str, Any]) -> Refusal | None:
    """Why a variable's value is not accepted; None if it is.

    Args:
        name: The variable.
        value: Its value, with templates resolved.
        option: The variable's entry in the role's argument spec.
    """
    kind = option.get("type", "str")
    accepts, wanted = _ACCEPTS.get(kind, (lambda _: True, kind))
    if value is None or not accepts(value):
        shown = f"a {type(value).__name__}" if _secret(option) else repr(value)
        return Refusal("wrong_type", f"{name} is {shown}, but must be {wanted}.", f"Set {name} to {wanted}.")
    choices = option.get("choices")
    if choices and value not in choices:
        allowed = ", ".join(map(str, choices))
        return Refusal("not_a_choice", f"{name} is {value!r}; allowed: {allowed}.", f"Set {name} to one of these.")
    if kind == "path" and value and not PurePosixPath(str(value)).is_absolute():
        fix = f"Make {name} an absolute path."
        return Refusal("relative_path", f"{name} is {value!r}; allowed: an absolute path.", fix)
    return limit_refusal(name, value) or _element_refusal(name, value, option)


def limit_refusal(name: str, value: Any) -> Refusal | None:
    """Why a number or a size is out of the variable's range; None if it is not, or if there is no range."""
    if name in SIZES and not _SIZE.fullmatch(str(value)):
        message = f"{name} is {value!r}; allowed: a whole number and b, k, m or g, such as 4g."
        return Refusal("bad_size", message, f"Set {name} to such a size.")
    if name not in RANGES or value == AUTO:
        return None
    # The type of a variable that allows "auto" is text.
    if not _is_float(value):
        return Refusal("wrong_type", f"{name} is {value!r}, but must be auto or a number.", f"Set {name} to auto.")
    least, most = RANGES[name]
    if float(value) >= least and (most is None or float(value) <= most):
        return None
    allowed = f"{least} to {most}" if most is not None else f"{least} or more"
    return Refusal("out_of_range", f"{name} is {value}; allowed: {allowed}.", f"Set {name} to {allowed}.")


def _element_refusal(name: str, value: Any, option: Mapping[str, Any]) -> Refusal | None:
    """Why the elements of a list or the keys of a mapping do not match the spec, by Ansible's validator."""
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

    if not {"elements", "options"} & set(option):
        return None
    spec = {key: option[key] for key in ("type", "elements", "options") if key in option}
    errors = ArgumentSpecValidator({name: spec}).validate({name: value}).error_messages
    if not errors:
        return None
    found = "; ".join(error.rstrip(".") for error in errors)
    return Refusal("bad_element", f"{name}: {found}.", f"Correct {name}.")


def _secret(option: Mapping[str, Any]) -> bool:
    return bool(option.get("no_log")) or any(map(_secret, (option.get("options") or {}).values()))


def address_refusal(address: str, *, allow_public: bool) -> Refusal | None:
    """Why `vllm_bind_address` is not accepted, or None. Without a gateway only loopback is safe."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return Refusal(
            "bad_address", f"vllm_bind_address is {address!r}; allowed: an IP address.", "Use 127.0.0.1, for example."
        )
    if parsed.is_loopback or allow_public:
        return None
    return Refusal(
        "public_address",
        f"vllm_bind_address is {address}, which other machines can reach; outside of /v1, vLLM needs no key.",
        "Use 127.0.0.1 with a gateway in front, or set preflight_allow_public_address: true.",
    )


def missing_files(files: Mapping[str, str], exists: Callable[[str], bool]) -> list[Refusal]:
    """Refusals of files that variables name but that do not exist on the controller."""
    return [
        Refusal("missing_file", f"{name} names {path!r}, which is not a file.", f"Create it, or correct {name}.")
        for name, path in files.items()
        if path and not exists(path)
    ]
