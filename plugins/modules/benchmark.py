#!/usr/bin/python
"""Measure latency and throughput of a server with a tool that others wrote, and hold them against former results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import endpoint
from ansible_collections.inference.vllm.plugins.module_utils.checks import module as check_module
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import drivers as benchmark_drivers
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import figures as benchmark_figures
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import run as benchmark_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Goals, Workload
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.run import Comparison, Settings
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import BenchmarkResult
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

DOCUMENTATION = r"""
module: benchmark
short_description: Measure latency and throughput of a server with vllm bench serve or GuideLLM, and compare
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - Runs C(vllm bench serve) from the image of the engine's container, or another O(tool), in a container beside it,
    once for each workload and number of requests at once. Every run has new prompts; the largest of a workload is run
    once more with the same ones, so that the prefix cache knows them.
  - Brings time to first token, time per token, time between tokens, throughput and goodput into one JSON.
  - Holds them against former results. What is worse by more than the tolerance is a warning, or with O(gate) a failure.
extends_documentation_fragment:
  - inference.vllm.endpoint
requirements:
  - openai >= 3
  - docker
options:
  base_url:
    description: Address of the API up to and including C(/v1), as O(network) reaches it.
  tool:
    description:
      - What sends the requests and measures. V(vllm) is C(vllm bench serve).
      - V(guidellm) is C(guidellm run) of GuideLLM 0.7 or newer, which O(image) must have; it does not tell C(itl_ms).
      - Results of different tools are not compared.
    type: str
    choices: [vllm, guidellm]
    default: vllm
  workloads:
    description: Kinds of requests that are measured.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What it is called in results and comparisons.
        type: str
        required: true
      input_tokens:
        description: Tokens of text in a prompt.
        type: int
        required: true
      output_tokens:
        description: Tokens of an answer.
        type: int
        required: true
      concurrency:
        description: Numbers of requests at once, each measured by itself.
        type: list
        elements: int
        required: true
      images:
        description: Images in a request.
        type: int
        default: 0
      side:
        description: Side of an image in pixels.
        type: int
        default: 0
      rounds:
        description: How often as many requests as are sent at once are sent; eight requests at least.
        type: int
        default: 4
  max_images:
    description: Images that one request may hold; workloads with more are left out. V(-1) where that is not known.
    type: int
    default: -1
  goal_ttft_ms:
    description: Milliseconds within which a good request has its first token.
    type: float
    default: 3500
  goal_tpot_ms:
    description: Milliseconds that a further token of a good request takes at most, on average.
    type: float
    default: 50
  again:
    description: Whether each workload is measured once more with the same prompts.
    type: bool
    default: true
  seed:
    description: Seed of the first run. Without it a new one is taken, so that no cache knows the prompts.
    type: int
  container:
    description: Name of the engine's container, which names image, user and tokenizer.
    type: str
    default: ""
  image:
    description: Image that has the tool, in place of the container's.
    type: str
    default: ""
  tokenizer:
    description: Folder with the model's tokenizer on the host of Docker, in place of the one that the container mounts.
    type: str
    default: ""
  network:
    description: Docker network that the tool runs in.
    type: str
    default: host
  docker_host:
    description: Where the Docker engine listens.
    type: str
    default: unix:///var/run/docker.sock
  timeout:
    description: Longest time for one run, in seconds.
    type: float
    default: 900
  manifest_path:
    description: The C(manifest.json) of the release, which says what the result may be compared with.
    type: path
  home:
    description: Folder that holds C(baselines/), C(reports/) and C(current).
    type: path
    required: true
  comparisons:
    description: Former results that this one is held against; one that is not there is passed over.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the check, after C(benchmark_).
        type: str
        required: true
      against:
        description:
          - V(same) is the first result with the same GPUs, image, model and flags; V(current) that of the release that
            is current.
          - Another name is a file of C(baselines/) without C(.json), and an absolute path that file.
        type: str
        required: true
      workloads:
        description: Only these workloads. All without it.
        type: list
        elements: str
        default: []
  tolerance:
    description: Fraction by which a figure may be worse.
    type: float
    default: 0.1
  gate:
    description: Whether a result that is worse fails.
    type: bool
    default: false
  save_as:
    description: Name under which the result is kept in C(baselines/) as well.
    type: str
    default: ""
  replace_same:
    description: Whether the result replaces the stored one with the same GPUs, image, model and flags.
    type: bool
    default: false
