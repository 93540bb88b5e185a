"""Build the content of a release from plan, image, weights and settings: flags, container, manifest.

:func:`design` defines the inside of the container: the paths of model, configuration and cache, its environment, and
the settings that an operator cannot weaken. The templates only format it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.contracts import (
    ImageFile,
    LockFile,
    ManifestFile,
    PlanFile,
    ReleasedModel,
)
from ansible_collections.inference.vllm.plugins.module_utils.inventory import limit_refusal
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import api_keys
from ansible_collections.inference.vllm.plugins.module_utils.service import flags as vllm_flags

#: Port of the engine inside its container; only vllm_port is published.
PORT = 8000
HOME = "/home/vllm"
CACHE = f"{HOME}/.cache"
CONFIG = "/etc/vllm"
MODELS = "/models"
#: Secrets of the container by name: the file in ``secrets/`` of the host. Compose shows each below /run/secrets.
SECRETS = {"vllm_api_key": api_keys.CURRENT, "vllm_former_api_key": api_keys.FORMER}
KEY_FILE, FORMER_KEY_FILE = (f"/run/secrets/{name}" for name in SECRETS)

#: A host name that no server can have (RFC 2606). vLLM treats an empty list as "all hosts"; with this name only data:
#: URLs remain as a source of images.
NO_MEDIA_DOMAIN = "media.invalid"

#: vLLM refuses larger images before it decodes them: 64 Mi pixels, an image of 8192 x 8192.
MAX_IMAGE_PIXELS = 2**26

_SAFE_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HOME": HOME,
    # For programs that look up the name of the uid, which the image does not define.
    "USER": "vllm",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_MAX_IMAGE_PIXELS": str(MAX_IMAGE_PIXELS),
    # Most answers of one request; vLLM's own limit is 16384.
    "VLLM_MAX_N_SEQUENCES": "64",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # Compiled files are kept on the volume: the root is read-only, and a restart then needs no compilation.
    "CUDA_CACHE_PATH": f"{CACHE}/cuda",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/torchinductor",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "XDG_CACHE_HOME": CACHE,
    "XDG_CONFIG_HOME": f"{CACHE}/config",
}

#: Variables that the operator may not set, with the reason.
_REFUSED_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "it opens endpoints that control the engine without a key",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it lets a request load weights",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "it lets a request run code",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "a redirect leads past vllm_service_allow_media_domains",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "it writes answers to the log",
    "HF_HUB_OFFLINE": "the engine downloads nothing",
    "TRANSFORMERS_OFFLINE": "the engine downloads nothing",
    "LD_PRELOAD": "it loads code into the engine",
    "PYTHONPATH": "it loads code into the engine",
}
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?($|_)")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CACHE_NAMES = tuple(name for name, value in _SAFE_ENVIRONMENT.items() if value.startswith(HOME))


@dataclass(frozen=True)
class Inputs:
    """The inputs of a release.

    Attributes:
        model: Entry of the catalogue.
        plan: The plan for this host.
        image: The engine's image on this host.
        lock: The files of the model on this host.
        settings: Variables of role vllm_service and of role vllm, by name.
    """

    model: Mapping[str, Any]
    plan: PlanFile
    image: ImageFile
    lock: LockFile
    settings: Mapping[str, Any]


def design(inputs: Inputs, rendered_by: str) -> dict[str, Any]:
    """Build the content of a release and the settings of its container.

    Args:
        inputs: Model, plan, image, weights and settings.
        rendered_by: Name and version of this collection.

    Returns:
        ``prefix`` of the release's id, ``vllm_yaml`` (text), ``compose`` (values for the Compose template) and
        ``manifest`` (a :class:`ManifestFile`, which module release completes).

    Raises:
        RefusalError: With every reason against the input, not only the first.
    """
    model, plan, image, lock, settings = inputs.model, inputs.plan, inputs.image, inputs.lock, inputs.settings
    refusals = [
        *_stale(model, plan, image, lock),
        *vllm_flags.engine_refusals(image.vllm_version, model, allow_old=settings["vllm_unsafe_allow_old_engine"]),
        *environment_refusals(settings["vllm_service_environment"]),
        *settings_refusals(settings),
    ]
    if refusals:
        raise RefusalError(*refusals)
    merged, refused = vllm_flags.merge(layers(model, plan, settings))
    refusals = refused or vllm_flags.validate(merged, image.vllm_version, model)
    if refusals:
        raise RefusalError(*refusals)
    compose = _compose(inputs)
    manifest = ManifestFile(
        accelerator=plan.accelerator,
        model=ReleasedModel(model["name"], lock.repo, lock.revision, lock.commit),
        image=image,
        plan=plan,
        flags=vllm_flags.plain(merged),
        environment=compose["environment"],
        rendered_by=rendered_by,
    )
    return {
        "prefix": _prefix(model["name"], image.vllm_version),
        "vllm_yaml": vllm_flags.render(merged),
        "compose": compose,
        "manifest": manifest.as_dict(),
    }


def layers(model: Mapping[str, Any], plan: PlanFile, settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The layers of flags in the order of merging."""
    catalogue: dict[str, Any] = {"served-model-name": [model["served_model_name"]]}
    if model.get("tool_call_parser"):
        catalogue |= {"tool-call-parser": model["tool_call_parser"], "enable-auto-tool-choice": True}
    if model.get("reasoning_parser"):
        catalogue["reasoning-parser"] = model["reasoning_parser"]
    catalogue |= model.get("flags") or {}
    service: dict[str, Any] = {
        "model": model_path(model),
        # Inside the container; Compose publishes vllm_bind_address only.
        "host": "0.0.0.0",  # noqa: S104
        "port": PORT,
        "allowed-media-domains": list(settings["vllm_service_allow_media_domains"]) or [NO_MEDIA_DOMAIN],
        "disable-fastapi-docs": True,
    }
    if _without_peers(plan, settings):
        service["disable-custom-all-reduce"] = True
    return [
        ("catalogue", catalogue),
        ("service", service),
        ("plan", dict(plan.flags)),
        ("user", dict(settings["vllm_service_extra_flags"])),
    ]


