#!/usr/bin/python
"""Measure a server's memory before, under and after the heaviest load that it permits, and compare it with the plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import endpoint
from ansible_collections.inference.vllm.plugins.module_utils.checks import module as check_module
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import run as vram_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import Expected, expected_of, unplanned
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.load import Load
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import this_machine

DOCUMENTATION = r"""
module: vram_check
short_description: Measure a server's memory under the heaviest load that it permits, and judge it
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - Samples the memory of the GPUs of a service's container by NVML, or on a CPU host that of the container itself, from
    before a load until after it. If Docker does not name the GPUs, those that the plan selects are read.
  - The load is sent by as many clients at once as the engine computes, each with the largest permitted image as far as
    the KV cache holds them at once, and with words that fill the cache once; then the images alone, in some rounds.
  - Judges memory before, under and after the load against the plan of the release and the card, the engine's KV cache
    against the plan, and whether the container was started again.
extends_documentation_fragment:
  - inference.vllm.endpoint
requirements:
  - openai >= 3
  - docker
  - Pillow
  - nvidia-ml-py, on a host with GPUs
options:
  metrics_url:
    description: Address of the engine's metrics for Prometheus.
    type: str
    required: true
  manifest_path:
    description:
      - The C(manifest.json) of the release, which holds its plan and flags.
      - Without it memory is compared with the card only, or on a CPU host with the container's limit.
    type: path
  accelerator:
    description: Accelerator of a service without O(manifest_path).
    type: str
    choices: [nvidia, cpu]
    default: nvidia
  images:
    description: Images that one request may hold, without O(manifest_path). V(-1) sends one.
    type: int
    default: 1
  container:
    description: Name of the engine's container. Empty for an engine without one; then O(gpus) are read.
    type: str
    required: true
  gpus:
    description:
      - GPUs of an engine without a container, by UUID or number, or V(all); they must be those of this host.
      - Restarts are then counted by the engine's metrics.
    type: list
    elements: str
    default: []
  docker_host:
    description: Where the Docker engine listens.
    type: str
    default: unix:///var/run/docker.sock
  max_pixels:
    description: Pixels of the largest image that is sent. The flag C(mm-processor-kwargs) of the release may lower it.
    type: int
    required: true
  concurrency:
    description: Maximum number of concurrent requests; C(max-num-seqs) of the release may lower it.
    type: int
    default: 8
  rounds:
    description:
      - Number of rounds; words fill the cache in the first round only.
      - Growth is judged from the end of the first round to the end of the last.
    type: int
    default: 2
  interval:
    description: Seconds between two readings of the memory.
    type: float
    default: 0.2
  settle:
    description: Seconds of rest before, between and after the rounds.
    type: float
    default: 1
  tolerance_gib:
    description: GiB that memory may grow from the first round to the last, and by which the idle engine may exceed its
      plan.
    type: float
    default: 0.5
  timeout:
    description: Longest time for one request from start to last byte, in seconds.
    type: float
    default: 300
  calibration_path:
    description:
      - Where to write what was measured as a row for the planner's calibration, mode 0640.
      - On a CPU host there is no such row, and nothing is written.
    type: path
attributes:
  check_mode:
    description: Validates the arguments and the manifest, and sends no load.
    support: full
  diff_mode:
    description: Nothing on the host changes but the report.
    support: none
"""

EXAMPLES = r"""
- name: Prove that the service survives its heaviest load
  inference.vllm.vram_check:
    base_url: http://127.0.0.1:8000/v1
    metrics_url: http://127.0.0.1:8000/metrics
    api_key_file: /opt/vllm/secrets/api_key
    manifest_path: /opt/vllm/releases/20260101-4f2c/manifest.json
    container: vllm-vllm-1
    max_pixels: 16777216
    release: 20260101-4f2c
    report_path: /opt/vllm/reports/20260101-4f2c/vram.json
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
      - {code: vram_under_load, ok: true, severity: error, message: "GPU 0 held 21.90 GiB under the heaviest load; 1.62
         GiB were left below the card", value: 21.9, limit: 23.52, unit: GiB, seconds: 0.0, runbook: null}
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
    "metrics_url": {"type": "str", "required": True},
    "manifest_path": {"type": "path"},
    "accelerator": {"type": "str", "choices": ["nvidia", "cpu"], "default": "nvidia"},
    "images": {"type": "int", "default": 1},
    "container": {"type": "str", "required": True},
    "gpus": {"type": "list", "elements": "str", "default": []},
    "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
    "max_pixels": {"type": "int", "required": True},
    "concurrency": {"type": "int", "default": 8},
    "rounds": {"type": "int", "default": 2},
    "interval": {"type": "float", "default": 0.2},
    "settle": {"type": "float", "default": 1},
    "tolerance_gib": {"type": "float", "default": 0.5},
    "timeout": {"type": "float", "default": 300},
    "calibration_path": {"type": "path"},
}
# Growth needs two rounds to be seen, and the smallest image is one cell of the grid that images are cut into.
LEAST = {
    "max_pixels": 1024,
    "concurrency": 1,
    "images": -1,
    "rounds": 2,
    "interval": 0.01,
    "settle": 0.0,
    "tolerance_gib": 0.0,
    "timeout": 0.1,
}


def expected_from(params: dict[str, Any]) -> Expected:
    """What the manifest of the release predicts, or defaults without one.

    Raises:
        RefusalError: It is missing, unreadable, or no manifest.
    """
    path = params["manifest_path"]
    if not path:
        host_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        # One image is what every model with vision takes.
        images = 1 if params["images"] < 0 else params["images"]
        return unplanned(params["accelerator"], host_gib, images, params["concurrency"])
    return check_module.from_manifest(path, expected_of)


def settings_of(params: dict[str, Any], expected: Expected) -> vram_run.Settings:
    """How to check, as the arguments say and the release allows."""
    load = Load(
        concurrency=min(params["concurrency"], expected.sequences),
        rounds=params["rounds"],
        images=expected.images,
        max_pixels=min(params["max_pixels"], expected.max_pixels or params["max_pixels"]),
        timeout=params["timeout"],
        settle=params["settle"],
        batch=int(expected.flags.get("max-num-batched-tokens") or 0),
        capped=expected.max_pixels > 0,
    )
    return vram_run.Settings(
        metrics_url=params["metrics_url"],
        container=params["container"],
        gpus=tuple(params["gpus"]),
        docker_host=params["docker_host"],
        interval=params["interval"],
        tolerance=params["tolerance_gib"],
        load=load,
    )


def prepare(params: dict[str, Any]) -> tuple[Target, Expected]:
    """The server, and what is expected of it."""
    return check_module.target_of(params, LEAST), expected_from(params)


def ask(params: dict[str, Any], target: Target, expected: Expected) -> tuple[Verdict, check_module.Files]:
    """Send the load and measure."""
    settings = settings_of(params, expected)
    result, row = vram_run.run(target, params["release"], expected, settings, this_machine().pynvml)
    files = [*check_module.report_of(params, result.to_json())]
    if params["calibration_path"] and row:
        files.append((Path(params["calibration_path"]), vram_run.row_json(row)))
    return result.verdict, files


def main() -> None:
    """Run the module."""
    check_module.run(ARGUMENTS, prepare, ask, unsent="no load was sent", outputs=("report_path", "calibration_path"))


if __name__ == "__main__":
    main()