attributes:
  check_mode:
    description: Validates the arguments, and sends nothing.
    support: full
  diff_mode:
    description: Nothing on the host changes but the report and the baselines.
    support: none
"""

EXAMPLES = r"""
- name: Measure texts and images
  inference.vllm.benchmark:
    base_url: http://127.0.0.1:8000/v1
    api_key_file: /opt/vllm/secrets/api_key
    container: vllm-vllm-1
    workloads:
      - {name: text, input_tokens: 1024, output_tokens: 128, concurrency: [1, 16]}
      - {name: image, input_tokens: 64, output_tokens: 64, images: 1, side: 1024, concurrency: [1, 8]}
    manifest_path: /opt/vllm/releases/20260101-4f2c/manifest.json
    home: /opt/vllm
    comparisons:
      - {name: baseline, against: same}
    release: 20260101-4f2c
    report_path: /opt/vllm/reports/20260101-4f2c/benchmark.json
"""

RETURN = r"""
verdict:
  description: The result in the shape of C(verdict.json), also where O(report_path) is not set.
  returned: when the check ran and the task did not fail
  type: dict
  sample:
    ok: true
    release: 20260101-4f2c
    checks:
      - {code: bench_text_16, ok: true, severity: error, message: "64 requests: first token after 412 ms, then 21.3 ms
         each", value: 397.0, limit: null, unit: tokens/s, seconds: 31.0, runbook: null}
failures:
  description: Codes of the checks that make the verdict not ok.
  returned: when the check ran
  type: list
  elements: str
refusals:
  description: Why the input was refused, each with C(code), C(message) and C(fix).
  returned: when the input was refused
  type: list
  elements: dict
"""

ARGUMENTS: dict[str, dict[str, Any]] = {
    **endpoint.ARGUMENTS,
    "tool": {"type": "str", "choices": list(benchmark_drivers.DRIVERS), "default": "vllm"},
    "workloads": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "input_tokens": {"type": "int", "required": True, "no_log": False},
            "output_tokens": {"type": "int", "required": True, "no_log": False},
            "concurrency": {"type": "list", "elements": "int", "required": True},
            "images": {"type": "int", "default": 0},
            "side": {"type": "int", "default": 0},
            "rounds": {"type": "int", "default": 4},
        },
    },
    "max_images": {"type": "int", "default": -1},
    "goal_ttft_ms": {"type": "float", "default": 3500},
    "goal_tpot_ms": {"type": "float", "default": 50},
    "again": {"type": "bool", "default": True},
    "seed": {"type": "int"},
    "container": {"type": "str", "default": ""},
    "image": {"type": "str", "default": ""},
    "tokenizer": {"type": "str", "default": "", "no_log": False},
    "network": {"type": "str", "default": "host"},
    "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
    "timeout": {"type": "float", "default": 900},
    "manifest_path": {"type": "path"},
    "home": {"type": "path", "required": True},
    "comparisons": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "against": {"type": "str", "required": True},
            "workloads": {"type": "list", "elements": "str", "default": []},
        },
    },
    "tolerance": {"type": "float", "default": 0.1},
    "gate": {"type": "bool", "default": False},
    "save_as": {"type": "str", "default": ""},
    "replace_same": {"type": "bool", "default": False},
}
LEAST = {"max_images": -1, "goal_ttft_ms": 1.0, "goal_tpot_ms": 0.1, "timeout": 1.0, "tolerance": 0.0}


@dataclass(frozen=True)
class Plan:
    """How to measure, and the file that keeps the first result with the same GPUs, image, model and flags."""

    settings: Settings
    same: Path


def workloads_of(params: dict[str, Any]) -> tuple[Workload, ...]:
    """The workloads that have no more images than a request may hold.

    Raises:
        RefusalError: One of them cannot be used, or there is none, or two have one name.
    """
    refusals, found = [], []
    for number, entry in enumerate(params["workloads"]):
        try:
            found.append(Workload.from_dict(entry))
        except ValueError as error:
            refusals.append(
                Refusal("bad_workload", f"workloads[{number}] cannot be used: {error}.", "Correct it in the inventory.")
            )
    names = [workload.name for workload in found]
    if not params["workloads"] or len(set(names)) < len(names):
        refusals.append(
            Refusal("bad_workload", f"workloads are named {names}.", "Give at least one, each with a name of its own.")
        )
    most = params["max_images"]
    taken = tuple(workload for workload in found if most < 0 or workload.images <= most)
    if found and not taken:
        fix = "Give one with fewer images."
        refusals.append(Refusal("bad_workload", f"A request may hold {most} images, those of {names} have more.", fix))
    if refusals:
        raise RefusalError(*refusals)
    return taken


def key_from(params: dict[str, Any]) -> dict[str, Any]:
    """What makes this result comparable: the manifest's facts, or the address where there is none.

    Raises:
        RefusalError: The manifest cannot be read.
    """
    path = params["manifest_path"]
    if not path:
        return {"address": params["base_url"], "model": params["model"]}
    return check_module.from_manifest(path, benchmark_figures.key_of)


def path_of(against: str, home: Path, same: Path) -> Path:
    """The file of a former result."""
    if against == "same":
        return same
    if against == "current":
        current = home / "current"
        return home / "reports" / (current.resolve().name if current.exists() else "none") / "benchmark.json"
    return Path(against) if against.startswith("/") else home / "baselines" / f"{against}.json"


def settings_of(params: dict[str, Any], key: dict[str, Any], same: Path) -> Settings:
    """How to measure, as the arguments say."""
    named = (
        "again",
        "seed",
        "container",
        "image",
        "tokenizer",
        "network",
        "docker_host",
        "timeout",
        "tolerance",
        "gate",
    )
    return Settings(
        driver=benchmark_drivers.DRIVERS[params["tool"]],
        workloads=workloads_of(params),
        goals=Goals(params["goal_ttft_ms"], params["goal_tpot_ms"]),
        comparisons=tuple(
            Comparison(entry["name"], path_of(entry["against"], Path(params["home"]), same), tuple(entry["workloads"]))
            for entry in params["comparisons"]
        ),
        key=key,
        **{name: params[name] for name in named},
    )


def prepare(params: dict[str, Any]) -> tuple[Target, Plan]:
    """The server, how to measure it, and where a result of its kind is kept."""
    target = check_module.target_of(params, LEAST)
    key = key_from(params) | {"tool": params["tool"]}
    same = Path(params["home"]) / "baselines" / f"{benchmark_figures.key_name(key)}.json"
    return target, Plan(settings_of(params, key, same), same)


def ask(params: dict[str, Any], target: Target, plan: Plan) -> tuple[Verdict, check_module.Files]:
    """Measure it."""
    result = benchmark_run.run(target, params["release"], plan.settings)
    return result.verdict, files_of(result, plan.same, params)


def files_of(result: BenchmarkResult, same: Path, params: dict[str, Any]) -> check_module.Files:
    """The report; and a good result for later comparisons: the first of its kind, and under `save_as`.

    Raises:
        OSError: The folder cannot be made.
    """
    yield from check_module.report_of(params, result.to_json())
    if not result.ok:
        return
    wanted = [same.parent / f"{params['save_as']}.json"] if params["save_as"] else []
    if params["replace_same"] or not same.exists():
        wanted.append(same)
    for path in wanted:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        yield path, result.to_json()


def main() -> None:
    """Run the module."""
    check_module.run(ARGUMENTS, prepare, ask, unsent="nothing was measured", library="docker")


if __name__ == "__main__":
    main()
