"""The known flags of ``vllm serve``: type, range, versions, and the layers that may set each.

A flag is one row of :data:`TABLE`. :func:`merge` merges the layers of a deployment (catalogue, service, plan, user),
:func:`validate` checks the result, and :func:`render` writes the file for ``vllm serve --config``.

Types, choices and versions were read from vLLM's own argument parser and configuration classes, releases 0.11.2 to
0.33.0; tests/unit/service/test_flags_table.py compares the table with the parser's list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.catalogue import REASONING_PARSERS, TOOL_CALL_PARSERS
from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import VARIABLE_OF_FLAG
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: Layers in the order of merging, with the name of each in messages.
LAYERS: Mapping[str, str] = {
    "catalogue": "the model's catalogue entry",
    "service": "role vllm_service",
    "plan": "plan.json",
    "user": "vllm_service_extra_flags",
}

#: Fix for a flag that belongs to another layer.
OWNERS_FIX: Mapping[str, str] = {
    "catalogue": "Set it in an entry of your own; vllm_catalogue_dirs names the folder.",
    "service": "Use the variables of role vllm_service.",
    "user": "Set it in vllm_service_extra_flags.",
}

_CPS = ("catalogue", "plan", "service")


@dataclass(frozen=True)
class Flag:
    """One flag of ``vllm serve``.

    Attributes:
        name: Long name without the leading dashes.
        kind: ``bool``, ``int``, ``float``, ``str``, ``list`` (of text) or ``map`` (JSON object).
        owners: Layers that may set it; empty if none may.
        low: Lowest allowed number; None for no limit.
        high: Highest allowed number; None for no limit.
        above: Exclusive lower limit of a number; None for no limit.
        choices: Allowed texts; empty for any. For ``int`` they are allowed in addition to the range.
        keys: Allowed keys of a map; empty for any.
        since: First release that has it; empty if all supported ones do.
        removed: First release without it; empty if none.
        why: Why no layer may set it, or where its owner gets the value.
        negatable: Whether ``--no-<name>`` exists; without it vLLM drops a ``false``.
    """

    name: str
    kind: str
    owners: tuple[str, ...] = ("user",)
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    since: str = ""
    removed: str = ""
    why: str = ""
    negatable: bool = True


@dataclass(frozen=True)
class Setting:
    """A flag's value and the layer that it came from."""

    value: Any
    layer: str


def _refused(kind: str, why: str, *names: str, since: str = "", negatable: bool = True) -> list[Flag]:
    return [Flag(name, kind, (), why=why, since=since, negatable=negatable) for name in names]


_PLAN = ("plan",)
_SERVICE = ("service",)
_CATALOGUE = ("catalogue",)