def model_path(model: Mapping[str, Any]) -> str:
    """Folder of the model inside the container."""
    return f"{MODELS}/{model['name']}"


def environment(plan: PlanFile, settings: Mapping[str, Any]) -> dict[str, str]:
    """Environment of the container: the defaults, overridden by the plan, then by the operator."""
    peers = {"NCCL_P2P_DISABLE": "1"} if _without_peers(plan, settings) else {}
    merged = {**_SAFE_ENVIRONMENT, **peers, **plan.environment, **settings["vllm_service_environment"]}
    return {name: str(value) for name, value in sorted(merged.items())}


_REMEDY = "Run the steps before this one: the plan, the engine image, the weights."


def _stale(model: Mapping[str, Any], plan: PlanFile, image: ImageFile, lock: LockFile) -> list[Refusal]:
    found = []
    if plan.model != model["name"]:
        found.append(f"plan.json is for {plan.model}, vllm_model is {model['name']}")
    if plan.refusals or not plan.starts:
        found.append("plan.json says that this model does not start on this host")
    # A plan for the CPU holds for every engine and names none.
    runs = versions.plain(image.vllm_version)
    if plan.engine and runs and plan.engine.version != runs:
        found.append(f"plan.json is for vLLM {plan.engine.version}, the engine's image holds vLLM {runs}")
    if lock.repo != model["repository"] or not lock.commit:
        found.append(f"lock.json is for {lock.repo}, vllm_model needs {model['repository']}")
    return [Refusal("stale_input", f"{sentence}.", _REMEDY) for sentence in found]


def environment_refusals(configured: Mapping[str, Any]) -> list[Refusal]:
    """Why ``vllm_service_environment`` is not accepted; empty if it is."""
    refusals = []
    for name, value in configured.items():
        variable = f"vllm_service_environment: {name}"
        if not _ENVIRONMENT_NAME.fullmatch(str(name)):
            refusals.append(Refusal("bad_environment", f"{variable} is not a valid name of a variable.", "Correct it."))
        elif name in _REFUSED_ENVIRONMENT:
            reason = _REFUSED_ENVIRONMENT[name]
            refusals.append(Refusal("refused_environment", f"{variable} is never set, because {reason}.", "Remove it."))
        elif name in _CACHE_NAMES:
            message = f"{variable} is fixed, because the container can write to few folders only."
            refusals.append(Refusal("refused_environment", message, "Remove it."))
        elif _SECRET_NAME.search(str(name).upper()):
            message = f"{variable} looks like a secret, and an environment is readable in `docker inspect`."
            refusals.append(Refusal("secret_in_environment", message, "Remove it; the API key has a file of its own."))
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            message = f"{variable} is {value!r}, but must be a text."
            refusals.append(Refusal("bad_environment", message, "Put the value in quotes, e.g. '1'."))
    return refusals


def settings_refusals(settings: Mapping[str, Any]) -> list[Refusal]:
    """Why the role's numbers, sizes and limits are not accepted; empty if they are."""
    limits = filter(None, (limit_refusal(name, value) for name, value in settings.items()))
    return [*limits, *ulimit_refusals(settings["vllm_service_ulimits"])]


def ulimit_refusals(ulimits: Mapping[str, Any]) -> list[Refusal]:
    """Why ``vllm_service_ulimits`` is not accepted; empty if it is."""
    refusals = []
    for name, value in ulimits.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < -1:
            message = f"vllm_service_ulimits: {name} is {value!r}; allowed: a whole number, -1 for no limit."
            refusals.append(Refusal("bad_number", message, "Set a whole number."))
    return refusals


