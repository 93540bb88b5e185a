"""The benchmark tools: the command of each for a point, and its result in a common form. Pure functions.

A **driver** is one program: `vllm bench serve`, which the engine's own image has, or `guidellm run` of an image with
GuideLLM (0.7 or newer; tested with 0.8.1). Both send the same kind of work and measure the same figures, but
GuideLLM does not store times between single tokens, so that its points have no ``itl_ms``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Goals, Point
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import BenchmarkPoint

_TIMES = ("ttft", "tpot", "itl", "e2el")
_QUANTILES = ("mean", "median", "p95", "p99")
_MS = 1000.0
Figures = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """Where a driver sends requests, and where it finds and leaves its files.

    Attributes:
        root_url: Address of the server, without ``/v1``.
        model: Served name of the model.
        tokenizer: Folder with the tokenizer, as the driver sees it.
        folder: Folder for the result.
        name: File name of the result in it.
    """

    root_url: str
    model: str
    tokenizer: str
    folder: str
    name: str


@dataclass(frozen=True)
class Driver:
    """One tool.

    Attributes:
        title: What messages call it.
        key_variable: Environment variable in which it takes the API key.
        folder: Folder of the program in its published image, searched after ``PATH``.
        missing: Message of a program that exists but has no benchmark.
        command: Its command line for a point; the key is not on it.
        figures: The figures of its result. May raise KeyError, TypeError or ValueError.
    """

    title: str
    key_variable: str
    folder: str
    missing: str
    command: Callable[[Point, Goals, Call], list[str]]
    figures: Callable[[Mapping[str, Any]], Figures]


def normalised(driver: Driver, point: Point, raw: Mapping[str, Any], command: str = "") -> BenchmarkPoint:
    """The result of a tool as a point of the benchmark.

    Raises:
        KeyError, TypeError, ValueError: It is no result of that driver.
    """
    workload = point.workload
    return BenchmarkPoint(
        **{key: value for key, value in asdict(workload).items() if key not in ("name", "concurrency", "rounds")},
        workload=workload.name,
        concurrency=point.concurrency,
        again=point.again,
        seed=point.seed,
        command=command,
        **driver.figures(raw),
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no figure")
    return number


# --- vllm bench serve -----------------------------------------------------------------------------------------------


def _vllm_command(point: Point, goals: Goals, call: Call) -> list[str]:
    workload = point.workload
    arguments = {
        "--backend": "openai-chat",
        "--base-url": call.root_url,
        "--endpoint": "/v1/chat/completions",
        "--model": call.model,
        "--tokenizer": call.tokenizer,
        "--dataset-name": "random-mm" if workload.images else "random",
        "--random-input-len": str(workload.input_tokens),
        "--random-output-len": str(workload.output_tokens),
        "--num-prompts": str(workload.requests(point.concurrency)),
        "--max-concurrency": str(point.concurrency),
        "--seed": str(point.seed),
        "--temperature": "0",
        "--percentile-metrics": ",".join(_TIMES),
        "--metric-percentiles": "50,95,99",
        "--result-dir": call.folder,
        "--result-filename": call.name,
    }
    if workload.images:
        arguments |= {
            "--random-mm-base-items-per-request": str(workload.images),
            "--random-mm-limit-mm-per-prompt": json.dumps({"image": workload.images, "video": 0}),
            "--random-mm-bucket-config": f"{{({workload.side},{workload.side},1):1.0}}",
        }
    flat = [word for pair in arguments.items() for word in pair]
    return [
        *("vllm", "bench", "serve", *flat, "--ignore-eos", "--save-result", "--disable-tqdm"),
        *("--goodput", f"ttft:{goals.ttft_ms:g}", f"tpot:{goals.tpot_ms:g}"),
    ]


def _vllm_figures(raw: Mapping[str, Any]) -> Figures:
    return {
        "requests": int(raw["completed"]) + int(raw["failed"]),
        "failed": int(raw["failed"]),
        "seconds": round(float(raw["duration"]), 3),
        "requests_per_s": round(float(raw["request_throughput"]), 3),
        "output_tokens_per_s": round(float(raw["output_throughput"]), 2),
        "total_tokens_per_s": round(float(raw["total_token_throughput"]), 2),
        "goodput_per_s": round(float(raw.get("request_goodput") or 0.0), 3),
        **{f"{time}_ms": {name: round(_finite(raw[f"{name}_{time}_ms"]), 2) for name in _QUANTILES} for time in _TIMES},
    }


# --- guidellm run ---------------------------------------------------------------------------------------------------


def _spec(kind: str, **settings: Any) -> str:
    """Settings as GuideLLM takes them on its command line."""
    return ",".join([f"kind={kind}", *(f"{name}={value}" for name, value in settings.items())])


def _guidellm_command(point: Point, goals: Goals, call: Call) -> list[str]:
    workload = point.workload
    text = _spec("synthetic_text", prompt_tokens=workload.input_tokens, output_tokens=workload.output_tokens)
    size = {"width": workload.side, "height": workload.side}
    image = _spec("synthetic_image", **size, images_per_request=workload.images, seed=point.seed)
    temperature = {"extras.body.temperature": 0}
    goodput = {"slo.ttft_ms": f"{goals.ttft_ms:g}", "slo.tpot_ms": f"{goals.tpot_ms:g}"}
    arguments = [
        ("--backend", _spec("openai_http", target=call.root_url, model=call.model, verify="true", **temperature)),
        ("--profile", _spec("concurrent", streams=point.concurrency)),
        ("--constraint", _spec("max_requests", count=workload.requests(point.concurrency))),
        ("--tokenizer", _spec("huggingface_auto", model=call.tokenizer)),
        ("--data", text),
        *([("--data", image)] if workload.images else ()),
        ("--seed", _spec("static", value=point.seed)),
        ("--metrics", _spec("generative", sample_size=0, **goodput)),
        ("--output", _spec("json", path=f"{call.folder}/{call.name}")),
    ]
    return ["guidellm", "run", *(word for pair in arguments for word in pair), "--disable-console-interactive"]


def _guidellm_figures(raw: Mapping[str, Any]) -> Figures:
    (run,) = raw["benchmarks"]
    metrics = run["metrics"]
    seconds, totals = _finite(run["duration"]), metrics["request_totals"]
    done = int(totals["successful"])
    failed = int(totals["errored"]) + int(totals["incomplete"])
    if done and seconds <= 0:
        raise ValueError(f"{done} requests in {seconds} s")
    rate = 1 / seconds if done else 0.0
    good = _finite(metrics["slo_attainment"] or 0.0) * int(metrics["slo_determined_requests"])
    return {
        "requests": done + failed,
        "failed": failed,
        "seconds": round(seconds, 3),
        "requests_per_s": round(done * rate, 3),
        "output_tokens_per_s": round(_answered(metrics, "output_token_count")["total_sum"] * rate, 2),
        "total_tokens_per_s": round(_answered(metrics, "total_token_count")["total_sum"] * rate, 2),
        "goodput_per_s": round(good * rate, 3),
        "ttft_ms": _quantiles(_answered(metrics, "time_to_first_token_ms")),
        # Its name for the time per token without the first one, once for each request.
        "tpot_ms": _quantiles(_answered(metrics, "inter_token_latency_ms")),
        "e2el_ms": _quantiles(_answered(metrics, "request_latency"), _MS),
    }


def _answered(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A distribution over the requests that were answered."""
    found: Mapping[str, Any] = metrics[name]["successful"]
    return found


def _quantiles(summary: Mapping[str, Any], scale: float = 1.0) -> dict[str, float]:
    named = {"mean": summary["mean"], "median": summary["median"], **summary["percentiles"]}
    return {name: round(_finite(named[name]) * scale, 2) for name in _QUANTILES}


DRIVERS: Mapping[str, Driver] = {
    "vllm": Driver(
        title="vllm bench serve",
        key_variable="OPENAI_API_KEY",
        folder="",
        missing="invalid choice: 'bench'",
        command=_vllm_command,
        figures=_vllm_figures,
    ),
    "guidellm": Driver(
        title="guidellm run",
        key_variable="GUIDELLM__SPEC__BACKEND__API_KEY",
        folder="/opt/app-root/bin",
        missing="No such command 'run'",
        command=_guidellm_command,
        figures=_guidellm_figures,
    ),
}
