"""Comparison of measured memory with the plan and the card: pure functions, no network.

All sizes are GiB of 2^30 bytes, per GPU; on a CPU host they are those of the engine's container.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.checks.memory_sampler import Sample, Window
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import Moment, Series, Term
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, ManifestFile, PlanFile

GIB_UNIT = "GiB"
# Figures of vLLM's cache that may differ from the plan by this share.
KV_CACHE_TOLERANCE = 0.05
MOST_POINTS = 600


# --- What is expected -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What the plan of a release predicts.

    Attributes:
        accelerator: ``nvidia`` or ``cpu``.
        resident: What the idle engine holds.
        step: What the largest images need in addition; 0 if the plan does not contain it.
        card: What CUDA gives a process on one GPU; on a CPU host the host's memory.
        kv_cache: What the KV cache holds.
        kv_cache_tokens: Tokens in it.
        sequences: Requests that the engine computes concurrently.
        images: Images that one request may hold.
        max_pixels: Pixels of the largest image; 0 for as many as the model takes.
        flags: All flags of the release.
        plan: The plan; None for a service that this project did not deploy.
        engine: Version of vLLM.
    """

    accelerator: str
    resident: float
    step: float
    card: float
    kv_cache: float
    kv_cache_tokens: int
    sequences: int
    images: int
    max_pixels: int
    flags: Mapping[str, Any] = field(default_factory=dict)
    plan: PlanFile | None = None
    engine: str = ""

    @property
    def planned(self) -> bool:
        """Whether there is a plan."""
        return self.plan is not None

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that the plan selects; empty where it does not know them."""
        uuids = tuple(gpu.uuid for gpu in self.plan.selected if gpu.uuid) if self.plan else ()
        return uuids if self.plan and len(uuids) == len(self.plan.selected) else ()


def unplanned(accelerator: str, host_gib: float, images: int, sequences: int) -> Expected:
    """What is expected of a service without a plan: that it stays below the card, or the host's memory."""
    card = host_gib if accelerator == "cpu" else float("inf")
    return Expected(accelerator, 0.0, 0.0, card, 0.0, 0, sequences, images, 0)


def expected_of(manifest: ManifestFile) -> Expected:
    """What the plan and the flags of a release predict.

    Raises:
        KeyError, TypeError, ValueError: The plan has no sizes, or a flag is missing.
    """
    plan, flags = manifest.plan, manifest.flags
    nvidia = plan.accelerator == "nvidia"
    sizes = (plan.per_gpu_gib if nvidia else plan.memory_gib) or {}
    return Expected(
        accelerator=plan.accelerator,
        resident=float(sizes["resident"] if nvidia else sizes["engine"] + sizes["kv_cache"]),
        step=float(sizes["step"]) if nvidia else 0.0,
        card=float(sizes["card"] if nvidia else sizes["host"]),
        kv_cache=float(sizes["kv_cache"]),
        kv_cache_tokens=plan.kv_cache_tokens,
        sequences=int(flags["max-num-seqs"]),
        images=int((flags.get("limit-mm-per-prompt") or {}).get("image", 0)),
        max_pixels=int((flags.get("mm-processor-kwargs") or {}).get("max_pixels", 0)),
        flags=flags,
        plan=plan,
        engine=manifest.image.vllm_version,
    )


def cache_tokens(metrics: str) -> int:
    """Tokens of the KV cache, from the labels of `vllm:cache_config_info` on the page of vLLM's metrics.

    Raises:
        Failure: `metrics_missing` if the page does not have them.
    """
    line = re.search(r"^vllm:cache_config_info\{(.*)\} ", metrics, re.MULTILINE)
    if not line:
        raise Failure("metrics_missing", "there is no vllm:cache_config_info among the metrics")
    labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', line[1]))
    reported = labels.get("kv_cache_size_tokens", "")
    if reported.isdecimal():
        return int(reported)
    blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    if not (blocks.isdecimal() and size.isdecimal()):
        raise Failure("metrics_missing", f"vllm:cache_config_info has num_gpu_blocks={blocks!r}, block_size={size!r}")
    return int(blocks) * int(size)


