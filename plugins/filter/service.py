"""Filters of role vllm_service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import collection
from ansible_collections.inference.vllm.plugins.module_utils.contracts import (
    ImageFile,
    LockFile,
    ManifestFile,
    PlanFile,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.api_keys import reason_invalid_for_engine
from ansible_collections.inference.vllm.plugins.module_utils.service.design import Inputs, design, spare
from ansible_collections.inference.vllm.plugins.module_utils.service.history import serving_text, status_text


def service_design(
    model: Mapping[str, Any], files: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of a release of the service, or the reasons against it.

    Args:
        model: Entry of the catalogue.
        files: Results of module read_files, in this order: plan.json, image.json, the model's lock.json.
        settings: The role's variables by name.

    Returns:
        The result of :func:`design`, and ``refusals``: every reason against the input as a text. If there is one, the
        result has no other keys.
    """
    try:
        plan, image, lock = files
        inputs = Inputs(
            model=as_plain(model),
            plan=PlanFile.from_json(plan["text"], plan["path"]),
            image=ImageFile.from_json(image["text"], image["path"]),
            lock=LockFile.from_json(lock["text"], lock["path"]),
            settings=as_plain(settings),
        )
        result = design(inputs, str(collection.read()))
    except RefusalError as error:
        return {"refusals": [str(refusal) for refusal in error.refusals]}
    return {**result, "refusals": []}


def spare_design(manifest: Mapping[str, Any], address: str, port: int) -> dict[str, Any]:
    """Settings of a spare engine; see :func:`spare`.

    Args:
        manifest: Result of module read_files for the release's manifest.json.
        address: Address at which the spare engine is published.
        port: Port at which it is published.
    """
    try:
        plan = ManifestFile.from_json(manifest["text"], manifest["path"]).plan
        return {**spare(plan, address, int(port)), "refusals": []}
    except RefusalError as error:
        return {"refusals": [str(refusal) for refusal in error.refusals]}


def as_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without Ansible's types that track the origin of a value, which YAML cannot write."""
    return dict(json.loads(json.dumps(data)))


class FilterModule:
    """Names under which Ansible finds the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map each filter's name to its function."""
        return {
            "api_key_problem": reason_invalid_for_engine,
            "service_design": service_design,
            "serving_text": serving_text,
            "spare_design": spare_design,
            "status_text": status_text,
        }
