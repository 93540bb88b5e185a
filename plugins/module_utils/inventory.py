"""Is what an inventory says something that this project understands? Nothing here touches a host."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: How alike two names must be for one to count as a slip of the other (difflib ratio, 0 to 1).
SIMILAR = 0.86

#: Whole numbers that argument_specs cannot bound: variable -> (least, most), most None where only the host can tell.
RANGES: Mapping[str, tuple[int, int | None]] = {
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
    "vllm_service_stop_timeout": (0, None),
    "vllm_service_pids_limit": (64, None),
    "vllm_service_health_interval": (1, None),
    "vllm_service_health_timeout": (1, None),
    "model_weights_max_workers": (1, 64),
    "model_weights_timeout": (1, None),
    "model_weights_retries": (0, None),
    "vram_plan_tensor_parallel_size": (1, 64),
    "vram_plan_images_per_prompt": (0, None),
    "vram_plan_max_pixels": (65536, None),
    "vram_plan_context": (1, None),
    "vram_plan_concurrent_requests": (1, None),
}

#: Former names of variables and what they are called now; each is refused with its new name for one release.
RENAMED: Mapping[str, str] = {
    "engine_image_unsafe_allow_old_version": "vllm_unsafe_allow_old_engine",
    "vllm_service_unsafe_allow_old_engine": "vllm_unsafe_allow_old_engine",
    "vram_plan_engine_version": "engine_image_vllm_version",
}

#: What each type of an argument spec accepts; values come as YAML or as text of the command line.
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


_ACCEPTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_int, "a whole number"),
    "float": (_is_float, "a number"),
    "bool": (lambda v: isinstance(v, bool) or str(v).lower() in TRUE_FALSE, "true or false"),
    "dict": (lambda v: isinstance(v, Mapping), "a mapping"),
    "list": (lambda v: isinstance(v, Sequence) and not isinstance(v, str), "a list"),
    "str": (lambda v: isinstance(v, (str, int, float)), "text"),
    "path": (lambda v: isinstance(v, str), "a path"),
}


def unknown_variables(names: Collection[str], options: Collection[str], roles: Collection[str]) -> list[Refusal]:
    """Variables that nothing reads: they begin like a role's, or look like a slip of a known name.

    Args:
        names: Variables that the inventory sets for a host.
        options: Every public variable of every role.
        roles: Names of the roles; a variable ``<role>_...`` must be one of `options`.
    """
    prefixes = tuple(f"{role}_" for role in roles)
    refusals = []
    for name in sorted(set(names) - set(options)):
        if name in RENAMED:
            refusals.append(
                Refusal("renamed_variable", f"{name} was renamed to {RENAMED[name]}.", f"Set {RENAMED[name]} instead.")
            )
            continue
        alike = closest(name, options, cutoff=0.75)
        if name.startswith(prefixes) or difflib.get_close_matches(name, options, n=1, cutoff=SIMILAR):
            refusals.append(
                Refusal(
                    "unknown_variable",
                    f"{name} is set, but nothing reads it.",
                    f"Did you mean {' or '.join(alike)}?" if alike else "Remove it.",
                )
            )
    return refusals


def value_refusal(name: str, value: Any, option: Mapping[str, Any]) -> Refusal | None:
    """Why a variable's value is not accepted, or None.

    Args:
        name: The variable.
        value: Its value, with templates resolved.
        option: The variable's entry in the role's argument spec.
    """
    kind = option.get("type", "str")
    accepts, wanted = _ACCEPTS.get(kind, (lambda _: True, kind))
    if value is None or not accepts(value):
        return Refusal("wrong_type", f"{name} is {value!r}, but must be {wanted}.", f"Set {name} to {wanted}.")
    choices = option.get("choices")
    if choices and value not in choices:
        allowed = ", ".join(map(str, choices))
        return Refusal("not_a_choice", f"{name} is {value!r}; allowed: {allowed}.", f"Set {name} to one of these.")
    # Where "auto" and the like are allowed the type is text, and only numbers have a range.
    if name in RANGES and _is_float(value):
        least, most = RANGES[name]
        if float(value) < least or (most is not None and float(value) > most):
            allowed = f"{least} to {most}" if most is not None else f"{least} or more"
            return Refusal("out_of_range", f"{name} is {value}; allowed: {allowed}.", f"Set {name} to {allowed}.")
    if kind == "path" and value and not PurePosixPath(str(value)).is_absolute():
        return Refusal("relative_path", f"{name} is {value!r}; allowed: an absolute path.", f"Begin {name} with /.")
    return None


def address_refusal(address: str, *, allow_public: bool) -> Refusal | None:
    """Why `vllm_bind_address` is not accepted, or None: without a gateway only loopback is safe."""
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
        f"vllm_bind_address is {address}, which other machines reach; vLLM answers more than /v1 without a key.",
        "Use 127.0.0.1 with a gateway in front, or set preflight_allow_public_address: true.",
    )


def missing_files(files: Mapping[str, str], exists: Callable[[str], bool]) -> list[Refusal]:
    """Files that variables name but that are not there, on the machine where Ansible runs."""
    return [
        Refusal("missing_file", f"{name} names {path!r}, which is not a file.", f"Create it, or correct {name}.")
        for name, path in files.items()
        if path and not exists(path)
    ]