def _prefix(model: str, version: str) -> str:
    return f"{model}-v{versions.plain(version)}"


def _compose(inputs: Inputs) -> dict[str, Any]:
    model, plan, image, lock, settings = inputs.model, inputs.plan, inputs.image, inputs.lock, inputs.settings
    home = PurePosixPath(settings["vllm_home"])
    return {
        "project": settings["vllm_project"],
        "image": image.reference,
        "user": f"{settings['vllm_uid']}:{settings['vllm_gid']}",
        "publish": publish(settings["vllm_bind_address"], settings["vllm_port"]),
        "gpus": _gpus(plan),
        "environment": environment(plan, settings),
        "labels": {
            "inference.vllm.release": "@RELEASE_ID@",
            "inference.vllm.model": model["name"],
            "inference.vllm.commit": lock.commit,
            # A rebuilt image keeps its name; its id makes it a new release.
            "inference.vllm.image-id": image.id,
        },
        "model_source": str(home / "models" / lock.repo / lock.commit),
        "model_target": model_path(model),
        "release_source": str(home / "releases" / "@RELEASE_ID@"),
        "config_target": CONFIG,
        "cache_target": CACHE,
        "command": [f"{CONFIG}/vllm.yaml", KEY_FILE, FORMER_KEY_FILE],
        "entrypoint": ["/bin/sh", f"{CONFIG}/entrypoint.sh"],
        "secrets": {name: str(home / "secrets" / file) for name, file in SECRETS.items()},
        "health": [
            # Isolated and without site-packages, which the probe does not need: it starts ten times faster.
            *("python3", "-IS", f"{CONFIG}/healthcheck.py"),
            *("--port", str(PORT), "--model", model["served_model_name"], "--key-file", KEY_FILE),
            *("--timeout", str(settings["vllm_service_health_timeout"])),
        ],
        "health_interval": f"{settings['vllm_service_health_interval']}s",
        # The probe has its own timeout and reports it; Docker's timeout is for a probe that hangs.
        "health_timeout": f"{math.ceil(settings['vllm_service_health_timeout'] * 1.5)}s",
        "start_period": f"{settings['vllm_service_start_timeout']}s",
        "stop_timeout": f"{settings['vllm_service_stop_timeout']}s",
        "memory_limit": settings["vllm_service_memory_limit"],
        "pids_limit": settings["vllm_service_pids_limit"],
        "shm_size": settings["vllm_service_shm_size"],
        "tmp_size": settings["vllm_service_tmp_size"],
        "ulimits": dict(settings["vllm_service_ulimits"]),
        "log_max_size": settings["vllm_service_log_max_size"],
        "log_max_files": settings["vllm_service_log_max_files"],
    }


def publish(address: str, port: int) -> str:
    """Compose's short syntax for a published port, with IPv6 addresses in brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}:{PORT}"


def _gpus(plan: PlanFile) -> dict[str, Any] | None:
    if plan.accelerator != "nvidia":
        return None
    uuids = [gpu.uuid for gpu in plan.selected if gpu.uuid]
    # UUIDs, because the indices of GPUs may change at a boot.
    return {"uuids": uuids} if len(uuids) == len(plan.selected) else {"count": len(plan.selected)}


def spare(plan: PlanFile, address: str, port: int) -> dict[str, Any]:
    """Settings of a second engine of a release, which runs next to the primary one.

    Args:
        plan: The plan of the release.
        address: Address at which it is published.
        port: Port at which it is published.

    Returns:
        Values for the template of the Compose override.

    Raises:
        RefusalError: The host has too few free GPUs.
    """
    values: dict[str, Any] = {"publish": publish(address, port), "gpus": None}
    if plan.accelerator != "nvidia":
        return values
    count, free = len(plan.selected), [gpu.uuid for gpu in plan.spare]
    if len(free) < count:
        message = (
            f"vllm_spare_port is {port}, but a second engine needs {count} more GPUs and the plan has {len(free)}"
            " free ones with a UUID."
        )
        fix = "Set vllm_spare_port to 0: the old engine is then stopped before the new one starts."
        raise RefusalError(Refusal("no_spare_gpus", message, fix))
    return values | {"gpus": {"uuids": free[:count]}}


def _without_peers(plan: PlanFile, settings: Mapping[str, Any]) -> bool:
    """Whether the plan uses several GPUs without peer-to-peer access, with which NCCL may hang."""
    if plan.accelerator != "nvidia" or len(plan.selected) == 1:
        return False
    configured = settings["vllm_service_gpu_peer_to_peer"]
    detected = not all(gpu.peer_to_peer for gpu in plan.selected)
    return detected if configured == "auto" else configured == "absent"
