"""Every flag of ``vllm serve`` that this project knows: its type, its range, its versions, and who may set it.

A flag is one row of :data:`TABLE`. The layers of a deployment (catalogue, service, plan, user) are merged by
:func:`merge`, judged by :func:`validate` and written by :func:`render` as the file for ``vllm serve --config``.

Types, choices and versions were read from vLLM's own argument parser and configuration classes, releases 0.11.2 to
0.33.0; tests/unit/service/test_flags_table.py holds the table against that parser's own list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.closest import closest
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: Layers in the order in which they are merged, and how each is called in a message.
LAYERS: Mapping[str, str] = {
    "catalogue": "the model's catalogue entry",
    "service": "role vllm_service",
    "plan": "plan.json",
    "user": "vllm_service_extra_flags",
}

#: What to do instead where a layer sets a flag that belongs to another one.
OWNERS_FIX: Mapping[str, str] = {
    "catalogue": "Change the model's entry in catalogue/.",
    "service": "Use the variables of role vllm_service.",
    "plan": "Use the variables of role vram_plan, so that the plan accounts for it.",
    "user": "Set it in vllm_service_extra_flags.",
}

_CPS = ("catalogue", "plan", "service")


@dataclass(frozen=True)
class Flag:
    """One flag of ``vllm serve``.

    Attributes:
        name: Long name without the leading dashes.
        kind: ``bool``, ``int``, ``float``, ``str``, ``list`` (of text) or ``map`` (JSON object).
        owners: Layers that may set it; empty where nobody may.
        low: Least number that is allowed, None for no limit.
        high: Greatest number that is allowed, None for no limit.
        above: A number must be greater than this one; None for no limit.
        choices: Allowed texts; empty for any. For ``int`` they are allowed beside the range.
        keys: Allowed keys of a map; empty for any.
        since: First release that has it, empty where all supported ones do.
        removed: First release that has it no more, empty where none.
        why: Why nobody may set it, or where its owner takes it from.
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


def _nobody(kind: str, why: str, *names: str, since: str = "", negatable: bool = True) -> list[Flag]:
    return [Flag(name, kind, (), why=why, since=since, negatable=negatable) for name in names]


_PLAN = ("plan",)
_SERVICE = ("service",)
_CATALOGUE = ("catalogue",)

