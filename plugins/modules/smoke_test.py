#!/usr/bin/python
"""Ask a running vLLM service real questions and judge its answers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: smoke_test
short_description: Ask a running vLLM service real questions and judge its answers
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - Sends text, images, a tool call, a JSON schema and a stream with the official OpenAI client at temperature 0, then
    requests that must be refused, then asks whether the server still answers.
  - Every check ends as ok or as a named failure. A server that is dead, hung or lying never counts as good and never
    makes the module crash; when it is gone, the checks that are left are not sent and are not ok.
extends_documentation_fragment:
  - inference.vllm.endpoint
requirements:
  - openai >= 3
  - Pillow
options:
  api_key_file:
    description:
      - File on the host that holds the API key; the key itself appears in no argument, output or report.
      - Without it the server is asked without a key, and must still refuse a wrong one.
  level:
    description:
      - With V(semantic) the answers must be right.
      - With V(protocol) they need the right form only, as any weights can give; tool calls are left out.
    type: str
    choices: [protocol, semantic]
    default: semantic
  extent:
    description:
      - V(short) asks what every model of the catalogue is known or taught to answer.
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
      - Images that one request may hold, as the server was started. One more must be refused.
      - V(-1) where that is not known; then it is not tried.
    type: int
    default: 4
  concurrency:
    description: Questions that are asked at the same time, where one has nothing to do with another.
    type: int
    default: 4
  manifest_path:
    description:
      - The C(manifest.json) of the release, whose flag C(mm-processor-kwargs) says what images are scaled down to.
      - Where there is none, nobody knows that the server has room for O(largest_pixels), and it is not sent.
    type: path
  largest_pixels:
    description: Pixels of the largest image that clients send. V(0) sends none.
    type: int
    default: 0
  strict:
    description:
      - Whether a server fails that answers what a release of this project refuses as a policy, namely a video, too many
        images, and a wrong key where O(api_key_file) is not set. Otherwise it is a warning.
    type: bool
    default: true
attributes:
  check_mode:
    description: Asks the same questions, which change nothing, and does not write the report.
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

from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import endpoint
from ansible_collections.inference.vllm.plugins.module_utils.checks import module as check_module
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import extended
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import run as smoke_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.run import Settings
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.judge import expected_of

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
}
LEAST = {"timeout": 0.1, "max_images": -1, "concurrency": 1, "largest_pixels": 0}


def prepare(params: dict[str, Any]) -> tuple[Target, Settings]:
    """The server, and what is known of it."""
    target = replace(check_module.target_of(params, LEAST), concurrency=params["concurrency"])
    largest, cap = largest_of(params)
    known = {name: params[name] for name in ("level", "max_images", "strict")}
    return target, Settings(largest_pixels=largest, cap_pixels=cap, **known)


def largest_of(params: dict[str, Any]) -> tuple[int, int]:
    """Pixels of the largest image, and those that it is scaled down to; zeros where no plan says that there is room.

    Raises:
        RefusalError: The file is not a manifest.
    """
    path = params["manifest_path"]
    if not path or not Path(path).exists():
        return 0, 0
    return params["largest_pixels"], check_module.from_manifest(path, expected_of).max_pixels


def ask(params: dict[str, Any], target: Target, settings: Settings) -> tuple[Verdict, check_module.Files]:
    """Run the smoke test, and write its result."""
    more = extended.steps_for(settings) if params["extent"] == "full" else []
    verdict = smoke_run.run(target, params["release"], settings, more=[*more, *extended.largest_steps(settings)])
    return verdict, check_module.report_of(params, verdict.to_json())


def main() -> None:
    """Run the module."""
    # Its questions change nothing, so that check mode asks them too.
    check_module.run(ARGUMENTS, prepare, ask)


if __name__ == "__main__":
    main()