# --- Measurements ---------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """The readings of the sampler.

    Attributes:
        samples: All readings.
        failure: Why a check of memory cannot be made: the sampler's reason, or that of the load; None where it can.
        ready: The engine before the load.
        warm: After the first round.
        load: From the first request to the last answer.
        after: After the last round.
        limit: What the memory must stay below, and what that is in words.
        limit_is: What the limit is.
        cache_tokens: Tokens of the KV cache that the engine reports; 0 if it reports none.
    """

    samples: Sequence[Sample] = ()
    failure: Failure | None = None
    ready: Window | None = None
    warm: Window | None = None
    load: Window | None = None
    after: Window | None = None
    limit: float = 0.0
    limit_is: str = ""
    cache_tokens: int = 0

    def level(self, window: Window | None) -> dict[str, float]:
        """The middle reading of each series in a window; empty where nothing was read in it."""
        return self._of(window, statistics.median)

    def peak(self) -> dict[str, float]:
        """The highest reading of each series under load."""
        return self._of(self.load, max)

    def _of(self, window: Window | None, choose: Any) -> dict[str, float]:
        found = window.of(self.samples) if window else []
        names = found[0].gib if found else ()
        return {name: round(choose([sample.gib[name] for sample in found]), 3) for name in names}


def _highest(levels: Mapping[str, float]) -> tuple[str, float]:
    """The series that holds the most, and how much."""
    return max(levels.items(), key=lambda item: item[1])


def thinned(samples: Sequence[Sample], name: str, most: int = MOST_POINTS) -> Series:
    """A series as at most `most` points (seconds, GiB).

    Each section keeps its lowest and its highest point, so that no peak is lost.
    """
    points = [(round(sample.seconds, 2), round(sample.gib[name], 3)) for sample in samples if name in sample.gib]
    if len(points) <= most:
        return tuple(points)
    stretches = most // 2
    kept: list[tuple[float, ...]] = []
    for place in range(stretches):
        stretch = points[place * len(points) // stretches : (place + 1) * len(points) // stretches]
        pair = [min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])]
        kept += sorted(pair) if pair[0] != pair[1] else pair[:1]
    return tuple(kept)


# --- Checks ---------------------------------------------------------------------------------------------------------


def checks_of(expected: Expected, measured: Measured, tolerance: float) -> list[Check]:
    """The three moments, judged."""
    return [
        _ready(expected, measured, tolerance),
        _under_load(expected, measured),
        _after(measured, tolerance),
    ]


def _judged(code: str, value: float, limit: float, good: str, bad: Failure) -> Check:
    ok = value <= limit
    message = good if ok else f"{bad.name}: {bad}"
    return Check(
        code, ok, message=message, value=round(value, 2), limit=round(limit, 2), unit=GIB_UNIT,
        runbook=None if ok else bad.name,
    )  # fmt: skip


def _unread(code: str, measured: Measured, levels: Mapping[str, float], moment: str) -> Check | None:
    """The failed check for a moment without readings."""
    if levels:
        return None
    failure = measured.failure or Failure("client_error", f"no memory was read {moment}")
    return failed(code, failure, unit=GIB_UNIT)


def _ready(expected: Expected, measured: Measured, tolerance: float) -> Check:
    """The idle engine: at most the plan and what one step needs in addition, which the allocator keeps."""
    levels = measured.level(measured.ready)
    if unread := _unread("vram_ready", measured, levels, "before the load"):
        return unread
    who, value = _highest(levels)
    about = f"{who} holds {value:.2f} GiB before the load"
    if expected.planned:
        about += f"; planned for the idle engine are {expected.resident:.2f} GiB"
    if expected.accelerator == "cpu" or not expected.planned:
        limit, allowed = measured.limit, measured.limit_is
    else:
        limit = min(expected.resident + expected.step + tolerance, measured.limit)
        allowed = "what the plan allows"
    over = Failure("memory_over_limit", f"{about}, {allowed} is at most {limit:.2f} GiB")
    return _judged("vram_ready", value, limit, about, over)


def _under_load(expected: Expected, measured: Measured) -> Check:
    levels = {} if measured.failure else measured.peak()
    if unread := _unread("vram_under_load", measured, levels, "under load"):
        return unread
    who, value = _highest(levels)
    free = measured.limit - value
    about = f"{who} held {value:.2f} GiB under the heaviest load"
    over = Failure("memory_over_limit", f"{about}, {-free:.2f} GiB more than {measured.limit_is}")
    good = f"{about}; {free:.2f} GiB were left below {measured.limit_is}"
    return _judged("vram_under_load", value, measured.limit, good, over)


def _after(measured: Measured, tolerance: float) -> Check:
    """Growth from one round to the last. Not from before the load: the allocators keep what the first round needed."""
    growth = growth_of(measured)
    if unread := _unread("vram_after", measured, growth, "after the load"):
        return unread
    who, value = _highest(growth)
    about = f"{who} holds {value:+.2f} GiB after the last round of the load, compared with the first"
    leak = Failure("memory_leak", f"{about}; allowed are {tolerance:.2f} GiB")
    return _judged("vram_after", value, tolerance, about, leak)


def growth_of(measured: Measured) -> dict[str, float]:
    """How much each series grew from the end of the first round to the end of the last."""
    if measured.failure:
        return {}
    warm, after = measured.level(measured.warm), measured.level(measured.after)
    return {name: round(after[name] - warm[name], 3) for name in after if name in warm}


def cache_check(expected: Expected, tokens: int) -> tuple[str, int]:
    """Message about the engine's KV cache, and its tokens.

    Raises:
        Failure: `plan_missed` if it is not the planned one.
    """
    if not expected.planned:
        return f"the KV cache holds {tokens} tokens; there is no plan to compare it with", tokens
    share = tokens / expected.kv_cache_tokens - 1 if expected.kv_cache_tokens else float("inf")
    about = f"the KV cache holds {tokens} tokens, planned are {expected.kv_cache_tokens} ({100 * share:+.1f} %)"
    if abs(tokens - expected.kv_cache_tokens) > KV_CACHE_TOLERANCE * expected.kv_cache_tokens:
        raise Failure("plan_missed", f"{about}; allowed are {100 * KV_CACHE_TOLERANCE:g} %", tokens)
    return about, tokens


# --- What is written ------------------------------------------------------------------------------------------------


def terms_of(expected: Expected, measured: Measured) -> tuple[Term, ...]:
    """Predicted and measured values of what is visible outside the engine; None if there is no value."""
    ready = _most(measured.level(measured.ready))
    peak = _most({} if measured.failure else measured.peak())
    planned = expected.planned
    stepped = expected.accelerator == "nvidia" and planned
    per_token = expected.kv_cache / expected.kv_cache_tokens if expected.kv_cache_tokens else 0.0
    return (
        _term("resident", expected.resident if planned else None, ready),
        _term(
            "step", expected.step if stepped else None, peak - ready if peak is not None and ready is not None else None
        ),
        _term("peak", expected.resident + expected.step if stepped else None, peak),
        _term("kv_cache", expected.kv_cache if planned else None, measured.cache_tokens * per_token or None),
        _term(
            "kv_cache_tokens", expected.kv_cache_tokens if planned else None, measured.cache_tokens or None, "tokens"
        ),
        _term(
            "headroom", expected.card - expected.resident - expected.step if stepped else None, headroom_of(measured)
        ),
    )


def headroom_of(measured: Measured) -> float | None:
    """What was left below the limit at the worst moment."""
    peak = _most({} if measured.failure else measured.peak())
    return None if peak is None else round(measured.limit - peak, 3)


def _most(levels: Mapping[str, float]) -> float | None:
    return max(levels.values(), default=None)


def _term(name: str, predicted: float | None, measured: float | None, unit: Literal["GiB", "tokens"] = "GiB") -> Term:
    def shown(value: float | None) -> float | int | None:
        return None if value is None else int(value) if unit == "tokens" else round(value, 2)

    return Term(name, shown(predicted), shown(measured), unit)


def moments_of(measured: Measured) -> dict[str, Moment]:
    """The moments: their span in seconds, and GiB by series."""
    found = {
        "ready": (measured.ready, measured.level(measured.ready)),
        "warm": (measured.warm, measured.level(measured.warm)),
        "under_load": (measured.load, measured.peak()),
        "after": (measured.after, measured.level(measured.after)),
    }
    return {
        name: Moment(round(window.start, 2), round(window.end, 2), levels)
        for name, (window, levels) in found.items()
        if window is not None
    }


def calibration_row(
    expected: Expected, measured: Measured, gpus: Sequence[Mapping[str, Any]], date: str, survives: bool
) -> dict[str, Any] | None:
    """A row of catalogue/calibration.json, which bench/plan_fit.py and the planner's tests can read.

    None on a CPU host, whose memory the planner does not calibrate, without a plan, and where the idle engine was not
    seen.
    """
    ready = _most(measured.level(measured.ready))
    plan = expected.plan
    if expected.accelerator != "nvidia" or plan is None or not gpus or ready is None:
        return None
    flags, gpu, planned = expected.flags, gpus[0], plan.selected[0]
    peak = _most({} if measured.failure else measured.peak())
    settings = {
        "tensor_parallel_size": flags.get("tensor-parallel-size", 1),
        "budget_gib": (plan.per_gpu_gib or {})["budget"],
        "kv_cache_dtype": "fp8" if flags.get("kv-cache-dtype") == "fp8" else "bfloat16",
        "max_num_seqs": expected.sequences,
        "max_num_batched_tokens": flags.get("max-num-batched-tokens"),
        "max_model_len": flags.get("max-model-len"),
        "images_per_prompt": expected.images or None,
        "max_pixels": expected.max_pixels or None,
        "enforce_eager": flags.get("enforce-eager") or None,
        "mm_encoder_tp_mode": flags.get("mm-encoder-tp-mode"),
    }
    found = {
        "kv_cache_tokens": measured.cache_tokens or None,
        "resident_gib": round(ready, 2),
        "peak_gib": None if peak is None else round(peak, 2),
    }
    return {
        "name": f"{plan.model}, {len(gpus)}x {gpu['name']}, {date}",
        "engine": expected.engine,
        "date": date,
        "gpu": {
            "measured_on": gpu["name"],
            "total_gib": expected.card,
            "count": len(gpus),
            "compute_capability": planned.compute_capability,
            "peer_to_peer": planned.peer_to_peer,
        },
        "note": "resident is what was held before the load, by an engine that has answered requests before",
        "model": plan.model,
        "settings": {name: value for name, value in settings.items() if value is not None},
        "measured": {name: value for name, value in found.items() if value is not None}
        | {"starts": True, "survives": survives},
    }