_ROWS: tuple[Flag, ...] = (
    # What is served, and where: the role's own.
    Flag("model", "str", _SERVICE, why="it is the folder of vllm_model in the container"),
    Flag("host", "str", _SERVICE, why="the published address is vllm_bind_address"),
    Flag("port", "int", _SERVICE, low=1, high=65535, why="the published port is vllm_port"),
    Flag("allowed-media-domains", "list", _SERVICE, why="it follows vllm_service_allow_media_domains"),
    Flag("disable-fastapi-docs", "bool", _SERVICE),
    Flag("served-model-name", "list", _CATALOGUE),
    # What the model needs.
    Flag("tool-call-parser", "str", _CATALOGUE, choices=("hermes", "qwen3_coder", "qwen3_xml")),
    Flag("enable-auto-tool-choice", "bool", _CATALOGUE),
    Flag("reasoning-parser", "str", _CATALOGUE, choices=("qwen3",)),
    Flag("quantization", "str", _CATALOGUE),
    Flag("load-format", "str", _CATALOGUE, choices=("auto", "safetensors", "fastsafetensors", "dummy")),
    Flag("chat-template-content-format", "str", ("catalogue", "user"), choices=("auto", "string", "openai")),
    Flag("language-model-only", "bool", ("catalogue", "plan"), since="0.17.0"),
    # Memory and parallelism: a wrong value kills the engine, so the planner accounts for each.
    Flag("tensor-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("pipeline-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("data-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("decode-context-parallel-size", "int", _PLAN, low=1, high=64),
    Flag("enable-expert-parallel", "bool", _PLAN),
    Flag("gpu-memory-utilization", "float", _PLAN, above=0, high=1),
    Flag("kv-cache-memory-bytes", "int", _PLAN, low=1),
    # Never fp8_e5m2: it corrupts answers without a word (vllm#41343); only e4m3 is served right.
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
    # What both the plan and an operator may choose.
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
    # What clients see.
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
    # What nobody may set, with the reason.
    *_nobody("bool", "it runs code from the model's repository; Qwen3-VL needs none", "trust-remote-code"),
    *_nobody(
        "str",
        "it loads code into the engine that no part of this project has checked",
        "tool-parser-plugin",
        "reasoning-parser-plugin",
        "io-processor-plugin",
        "worker-cls",
        "worker-extension-cls",
        "scheduler-cls",
    ),
    *_nobody("list", "it loads code into the server that nothing has checked", "middleware", "logits-processors"),
    *_nobody("list", "keys come from a file of mode 0400, never from a flag", "api-key"),
    *_nobody("str", "weights are on the disk already; the engine needs no token", "hf-token"),
    *_nobody("str", "it lets a request read files of the container", "allowed-local-media-path"),
    *_nobody("bool", "it lets a request bring its own template", "trust-request-chat-template"),
    *_nobody("bool", "it lets a request lift the limit on image sizes", "trust-request-mm-kwargs", since="0.31.0"),
    *_nobody("bool", "it lets a request bring tensors of its own", "enable-prompt-embeds", "enable-mm-embeds"),
    *_nobody("bool", "it shows the tokenizer without a key", "enable-tokenizer-info-endpoint"),
    *_nobody("bool", "it writes prompts or answers to the log", "enable-log-requests", "enable-log-outputs"),
    *_nobody("bool", "it hides the metrics that the checks read", "disable-log-stats", negatable=False),
    *_nobody("bool", "it blinds the engine's own memory check at the start", "skip-mm-profiling"),
    *_nobody("bool", "adapters are not in the plan's account of memory", "enable-lora"),
    *_nobody("bool", "its endpoints stop the engine", "enable-sleep-mode"),
    *_nobody("bool", "the service has no such door", "headless", negatable=False),
    *_nobody("bool", "the service has no such door", "grpc", since="0.20.0", negatable=False),
    *_nobody("str", "the service has no such door", "uds"),
    *_nobody("str", "TLS ends at the gateway", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs"),
    *_nobody("str", "the service lives at the root of its address", "root-path"),
    *_nobody("int", "one host serves one engine", "nnodes", "node-rank", "master-port"),
    *_nobody("str", "one host serves one engine", "master-addr", "data-parallel-address"),
    *_nobody(
        "str",
        "the weights are a folder of one commit, checked file by file",
        "revision",
        "tokenizer",
        "tokenizer-revision",
        "code-revision",
        "hf-config-path",
        "download-dir",
    ),
    *_nobody("map", "it changes the model behind the plan's account of memory", "hf-overrides"),
)

#: All known flags by name.
TABLE: Mapping[str, Flag] = {row.name: row for row in _ROWS}

#: Other spellings that vLLM takes for the same flag.
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
    """One spelling for each flag: no dashes in front, dashes inside, and ``no-x: true`` as ``x: false``."""
    plain = str(name).lstrip("-").replace("_", "-")
    plain = ALIASES.get(plain, plain)
    positive = plain.removeprefix("no-")
    if positive != plain and positive in TABLE and isinstance(value, bool):
        return positive, not value
    return plain, value


def merge(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, Setting], list[Refusal]]:
    """Lay the layers over each other, later ones on top.

    Args:
        layers: Pairs of a layer's name (a key of ``LAYERS``) and its flags. A value of None takes a flag back.

    Returns:
        The flags that result, and a refusal for each flag that a layer names twice or may not set.
    """
    merged: dict[str, Setting] = {}
    refusals: list[Refusal] = []
    for layer, flags in layers:
        seen: set[str] = set()
        for spelt, given in flags.items():
            name, value = canonical(spelt, given)
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
    """Judge merged flags by themselves and in their pairs.

    Args:
        flags: What :func:`merge` gave.
        version: Release of the engine, e.g. ``0.33.0``.
        model: Entry of the catalogue as plain data; ``variant``, ``images_per_prompt`` and ``quantization`` are read.

    Returns:
        All reasons against them; an empty list where vLLM may be started.
    """
    single = [
        refusal
        for name, setting in flags.items()
        for refusal in (_wrong_version(TABLE[name], setting, version), _wrong_value(TABLE[name], setting))
        if refusal
    ]
    if single:
        # Pairs of values that are wrong by themselves would only repeat the reason.
        return single
    return [*_pairs(flags), *_against_model(flags, model)]


def engine_refusals(version: str, model: Mapping[str, Any], *, allow_old: bool = False) -> list[Refusal]:
    """Reasons against an engine's release: below what the model needs, or below the security floor.

    Args:
        version: Release of the engine.
        model: Entry of the catalogue; ``name`` and ``min_engine_version`` are read.
        allow_old: Whether the operator accepts an engine with known holes.
    """
    try:
        engine = versions.parse(version)
    except ValueError:
        return [
            Refusal(
                "engine_version_unknown",
                f"image.json: vllm_version is {version!r}, which is no version.",
                "Run role engine_image again; it asks the image for its version.",
            )
        ]
    refusals = []
    needed = str(model.get("min_engine_version", versions.SECURITY_FLOOR))
    if engine < versions.parse(versions.SECURITY_FLOOR) and not allow_old:
        refusals.append(
            Refusal(
                "engine_unsafe",
                f"The image holds vLLM {version}; releases before {versions.SECURITY_FLOOR} have known holes.",
                f"Use vLLM {versions.SECURITY_FLOOR} or newer; or accept the holes with"
                " vllm_unsafe_allow_old_engine: true.",
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
    """The file for ``vllm serve --config``: one flag a line, sorted; the same flags always give the same text.

    vLLM turns the file into arguments: it drops a ``false`` where ``--no-<name>`` does not exist, so that such a flag
    is left out here, and an empty list, which :func:`validate` has refused.
    """
    import yaml

    plain = {
        name: setting.value
        for name, setting in sorted(flags.items())
        if not (setting.value is False and not TABLE[name].negatable)
    }
    # Escaped, not as it is: PyYAML writes U+0085 and its like bare, and reads them back as a blank.
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
        return Refusal("unknown_flag", f"{where}: {name!r} is no flag that this project knows.", fix)
    if not row.owners:
        return Refusal("flag_refused", f"{where}: {name} is never set, because {row.why}.", "Remove it.")
    if layer in row.owners:
        return None
    owner = row.owners[0]
    because = f" ({row.why})" if row.why else ""
    return Refusal(
        f"flag_of_{owner}",
        f"{where}: {name} is set by {LAYERS[owner]} alone{because}.",
        f"Remove it there. {OWNERS_FIX[owner]}",
    )


def _wrong_version(row: Flag, setting: Setting, version: str) -> Refusal | None:
    engine = versions.parse(version)
    where = LAYERS[setting.layer]
    if row.since and engine < versions.parse(row.since):
        return Refusal(
            "flag_too_new",
            f"{where}: {row.name} exists from vLLM {row.since} on, the image holds {version}.",
            "Remove the flag, or use a newer engine image.",
        )
    if row.removed and engine >= versions.parse(row.removed):
        return Refusal(
            "flag_removed",
            f"{where}: {row.name} was removed in vLLM {row.removed}, the image holds {version}.",
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
                "tool-call-parser and enable-auto-tool-choice do nothing without each other.",
                "Set both or none; a catalogue entry's tool_call_parser sets both.",
            )
        )
    batched, sequences = value.get("max-num-batched-tokens"), value.get("max-num-seqs")
    if batched is not None and sequences is not None and batched < sequences:
        refusals.append(
            Refusal(
                "flag_pair",
                f"max-num-batched-tokens {batched} is less than max-num-seqs {sequences}.",
                "Each running request needs one token of a step: raise the one or lower the other.",
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
                f"structured-outputs-config: disable_any_whitespace does not go with backend {backend}.",
                "Set backend to xgrammar or guidance.",
            )
        )
    if config.get("disable_additional_properties") and backend != "guidance":
        refusals.append(
            Refusal(
                "flag_pair",
                f"structured-outputs-config: disable_additional_properties does not go with backend {backend}.",
                "Set backend to guidance.",
            )
        )
    for key in ("reasoning_parser", "reasoning_parser_plugin"):
        if config.get(key):
            refusals.append(
                Refusal(
                    "flag_refused",
                    f"structured-outputs-config: {key} is {config[key]!r}; the parser has a flag of its own.",
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
                f"reasoning-parser {value['reasoning-parser']} with {model.get('name')}, which is no thinking variant: "
                "every answer would come back with content null.",
                "Remove reasoning_parser from the catalogue entry.",
            )
        )
    method = (model.get("quantization") or {}).get("method")
    if "quantization" in value and value["quantization"] != method:
        refusals.append(
            Refusal(
                "flag_pair",
                f"quantization {value['quantization']} with weights that are {method}.",
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