_ROWS: tuple[Flag, ...] = (
    # Set by role vllm_service.
    Flag("model", "str", _SERVICE, why="it is the folder of vllm_model in the container"),
    Flag("host", "str", _SERVICE, why="the published address is vllm_bind_address"),
    Flag("port", "int", _SERVICE, low=1, high=65535, why="the published port is vllm_port"),
    Flag("allowed-media-domains", "list", _SERVICE, why="it follows vllm_service_allow_media_domains"),
    Flag("disable-fastapi-docs", "bool", _SERVICE),
    Flag("served-model-name", "list", _CATALOGUE),
    # Set by the model's catalogue entry.
    Flag("tool-call-parser", "str", _CATALOGUE, choices=TOOL_CALL_PARSERS),
    Flag("enable-auto-tool-choice", "bool", _CATALOGUE),
    Flag("reasoning-parser", "str", _CATALOGUE, choices=REASONING_PARSERS),
    Flag("quantization", "str", _CATALOGUE),
    Flag("load-format", "str", _CATALOGUE, choices=("auto", "safetensors", "fastsafetensors", "dummy")),
    Flag("chat-template-content-format", "str", ("catalogue", "user"), choices=("auto", "string", "openai")),
    Flag("language-model-only", "bool", ("catalogue", "plan"), since="0.17.0"),
    # Memory and parallelism: a wrong value stops the engine, so only the planner sets them.
    Flag("tensor-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("pipeline-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("data-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("decode-context-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("enable-expert-parallel", "bool", _PLAN),
    Flag("gpu-memory-utilization", "float", _PLAN, above=0, high=1),
    Flag("kv-cache-memory-bytes", "int", _PLAN, low=1),
    # Never fp8_e5m2: it corrupts answers without an error (vllm#41343); e4m3 is correct.
    Flag("kv-cache-dtype", "str", _PLAN, choices=("auto", "bfloat16", "fp8", "fp8_e4m3")),
    Flag("block-size", "int", _PLAN, low=1),
    Flag("num-gpu-blocks-override", "int", _PLAN, low=1),
    Flag("cpu-offload-gb", "float", _PLAN, low=0),
    Flag("kv-offloading-size", "float", _PLAN, above=0),
    Flag("swap-space", "float", _PLAN, low=0, removed="0.18.0"),
    Flag("dtype", "str", _PLAN, choices=("auto", "bfloat16", "float16", "half", "float", "float32")),
    Flag("max-model-len", "int", _PLAN, low=1, choices=("auto", "-1")),
    Flag("max-num-seqs", "int", _PLAN, low=1),
    Flag("max-num-batched-tokens", "int", _PLAN, low=1),
    Flag("max-num-scheduled-tokens", "int", _PLAN, low=1, since="0.26.0"),
    Flag("cudagraph-capture-sizes", "list", _PLAN),
    Flag("max-cudagraph-capture-size", "int", _PLAN, low=0),
    Flag("limit-mm-per-prompt", "map", ("catalogue", "plan"), keys=("image", "video", "audio")),
    Flag("mm-processor-kwargs", "map", ("catalogue", "plan")),
    Flag("mm-encoder-tp-mode", "str", _PLAN, choices=("weights", "data")),
    Flag("mm-ipc-gpu-memory-gb", "float", _PLAN, low=0, since="0.25.0"),
    Flag("speculative-config", "map", _PLAN),
    Flag("device-ids", "str", _PLAN, since="0.24.0"),
    # Set by the plan or an operator.
    Flag("enforce-eager", "bool", ("plan", "user")),
    Flag("enable-chunked-prefill", "bool", ("plan", "user")),
    Flag("enable-prefix-caching", "bool", ("plan", "user")),
    Flag(
        "structured-outputs-config",
        "map",
        (*_CPS, "user"),
        keys=(
            "backend",
            "disable_any_whitespace",
            "disable_additional_properties",
            "reasoning_parser",
            "reasoning_parser_plugin",
            "enable_in_reasoning",
        ),
    ),
    Flag("disable-custom-all-reduce", "bool", ("service", "plan", "user")),
    Flag("attention-backend", "str", ("plan", "user"), since="0.13.0"),
    Flag("mm-encoder-attn-backend", "str", ("plan", "user")),
    Flag("compilation-config", "map", ("plan", "user")),
    Flag("generation-config", "str", ("catalogue", "user"), choices=("auto", "vllm")),
    Flag("override-generation-config", "map", ("catalogue", "user")),
    Flag("default-chat-template-kwargs", "map", ("catalogue", "user"), since="0.14.0"),
    Flag("interleave-mm-strings", "bool", ("catalogue", "user")),
    Flag("media-io-kwargs", "map", ("catalogue", "user")),
    # Scheduling and queues.
    Flag("async-scheduling", "bool"),
    Flag("scheduling-policy", "str", choices=("fcfs", "priority")),
    Flag("long-prefill-token-threshold", "int", low=0),
    Flag("max-num-partial-prefills", "int", low=1, removed="0.27.0"),
    Flag("max-long-partial-prefills", "int", low=1, removed="0.27.0"),
    Flag("max-num-active-seqs", "int", low=1, since="0.31.0"),
    Flag("max-num-queued-reqs", "int", low=1, since="0.29.0"),
    Flag("max-num-queued-tokens", "int", low=1, since="0.29.0"),
    Flag("disable-chunked-mm-input", "bool"),
    Flag("disable-hybrid-kv-cache-manager", "bool"),
    Flag("disable-cascade-attn", "bool"),
    Flag("stream-interval", "int", low=1),
    Flag("performance-mode", "str", choices=("balanced", "interactivity", "throughput"), since="0.17.0"),
    Flag("prefix-caching-hash-algo", "str", choices=("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")),
    Flag("shutdown-timeout", "int", low=0, since="0.18.0"),
    Flag("numa-bind", "bool", since="0.20.0"),
    Flag("distributed-executor-backend", "str", choices=("mp", "uni")),
    Flag("max-parallel-loading-workers", "int", low=1),
    # Host memory of the image processor.
    Flag("mm-processor-cache-gb", "float", low=0),
    Flag("mm-processor-cache-type", "str", choices=("lru", "shm")),
    Flag("mm-hasher-algorithm", "str", choices=("blake3", "sha256", "sha512"), since="0.27.0"),
    # Visible to clients.
    Flag("seed", "int", low=0, high=2**32 - 1),
    Flag("response-role", "str"),
    Flag("max-logprobs", "int", low=0),
    Flag(
        "logprobs-mode",
        "str",
        choices=("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
    ),
    Flag("enable-prompt-tokens-details", "bool"),
    Flag("enable-force-include-usage", "bool"),
    Flag("enable-request-id-headers", "bool"),
    Flag("exclude-tools-when-tool-choice-none", "bool"),
    Flag("tool-strict-level", "str", choices=("auto", "function", "parameter"), since="0.31.0"),
    Flag("sse-keep-alive-interval", "int", low=0, since="0.29.0"),
    # Logs and metrics that hold no prompts.
    Flag("uvicorn-log-level", "str", choices=("critical", "error", "warning", "info", "debug", "trace")),
    Flag("disable-uvicorn-access-log", "bool"),
    Flag("disable-access-log-for-endpoints", "str", since="0.16.0"),
    Flag("max-log-len", "int", low=0),
    Flag("enable-server-load-tracking", "bool"),
    Flag("enable-per-request-metrics", "bool", since="0.25.0"),
    Flag("kv-cache-metrics", "bool", since="0.12.0"),
    Flag("cudagraph-metrics", "bool", since="0.13.0"),
    Flag("otlp-traces-endpoint", "str"),
    # Refused from every layer, with the reason.
    *_refused("bool", "it runs code from the model's repository; Qwen3-VL needs none", "trust-remote-code"),
    *_refused(
        "str",
        "it loads unchecked code into the engine",
        "tool-parser-plugin",
        "reasoning-parser-plugin",
        "io-processor-plugin",
        "worker-cls",
        "worker-extension-cls",
        "scheduler-cls",
    ),
    *_refused("list", "it loads unchecked code into the server", "middleware", "logits-processors"),
    *_refused("list", "keys come from a file with mode 0400, never from a flag", "api-key"),
    *_refused("str", "the weights are already on the disk, so the engine needs no token", "hf-token"),
    *_refused("str", "requests could read files of the container", "allowed-local-media-path"),
    *_refused("bool", "requests could set their own chat template", "trust-request-chat-template"),
    *_refused("bool", "requests could lift the limit on image sizes", "trust-request-mm-kwargs", since="0.31.0"),
    *_refused("bool", "requests could send their own tensors", "enable-prompt-embeds", "enable-mm-embeds"),
    *_refused("bool", "it shows the tokenizer without a key", "enable-tokenizer-info-endpoint"),
    *_refused("bool", "it writes prompts or answers to the log", "enable-log-requests", "enable-log-outputs"),
    *_refused("bool", "it hides the metrics that the checks read", "disable-log-stats", negatable=False),
    *_refused("bool", "it disables the engine's memory check at start-up", "skip-mm-profiling"),
    *_refused("bool", "the planner does not account for the memory of adapters", "enable-lora"),
    *_refused("bool", "its endpoints stop the engine", "enable-sleep-mode"),
    *_refused("bool", "the service does not expose this interface", "headless", negatable=False),
    *_refused("bool", "the service does not expose this interface", "grpc", since="0.20.0", negatable=False),
    *_refused("str", "the service does not expose this interface", "uds"),
    *_refused("str", "TLS ends at the gateway", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs"),
    *_refused("str", "the service is at the root of its address", "root-path"),
    *_refused("int", "one host serves one engine", "nnodes", "node-rank", "master-port"),
    *_refused("str", "one host serves one engine", "master-addr", "data-parallel-address"),
    *_refused(
        "str",
        "the weights are a verified folder of one commit",
        "revision",
        "tokenizer",
        "tokenizer-revision",
        "code-revision",
        "hf-config-path",
        "download-dir",
    ),
    *_refused("map", "it changes the model that the planner accounted for", "hf-overrides"),
)

#: All known flags by name.
TABLE: Mapping[str, Flag] = {row.name: row for row in _ROWS}

#: Other names that vLLM accepts for the same flag.
ALIASES: Mapping[str, str] = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "dcp": "decode-context-parallel-size",
    "ep": "enable-expert-parallel",
    "q": "quantization",
    "cc": "compilation-config",
    "sc": "speculative-config",
    "device-memory-utilization": "gpu-memory-utilization",
}

_KINDS: Mapping[str, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list of texts",
    "map": "a mapping",
}


def canonical(name: str, value: Any) -> tuple[str, Any]:
    """The canonical spelling of a flag: no leading dashes, dashes as separators, ``no-x: true`` as ``x: false``."""
    plain = str(name).lstrip("-").replace("_", "-")
    plain = ALIASES.get(plain, plain)
    positive = plain.removeprefix("no-")
    if positive != plain and positive in TABLE and isinstance(value, bool):
        return positive, not value
    return plain, value


def merge(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, Setting], list[Refusal]]:
    """Merge the layers; later ones override earlier ones.

    Args:
        layers: Pairs of a layer's name (a key of ``LAYERS``) and its flags. A value of None removes a flag.

    Returns:
        The merged flags, and a refusal for each flag that a layer sets twice or may not set.
    """
    merged: dict[str, Setting] = {}
    refusals: list[Refusal] = []
    for layer, flags in layers:
        seen: set[str] = set()
        for spelling, raw in flags.items():
            name, value = canonical(spelling, raw)
            if name in seen:
                refusals.append(
                    Refusal("flag_twice", f"{LAYERS[layer]} sets {name} in two spellings.", "Keep one of them.")
                )
            seen.add(name)
            foreign = _not_allowed_here(name, layer)
            if foreign:
                refusals.append(foreign)
            elif value is None:
                merged.pop(name, None)
            else:
                merged[name] = Setting(value, layer)
    return merged, refusals


def validate(flags: Mapping[str, Setting], version: str, model: Mapping[str, Any]) -> list[Refusal]:
    """Check merged flags, each one and in combination.

    Args:
        flags: Result of :func:`merge`.
        version: Release of the engine, e.g. ``0.33.0``.
        model: Entry of the catalogue as plain data; ``variant``, ``images_per_prompt`` and ``quantization`` are read.

    Returns:
        All reasons against them; empty if vLLM may be started.
    """
    versions = (_wrong_version(TABLE[name], setting, version) for name, setting in flags.items())
    single = [*filter(None, versions), *value_refusals(flags)]
    if single:
        # Combinations of invalid values would only repeat the reason.
        return single
    return [*_pairs(flags), *_against_model(flags, model)]


def value_refusals(flags: Mapping[str, Setting]) -> list[Refusal]:
    """Refusals of values that no release of the engine accepts; empty if there are none."""
    return [*filter(None, (_wrong_value(TABLE[name], setting) for name, setting in flags.items()))]


def engine_refusals(version: str, model: Mapping[str, Any], *, allow_old: bool = False) -> list[Refusal]:
    """Reasons against an engine's release: older than the model needs, or than the security floor.

    Args:
        version: Release of the engine.
        model: Entry of the catalogue; ``name`` and ``min_engine_version`` are read.
        allow_old: Whether the operator accepts an engine with known vulnerabilities.
    """
    try:
        engine = versions.parse(version)
    except ValueError:
        return [
            Refusal(
                "engine_version_unknown",
                f"image.json: vllm_version is {version!r}, which is not a version.",
                "Run role engine_image again; it asks the image for its version.",
            )
        ]
    refusals = []
    needed = str(model.get("min_engine_version", versions.SECURITY_FLOOR))
    if engine < versions.parse(versions.SECURITY_FLOOR) and not allow_old:
        refusals.append(
            Refusal(
                "engine_unsafe",
                f"The image holds vLLM {version}; releases before {versions.SECURITY_FLOOR} have known "
                "vulnerabilities.",
                f"Use vLLM {versions.SECURITY_FLOOR} or newer; or accept them with vllm_unsafe_allow_old_engine: true.",
            )
        )
    if engine < versions.parse(needed) and not allow_old:
        refusals.append(
            Refusal(
                "engine_too_old_for_model",
                f"The image holds vLLM {version}; {model.get('name')} needs {needed} or newer.",
                f"Use an image of vLLM {needed} or newer.",
            )
        )
    return refusals


def render(flags: Mapping[str, Setting]) -> str:
    """The file for ``vllm serve --config``: one flag per line, sorted; the same flags always give the same text.

    vLLM converts the file to arguments and drops a ``false`` for which ``--no-<name>`` does not exist, so such a flag
    is omitted here. It also drops an empty list, which :func:`validate` refuses.
    """
    import yaml

    plain = {
        name: setting.value
        for name, setting in sorted(flags.items())
        if not (setting.value is False and not TABLE[name].negatable)
    }
    # Escaped, because PyYAML writes characters such as U+0085 unescaped and reads them back as blanks.
    return str(yaml.safe_dump(plain, sort_keys=False, default_flow_style=False, allow_unicode=False, width=1000))


def plain(flags: Mapping[str, Setting]) -> dict[str, Any]:
    """Flags by name, sorted, without their layers."""
    return {name: setting.value for name, setting in sorted(flags.items())}


def _not_allowed_here(name: str, layer: str) -> Refusal | None:
    where = LAYERS[layer]
    row = TABLE.get(name)
    if row is None:
        alike = closest(name, TABLE, cutoff=0.6)
        fix = f"Did you mean {' or '.join(alike)}?" if alike else "Remove it; `vllm serve --help` lists what exists."
        return Refusal("unknown_flag", f"{where}: {name!r} is not a known flag.", fix)
    if not row.owners:
        return Refusal("flag_refused", f"{where}: {name} is never set, because {row.why}.", "Remove it.")
    if layer in row.owners:
        return None
    # A variable of the plan takes precedence over other layers that may set the flag.
    variable = VARIABLE_OF_FLAG.get(name)
    owner = "plan" if variable else row.owners[0]
    because = f" ({row.why})" if row.why else ""
    if owner == "plan" and not variable:
        message = f"{where}: {name} changes the engine's memory, and the planner does not account for it{because}."
        return Refusal("flag_of_plan", message, "Remove it; no variable sets it.")
    return Refusal(
        f"flag_of_{owner}",
        f"{where}: {name} is set by {LAYERS[owner]} only{because}.",
        f"Remove it there. {f'Set {variable}.' if variable else OWNERS_FIX[owner]}",
    )


def _wrong_version(row: Flag, setting: Setting, version: str) -> Refusal | None:
    engine = versions.parse(version)
    where = LAYERS[setting.layer]
    if row.since and engine < versions.parse(row.since):
        return Refusal(
            "flag_too_new",
            f"{where}: {row.name} exists since vLLM {row.since}; the image holds {version}.",
            "Remove the flag, or use a newer engine image.",
        )
    if row.removed and engine >= versions.parse(row.removed):
        return Refusal(
            "flag_removed",
            f"{where}: {row.name} was removed in vLLM {row.removed}; the image holds {version}.",
            "Remove the flag.",
        )
    return None


def _wrong_value(row: Flag, setting: Setting) -> Refusal | None:
    value, where = setting.value, LAYERS[setting.layer]
    is_number = row.kind in ("int", "float")
    if is_number and str(value) in row.choices:
        return None
    if not _is_kind(row.kind, value):
        allowed = _KINDS[row.kind] + (f" or {', '.join(row.choices)}" if row.choices else "")
        return Refusal(
            "flag_type", f"{where}: {row.name} is {value!r}, but must be {allowed}.", f"Set it to {allowed}."
        )
    return _out_of_range(row, value, where) if is_number else _not_listed(row, value, where)


def _not_listed(row: Flag, value: Any, where: str) -> Refusal | None:
    if row.name == "kv-cache-dtype" and value == "fp8_e5m2":
        return Refusal(
            "fp8_e5m2",
            f"{where}: kv-cache-dtype fp8_e5m2 corrupts answers without an error.",
            "Use fp8, which is e4m3.",
        )
    if row.kind == "str" and row.choices and value not in row.choices:
        allowed = ", ".join(row.choices)
        return Refusal("flag_choice", f"{where}: {row.name} is {value!r}; allowed: {allowed}.", "Use one of these.")
    if row.kind == "list" and not value:
        return Refusal("flag_empty", f"{where}: {row.name} is an empty list, which vLLM drops.", "Remove it.")
    unknown = sorted(map(str, set(value) - set(row.keys))) if row.keys else []
    if unknown:
        allowed = ", ".join(row.keys)
        message = f"{where}: {row.name} has {', '.join(unknown)}; allowed: {allowed}."
        return Refusal("flag_keys", message, "Use these keys only.")
    return None


def _is_kind(kind: str, value: Any) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str) and bool(value)
    if kind == "map":
        return isinstance(value, Mapping)
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    return all(isinstance(item, (str, int)) and not isinstance(item, bool) and str(item) != "" for item in items)


def _out_of_range(row: Flag, value: float, where: str) -> Refusal | None:
    low_ok = (row.low is None or value >= row.low) and (row.above is None or value > row.above)
    if low_ok and (row.high is None or value <= row.high) and not math.isnan(value):
        return None
    limits = [
        f"more than {row.above}" if row.above is not None else "",
        f"at least {row.low}" if row.low is not None else "",
        f"at most {row.high}" if row.high is not None else "",
        *(f"or {choice}" for choice in row.choices),
    ]
    allowed = " ".join(limit for limit in limits if limit)
    return Refusal("flag_range", f"{where}: {row.name} is {value}; allowed: {allowed}.", f"Set it to {allowed}.")


def _pairs(flags: Mapping[str, Setting]) -> list[Refusal]:
    value = plain(flags)
    refusals = []
    if ("tool-call-parser" in value) != bool(value.get("enable-auto-tool-choice")):
        refusals.append(
            Refusal(
                "flag_pair",
                "tool-call-parser and enable-auto-tool-choice have no effect without each other.",
                "Set both or neither; tool_call_parser of a catalogue entry sets both.",
            )
        )
    batched, sequences = value.get("max-num-batched-tokens"), value.get("max-num-seqs")
    if batched is not None and sequences is not None and batched < sequences:
        refusals.append(
            Refusal(
                "flag_pair",
                f"max-num-batched-tokens {batched} is less than max-num-seqs {sequences}.",
                "Each running request needs one token of a step: raise the first or lower the second.",
            )
        )
    length = value.get("max-model-len")
    chunked_off = value.get("enable-chunked-prefill") is False
    if chunked_off and isinstance(batched, int) and isinstance(length, int) and 0 < batched < length:
        refusals.append(
            Refusal(
                "flag_pair",
                f"enable-chunked-prefill is false, so max-num-batched-tokens {batched} cannot hold a prompt of "
                f"max-model-len {length}.",
                "Leave chunked prefill on, or raise max-num-batched-tokens.",
            )
        )
    return [*refusals, *_structured_outputs(value.get("structured-outputs-config", {}))]


def _structured_outputs(config: Mapping[str, Any]) -> list[Refusal]:
    backend = config.get("backend", "auto")
    refusals = []
    if config.get("disable_any_whitespace") and backend not in ("xgrammar", "guidance"):
        refusals.append(
            Refusal(
                "flag_pair",
                f"structured-outputs-config: disable_any_whitespace is not compatible with backend {backend}.",
                "Set backend to xgrammar or guidance.",
            )
        )
    if config.get("disable_additional_properties") and backend != "guidance":
        refusals.append(
            Refusal(
                "flag_pair",
                f"structured-outputs-config: disable_additional_properties is not compatible with backend {backend}.",
                "Set backend to guidance.",
            )
        )
    for key in ("reasoning_parser", "reasoning_parser_plugin"):
        if config.get(key):
            refusals.append(
                Refusal(
                    "flag_refused",
                    f"structured-outputs-config: {key} is {config[key]!r}; the parser has its own flag.",
                    "Remove it; a thinking variant's catalogue entry sets reasoning_parser.",
                )
            )
    return refusals


def _against_model(flags: Mapping[str, Setting], model: Mapping[str, Any]) -> list[Refusal]:
    value = plain(flags)
    refusals = []
    if "reasoning-parser" in value and model.get("variant") != "thinking":
        refusals.append(
            Refusal(
                "reasoning_parser_on_instruct",
                f"reasoning-parser {value['reasoning-parser']} with {model.get('name')}, which is not a thinking "
                "variant: the content of every answer would be null.",
                "Remove reasoning_parser from the catalogue entry.",
            )
        )
    method = (model.get("quantization") or {}).get("method")
    if "quantization" in value and value["quantization"] != method:
        refusals.append(
            Refusal(
                "flag_pair",
                f"quantization is {value['quantization']}, but the weights are {method}.",
                "Remove the flag; vLLM reads the method from the model's config.json.",
            )
        )
    limits = value.get("limit-mm-per-prompt", {})
    bad = [key for key, count in limits.items() if not _is_kind("int", count) or count < 0]
    if bad:
        refusals.append(
            Refusal(
                "flag_range",
                f"limit-mm-per-prompt: {', '.join(f'{key} is {limits[key]!r}' for key in bad)}; allowed: at least 0.",
                "Set a whole number.",
            )
        )
    return refusals
