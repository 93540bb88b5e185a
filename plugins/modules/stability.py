#!/usr/bin/python
"""Send mixed requests, so many and for so long, and judge whether a service stays what it was."""

from __future__ import annotations

from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import endpoint
from ansible_collections.inference.vllm.plugins.module_utils.checks import module as check_module
from ansible_collections.inference.vllm.plugins.module_utils.checks import stability as stability_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import this_machine

DOCUMENTATION = r"""
module: stability
short_description: Send mixed requests, so many and for so long, and judge whether a service stays what it was
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - Sends texts, streams, JSON, images and long prompts in turn, by some clients at once, until O(requests) were sent
    and O(minutes) are over.
  - Judges that every request is answered, that the engine's container was not started again, and how often the engine
    had to begin a request again because its KV cache was full.
  - Where O(minutes) is not 0, also judges whether answers became slower, and whether memory grew.
extends_documentation_fragment:
  - inference.vllm.endpoint
requirements:
  - openai >= 3
  - docker
  - Pillow
  - nvidia-ml-py, on a host with GPUs
options:
  metrics_url:
    description: Address of the engine's metrics for Prometheus. Empty for none.
    type: str
    default: ""
  container:
    description:
      - Name of the engine's container. Its restarts are counted by Docker, and its memory is read.
      - Empty where Docker cannot be asked; then restarts are seen in the engine's metrics, and memory is not read.
    type: str
    default: ""
  docker_host:
    description: Where the Docker engine listens.
    type: str
    default: unix:///var/run/docker.sock
  accelerator:
    description: Whose memory is read, that of the container's GPUs or of the container itself.
    type: str
    choices: [nvidia, cpu]
    default: nvidia
  requests:
    description: Requests that are sent at least.
    type: int
    default: 24
  minutes:
    description: How long to go on at least. With V(0) drift is not judged.
    type: float
    default: 0
  concurrency:
    description: Requests at once.
    type: int
    default: 4
  images:
    description: Images that one request may hold; V(0) for a model without vision, V(-1) sends one.
    type: int
    default: 4
  max_pixels:
    description: Pixels of the largest image that is sent; at most half of the context is filled with images.
    type: int
    default: 1048576
  latency_drift:
    description: How many times longer answers may take in the last third of the time than in the first.
    type: float
    default: 1.5
  memory_drift_gib:
    description: GiB that memory may grow from the middle third of the time to the last.
    type: float
    default: 0.5
  interval:
    description: Seconds between two readings of the memory.
    type: float
    default: 0.5
  timeout:
    description: Longest time for one request from start to last byte, in seconds.
    type: float
    default: 120
attributes:
  check_mode:
    description: Looks at the arguments, and sends nothing.
    support: full
  diff_mode:
    description: Nothing on the host changes but the report.
    support: none
"""

EXAMPLES = r"""
- name: Prove that the service answers for half an hour as it did in the beginning
  inference.vllm.stability:
    base_url: http://127.0.0.1:8000/v1
    metrics_url: http://127.0.0.1:8000/metrics
    api_key_file: /opt/vllm/secrets/api_key
    container: vllm-vllm-1
    minutes: 30
    release: 20260101-4f2c
    report_path: /opt/vllm/reports/20260101-4f2c/stability.json
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
      - {code: stability_requests, ok: true, severity: error, message: "24 mixed requests, all answered: 4 text,
         4 image, 4 stream, 4 long_text, 4 json, 4 images",
         value: 24, limit: 24, unit: requests, seconds: 9.1, runbook: null}
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
    "metrics_url": {"type": "str", "default": ""},
    "container": {"type": "str", "default": ""},
    "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
    "accelerator": {"type": "str", "choices": ["nvidia", "cpu"], "default": "nvidia"},
    "requests": {"type": "int", "default": 24},
    "minutes": {"type": "float", "default": 0},
    "concurrency": {"type": "int", "default": 4},
    "images": {"type": "int", "default": 4},
    "max_pixels": {"type": "int", "default": 1048576},
    "latency_drift": {"type": "float", "default": 1.5},
    "memory_drift_gib": {"type": "float", "default": 0.5},
    "interval": {"type": "float", "default": 0.5},
    "timeout": {"type": "float", "default": 120},
}
LEAST = {
    "requests": 1,
    "minutes": 0.0,
    "concurrency": 1,
    "images": -1,
    "max_pixels": 1024,
    "latency_drift": 1.0,
    "memory_drift_gib": 0.0,
    "interval": 0.01,
    "timeout": 0.1,
}


def settings_of(params: dict[str, Any]) -> stability_run.Settings:
    """How to check, as the arguments say."""
    named = ("requests", "minutes", "concurrency", "max_pixels", "latency_drift", "metrics_url", "container")
    more = ("docker_host", "accelerator", "interval", "timeout")
    return stability_run.Settings(
        memory_drift=params["memory_drift_gib"],
        # One image is what every model with vision takes.
        images=1 if params["images"] < 0 else params["images"],
        **{name: params[name] for name in (*named, *more)},
    )


def prepare(params: dict[str, Any]) -> tuple[Target, stability_run.Settings]:
    """The server, and how to check it."""
    return check_module.target_of(params, LEAST), settings_of(params)


def ask(params: dict[str, Any], target: Target, settings: stability_run.Settings) -> tuple[Verdict, check_module.Files]:
    """Check it."""
    result = stability_run.run(target, params["release"], settings, this_machine().pynvml)
    return result.verdict, check_module.report_of(params, result.to_json())


def main() -> None:
    """Run the module."""
    check_module.run(ARGUMENTS, prepare, ask, unsent="nothing was sent")


if __name__ == "__main__":
    main()
