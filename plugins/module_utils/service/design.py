"""From plan, image, weights and settings to what a release holds: flags, container, manifest.

:func:`design` is the one place that knows how the container looks inside: where the model, the configuration and the
cache lie, which environment it gets, and what an operator may not loosen by accident. The templates only write it down.
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

#: A host name that no server can have (RFC 2606). vLLM takes an empty list for "all hosts", so that this is what
#: leaves data: URLs as the only source of images.
NO_MEDIA_DOMAIN = "media.invalid"

#: Images above this are refused before they are decoded: 64 Mi pixels, an 8192 x 8192 picture.
MAX_IMAGE_PIXELS = 2**26

_SAFE_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HOME": HOME,
    # For programs that ask for the name of a uid that the image does not know.
    "USER": "vllm",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_MAX_IMAGE_PIXELS": str(MAX_IMAGE_PIXELS),
    # Answers that one request may ask for; vLLM's own limit is 16384.
    "VLLM_MAX_N_SEQUENCES": "64",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # All that is compiled at the first start lies on the volume: the root is read-only and a restart shall be warm.
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
_SIZE = re.compile(r"[1-9]\d*[bkmg]")
_CACHE_NAMES = tuple(name for name, value in _SAFE_ENVIRONMENT.items() if value.startswith(HOME))


@dataclass(frozen=True)
class Inputs:
    """What a release is made from.

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
    """What a release holds and how its container runs.

    Args:
        inputs: What it is made from.
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
        *_wrong_environment(settings["vllm_service_environment"]),
        *_wrong_settings(settings),
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
    """The layers of flags, in the order in which they are laid over each other."""
    catalogue: dict[str, Any] = {"served-model-name": [model["served_model_name"]]}
    if model.get("tool_call_parser"):
        catalogue |= {"tool-call-parser": model["tool_call_parser"], "enable-auto-tool-choice": True}
    if model.get("reasoning_parser"):
        catalogue["reasoning-parser"] = model["reasoning_parser"]
    catalogue |= model.get("flags") or {}
    service: dict[str, Any] = {
        "model": model_path(model),
        # Inside the container only; Compose publishes vllm_bind_address.
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
    """Environment of the container: safe defaults, then the plan's, then the operator's."""
    peers = {"NCCL_P2P_DISABLE": "1"} if _without_peers(plan, settings) else {}
    given = {**_SAFE_ENVIRONMENT, **peers, **plan.environment, **settings["vllm_service_environment"]}
    return {name: str(value) for name, value in sorted(given.items())}


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


def _wrong_environment(given: Mapping[str, Any]) -> list[Refusal]:
    refusals = []
    for name, value in given.items():
        variable = f"vllm_service_environment: {name}"
        if not _ENVIRONMENT_NAME.fullmatch(str(name)):
            refusals.append(Refusal("bad_environment", f"{variable} is no name of a variable.", "Correct it."))
        elif name in _REFUSED_ENVIRONMENT:
            reason = _REFUSED_ENVIRONMENT[name]
            refusals.append(Refusal("refused_environment", f"{variable} is never set, because {reason}.", "Remove it."))
        elif name in _CACHE_NAMES:
            message = f"{variable} must stay where the container can write."
            refusals.append(Refusal("refused_environment", message, "Remove it."))
        elif _SECRET_NAME.search(str(name).upper()):
            message = f"{variable} looks like a secret, and an environment is readable in `docker inspect`."
            refusals.append(Refusal("secret_in_environment", message, "Remove it; the API key has a file of its own."))
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            message = f"{variable} is {value!r}, but must be a text."
            refusals.append(Refusal("bad_environment", message, "Put the value in quotes, e.g. '1'."))
    return refusals


def _wrong_settings(settings: Mapping[str, Any]) -> list[Refusal]:
    refusals = []
    for name in ("memory_limit", "shm_size", "tmp_size", "log_max_size"):
        value = settings[f"vllm_service_{name}"]
        if not _SIZE.fullmatch(str(value)):
            refusals.append(
                Refusal(
                    "bad_size",
                    f"vllm_service_{name} is {value!r}; allowed: a whole number and b, k, m or g, such as 4g.",
                    "Set such a size.",
                )
            )
    for name in ("pids_limit", "start_timeout", "stop_timeout", "health_interval", "health_timeout", "log_max_files"):
        value = settings[f"vllm_service_{name}"]
        if value < 1:
            message = f"vllm_service_{name} is {value}; allowed: at least 1."
            refusals.append(Refusal("bad_number", message, "Set at least 1."))
    for name, value in settings["vllm_service_ulimits"].items():
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
            # A rebuilt image keeps its name; with its id here it is a new release.
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
            # Isolated and without site-packages: the probe needs neither, and starts in a tenth of the time.
            *("python3", "-IS", f"{CONFIG}/healthcheck.py"),
            *("--port", str(PORT), "--model", model["served_model_name"], "--key-file", KEY_FILE),
            *("--timeout", str(settings["vllm_service_health_timeout"])),
        ],
        "health_interval": f"{settings['vllm_service_health_interval']}s",
        # The probe ends itself with a sentence; Docker's own limit is only for a probe that hangs.
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
    """Compose's short form for one published port; IPv6 addresses stand in brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}:{PORT}"


def _gpus(plan: PlanFile) -> dict[str, Any] | None:
    if plan.accelerator != "nvidia":
        return None
    uuids = [gpu.uuid for gpu in plan.selected if gpu.uuid]
    # By UUID a container keeps its GPUs when their numbers change at a boot.
    return {"uuids": uuids} if len(uuids) == len(plan.selected) else {"count": len(plan.selected)}


def spare(plan: PlanFile, address: str, port: int) -> dict[str, Any]:
    """How a release runs a second time on its host, beside the engine that serves.

    Args:
        plan: The plan of the release.
        address: Where it is published.
        port: At which port.

    Returns:
        Values for the template of the Compose file that is laid over the release's own.

    Raises:
        RefusalError: The host has no GPUs left for it.
    """
    values: dict[str, Any] = {"publish": publish(address, port), "gpus": None}
    if plan.accelerator != "nvidia":
        return values
    count, free = len(plan.selected), [gpu.uuid for gpu in plan.spare]
    if len(free) < count:
        message = (
            f"vllm_spare_port is {port}, but a second engine needs {count} more GPUs and the plan knows {len(free)}"
            " free ones by UUID."
        )
        fix = "Set vllm_spare_port to 0: the engine is then stopped before the new one starts."
        raise RefusalError(Refusal("no_spare_gpus", message, fix))
    return values | {"gpus": {"uuids": free[:count]}}


def _without_peers(plan: PlanFile, settings: Mapping[str, Any]) -> bool:
    """Whether several GPUs work together that cannot reach each other's memory: NCCL may hang looking for the way."""
    if plan.accelerator != "nvidia" or len(plan.selected) == 1:
        return False
    wish = settings["vllm_service_gpu_peer_to_peer"]
    known = not all(gpu.peer_to_peer for gpu in plan.selected)
    return known if wish == "auto" else wish == "absent"
