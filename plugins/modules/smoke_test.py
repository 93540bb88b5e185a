#!/usr/bin/python
"""Send real questions to a running vLLM service and check its answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import endpoint, limits
from ansible_collections.inference.vllm.plugins.module_utils.checks import module as check_module
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import HostCheck
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import extended
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import run as smoke_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Settings
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import expected_of
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict

DOCUMENTATION = r"""
module: smoke_test
short_description: Send real questions to a running vLLM service and check its answers
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - Sends text, images, a tool call, a JSON schema and a stream with the official OpenAI client at temperature 0, then
    requests that must be refused, then asks whether the server still answers.
  - Every check ends as ok or as a named failure. A server that is dead, hangs or gives wrong answers does not count as
    good; when it is gone, the remaining checks are not sent and are not ok.
extends_documentation_fragment:
  - inference.vllm.endpoint
requirements:
  - openai >= 3
  - Pillow
options:
  api_key_file:
    description:
      - File on the host that holds the API key; the key itself appears in no argument, output or report.
      - Without it requests have no key, and a wrong one must still be refused.
  level:
    description:
      - With V(semantic) the answers must be right.
      - With V(protocol) only their form must be right, for random weights; tool calls are left out.
    type: str
    choices: [protocol, semantic]
    default: semantic
  extent:
    description:
      - V(short) asks what every model of the catalogue can answer.
      - V(full) also tries formats and shapes of images, tool choice, log probabilities, stop words, a seed and a prompt
        that nearly fills the context; and at level V(semantic) counting, a chart, faint and foreign script, four images
        and a conversation, of which a wrong answer is a warning.
    type: str
    choices: [short, full]
    default: full
  timeout:
    description: Longest time for one request from start to last byte, in seconds. Two longer ones in a row end the run.
    type: float
    default: 60
  max_images:
    description:
      - Images that one request may hold. One more must be refused.
      - V(-1) where that is not known; then it is not tried.
    type: int
    default: 4
  concurrency:
    description: Independent questions that are sent at the same time.
    type: int
    default: 4
  manifest_path:
    description:
      - The C(manifest.json) of the release, whose flag C(mm-processor-kwargs) says what images are scaled down to.
      - Without it the largest image is not sent, because the server may have no memory for it.
    type: path
  largest_pixels:
    description: Pixels of the largest image that clients send. V(0) sends none.
    type: int
    default: 0
  strict:
    description:
      - Whether it is a failure that a server answers what a release of this project refuses as a policy, namely a
        video, too many images, and a wrong key if O(api_key_file) is not set. Otherwise it is a warning.
    type: bool
    default: true
  home:
    description:
      - Folder of the deployment. The host checks, such as C(disk_left), are made there.
      - Without it there are no host checks.
    type: path
  host_limits:
    description:
      - Limits of the host checks, by the code of the check. Each is a mapping with C(warn), C(fail) or both.
      - A value below C(warn) is a warning, a value below C(fail) fails the release.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Sends the same requests, which change nothing, and does not write the report.
    support: full
  diff_mode:
    description: Nothing on the host changes but the report.
    support: none
"""

EXAMPLES = r"""
- name: Prove that the service answers rightly
  inference.vllm.smoke_test:
    base_url: http://127.0.0.1:8000/v1
    api_key_file: /opt/vllm/secrets/api_key
    model: Qwen/Qwen3-VL-32B-Instruct-FP8
    release: 20260101-4f2c
    report_path: /opt/vllm/reports/20260101-4f2c/smoke.json
"""

RETURN = r"""
verdict:
  description: The result in the shape of C(verdict.json), also where O(report_path) is not set.
  returned: when the checks ran and the task did not fail
  type: dict
  sample:
    ok: true
    release: 20260101-4f2c
    checks:
      - {code: greeting, ok: true, severity: error, message: "expected \"hello\", got \"Hello!\"", value: "Hello!",
         limit: "Hello!", unit: null, seconds: 0.09, runbook: null}
    engine: {version: 0.33.0, model: Qwen/Qwen3-VL-32B-Instruct-FP8, max_model_len: 31840}
failures:
  description: Codes of the checks that make the verdict not ok.
  returned: when the checks ran
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
    "level": {"type": "str", "choices": list(smoke_run.LEVELS), "default": "semantic"},
    "extent": {"type": "str", "choices": ["short", "full"], "default": "full"},
    "timeout": {"type": "float", "default": 60},
    "max_images": {"type": "int", "default": 4},
    "concurrency": {"type": "int", "default": 4},
    "manifest_path": {"type": "path"},
    "largest_pixels": {"type": "int", "default": 0},
    "strict": {"type": "bool", "default": True},
    "home": {"type": "path"},
    "host_limits": {"type": "dict", "default": {}},
}
LEAST = {"timeout": 0.1, "max_images": -1, "concurrency": 1, "largest_pixels": 0}


@dataclass(frozen=True)
class Plan:
    """What is checked: the server, and the values of the host."""

    settings: Settings
    host: list[HostCheck]


def prepare(params: dict[str, Any]) -> tuple[Target, Plan]:
    """The server, and what to check.

    Raises:
        RefusalError: An argument, the key file or the manifest cannot be used.
    """
    target = replace(check_module.target_of(params, LEAST), concurrency=params["concurrency"])
    largest, cap = largest_of(params)
    known = {name: params[name] for name in ("level", "max_images", "strict")}
    host = limits.rows_of(params["host_limits"])
    return target, Plan(Settings(largest_pixels=largest, cap_pixels=cap, **known), host if params["home"] else [])


def largest_of(params: dict[str, Any]) -> tuple[int, int]:
    """Pixels of the largest image, and those that it is scaled down to; zeros where no plan says that there is room.

    Raises:
        RefusalError: The file is not a manifest.
    """
    path = params["manifest_path"]
    if not path or not Path(path).exists():
        return 0, 0
    return params["largest_pixels"], check_module.from_manifest(path, expected_of).max_pixels


def ask(params: dict[str, Any], target: Target, plan: Plan) -> tuple[Verdict, check_module.Files]:
    """Run the smoke test and the host checks, and write the result."""
    settings = plan.settings
    more = extended.steps_for(settings) if params["extent"] == "full" else []
    result = smoke_run.run(target, params["release"], settings, more=[*more, *extended.largest_steps(settings)])
    if plan.host:
        result = replace(result, checks=(*result.checks, *limits.checks_of(plan.host, Path(params["home"]))))
    return result.verdict, check_module.report_of(params, result.to_json())


def main() -> None:
    """Run the module."""
    # Its questions change nothing, so that check mode asks them too.
    check_module.run(ARGUMENTS, prepare, ask)


if __name__ == "__main__":
    main()
