"""Filters of role nvidia_driver: its decisions, made by module_utils/host/driver_choice.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.host import driver_choice
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError, join


def choice(
    table: Mapping[str, Any], host: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], wishes: Mapping[str, Any]
) -> dict[str, Any]:
    """What to do to a host; see driver_choice.Choice for the keys."""
    return driver_choice.choose(table, driver_choice.Host(**host), gpus, driver_choice.Requirements(**wishes)).as_dict()


def version(listing: str, branch: int, wanted: str = "") -> dict[str, str]:
    """The version to install and, where the repository does not have it, why not."""
    try:
        return {"version": driver_choice.pick_version(listing, branch, wanted), "refused": ""}
    except RefusalError as error:
        return {"version": "", "refused": str(error)}


def reboot_refused(reasons: Sequence[str], allowed: bool, pending_allowed: bool, local: bool) -> str:
    """Why a host that needs a reboot may not have one, as text; empty where it may."""
    return join(driver_choice.reboot_refusals(reasons, allowed=allowed, pending_allowed=pending_allowed, local=local))


def disagreements(running: Mapping[str, Any], version: str) -> str:
    """Where kernel module, NVML and packages are not of one version, as text; empty where they are."""
    return join(driver_choice.disagreements(running, version))


def _output(result: Mapping[str, Any]) -> str:
    """All output of a failed task."""
    return "\n".join(str(result.get(part, "")) for part in ("stdout", "stderr", "msg"))


def repository_refused(result: Mapping[str, Any], url: str, key: str, role: str = "nvidia_driver") -> str:
    """The refusal for a repository that a task could not add or query, as text."""
    return str(driver_choice.repository_refusal(_output(result), url, key, role))


def install_refused(result: Mapping[str, Any]) -> str:
    """Why packages could not be installed, as text: a module that does not build, else the task's message."""
    refusal = driver_choice.build_refusal(_output(result))
    return str(refusal or result.get("msg", ""))


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {
            "driver_choice": choice,
            "driver_disagreements": disagreements,
            "driver_install_names": driver_choice.install_names,
            "driver_install_refused": install_refused,
            "driver_packages": driver_choice.packages_of,
            "driver_reboot_reasons": driver_choice.reboot_reasons,
            "driver_reboot_refused": reboot_refused,
            "driver_repository_refused": repository_refused,
            "driver_version": version,
        }
