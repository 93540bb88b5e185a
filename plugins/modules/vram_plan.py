#!/usr/bin/python
"""Module: plan the memory of an engine before anything is downloaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.contracts import PlanFile
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import read_gpus, this_machine
from ansible_collections.inference.vllm.plugins.module_utils.image.settings import (
    Wanted,
    unknown_version,
    vllm_version,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.cpu import cpu_table, memory_of_host, plan_cpu
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import (
    Wishes,
    fraction,
    variable_name,
    whole_number,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import solve
from ansible_collections.inference.vllm.plugins.module_utils.planner.table import table
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError, join

DOCUMENTATION = r"""
module: vram_plan
short_description: Say before the download whether a model fits, and with which flags
description:
  - Computes from the model's shapes and the host's GPUs (or its main memory) whether vLLM will start, and whether it
    survives the largest images that it permits.
  - Writes the flags that follow to O(path). A plan that does not fit fails the task and writes nothing.
options:
  model:
    description: Entry of the catalogue, as the lookup P(inference.vllm.model#lookup) gives it.
    type: dict
    required: true
  alternatives:
    description: Entries to judge where O(model) does not fit, best first.
    type: list
    elements: dict
    default: []
  accelerator:
    description: What runs the engine.
    type: str
    choices: [nvidia, cpu]
    default: nvidia
  gpus:
    description: GPUs of a host that does not exist yet, each with C(name) and C(count). Empty reads the host.
    type: list
    elements: dict
    default: []
  tensor_parallel_size:
    description: GPUs that share one copy of the model. V(auto) is as many as divide it.
    type: str
    default: auto
  context:
    description: Tokens that one request may hold. V(auto) is the longest that fits.
    type: str
    default: auto
  concurrent_requests:
    description: Requests of that length whose KV cache must fit at once.
    type: int
    default: 1
  max_pixels:
    description: Pixels of one image after scaling. V(auto) is the most that survives.
    type: str
    default: auto
  images_per_prompt:
    description: Images in one request. V(auto) is what the catalogue says.
    type: str
    default: auto
  gpu_memory_utilization:
    description: Share of each GPU's memory that the engine takes. V(auto) is the highest that survives.
    type: str
    default: auto
  kv_cache_dtype:
    description: Type of the KV cache. V(auto) lets the plan choose.
    type: str
    choices: [auto, bfloat16, fp8]
    default: auto
  max_num_seqs:
    description: Requests in one batch.
    type: str
    default: auto
  max_num_batched_tokens:
    description: Tokens that one step computes.
    type: str
    default: auto
  engine_image:
    description: Image of the engine that is planned for; role engine_image has variables of the same names.
    type: dict
    suboptions:
      source:
        description: Where it comes from. V(build) makes an image for CPUs, whose plan is the same for each version.
        type: str
        choices: [pull, load, build]
        default: pull
      tag:
        description: Its tag, where O(engine_image.source=pull). Empty is the one that this project deploys.
        type: str
        default: ""
      archive_reference:
        description: Name and tag in its archive, where O(engine_image.source=load).
        type: str
        default: ""
      vllm_version:
        description: Version of vLLM in it, where the tag does not tell it.
        type: str
        default: ""
  cpu_kv_cache_gib:
    description: Whole GiB of KV cache where O(accelerator=cpu).
    type: int
    default: 1
  path:
    description: File that receives the plan. Without it the plan is only returned.
    type: path
attributes:
  check_mode:
    description: Computes the plan and says whether the file would change.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
author:
  - The project's contributors
"""

EXAMPLES = r"""
- name: Plan for the GPUs of this host
  inference.vllm.vram_plan:
    model: "{{ lookup('inference.vllm.model', 'qwen3-vl-32b-instruct-fp8') }}"
    path: /opt/vllm/plan.json

- name: Plan for a host that does not exist yet
  inference.vllm.vram_plan:
    model: "{{ lookup('inference.vllm.model', 'qwen3-vl-32b-instruct-fp8') }}"
    gpus:
      - name: RTX 4090
        count: 2
    context: "65536"
"""

RETURN = r"""
plan:
  description: The plan, as written to O(path).
  returned: always
  type: dict
  contains:
    starts:
      description: Whether vLLM's own check at the start would pass.
      type: bool
    survives:
      description: Whether head-room is left when the largest permitted images arrive together.
      type: bool
    flags:
      description: vLLM flags by name without the dashes.
      type: dict
    environment:
      description: Environment variables of the engine.
      type: dict
    refusals:
      description: Reasons against the plan, each with C(code), C(message) and C(fix).
      type: list
    alternatives:
      description: What else was tried, and whether it fits.
      type: list
table:
  description: The plan for people, as one text of several lines.
  returned: when the input is not refused
  type: str
"""

MEMINFO = Path("/proc/meminfo")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "dict", "required": True},
            "alternatives": {"type": "list", "elements": "dict", "default": []},
            "accelerator": {"type": "str", "choices": ["nvidia", "cpu"], "default": "nvidia"},
            "gpus": {"type": "list", "elements": "dict", "default": []},
            "tensor_parallel_size": {"type": "str", "default": "auto"},
            "context": {"type": "str", "default": "auto"},
            "concurrent_requests": {"type": "int", "default": 1},
            "max_pixels": {"type": "str", "default": "auto"},
            "images_per_prompt": {"type": "str", "default": "auto"},
            "gpu_memory_utilization": {"type": "str", "default": "auto"},
            "kv_cache_dtype": {"type": "str", "choices": ["auto", "bfloat16", "fp8"], "default": "auto"},
            "max_num_seqs": {"type": "str", "default": "auto"},
            "max_num_batched_tokens": {"type": "str", "default": "auto"},
            "engine_image": {
                "type": "dict",
                "apply_defaults": True,
                "options": {
                    "source": {"type": "str", "choices": ["pull", "load", "build"], "default": "pull"},
                    "tag": {"type": "str", "default": ""},
                    "archive_reference": {"type": "str", "default": ""},
                    "vllm_version": {"type": "str", "default": ""},
                },
            },
            "cpu_kv_cache_gib": {"type": "int", "default": 1},
            "path": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        plan, shown = _plan(module)
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), plan={"starts": False, "survives": False, "refusals": refusals})
    if plan.refusals:
        module.fail_json(msg=join(plan.refusals), plan=plan.as_dict(), table=shown)
    path = module.params["path"]
    if not path:
        module.exit_json(changed=False, failed=False, plan=plan.as_dict(), table=shown)
    before, after = _read(Path(path)), plan.to_json()
    if before != after and not module.check_mode:
        _write(module, Path(path), after)
    module.exit_json(
        changed=before != after,
        failed=False,
        plan=plan.as_dict(),
        table=shown,
        diff={"before": before, "after": after, "before_header": path, "after_header": path},
    )


def _plan(module: AnsibleModule) -> tuple[PlanFile, str]:
    """The plan, and its text for people."""
    params = module.params
    entry = Entry.from_dict(params["model"])
    wishes = _wishes(params)
    if params["accelerator"] == "cpu":
        cpu = plan_cpu(
            entry,
            memory_gib=memory_of_host(MEMINFO.read_text(encoding="utf-8")),
            kv_cache_gib=whole_number(variable_name("cpu_kv_cache_gib"), params["cpu_kv_cache_gib"]) or 1,
            context=wishes.context,
            sequences=wishes.max_num_seqs,
            images_per_prompt=wishes.images_per_prompt,
        )
        return cpu, cpu_table(cpu)
    model = from_entry(entry)
    engine = engines.engine(_engine_version(params["engine_image"]), is_moe=model.is_moe)
    ladder = [Entry.from_dict(other) for other in params["alternatives"]]
    found = solve(Case(model, _host(params["gpus"]), engine, variable_name), wishes, ladder)
    return found.file(), table(found)


def _engine_version(image: dict[str, Any]) -> str:
    """Version of vLLM in the image, by the rule of role engine_image; raises RefusalError where nothing tells it."""
    if image["source"] == "build":
        return versions.DEPLOYED
    wanted = Wanted(**{**image, "tag": image["tag"] or versions.DEPLOYED})
    if unknown := unknown_version(wanted):
        raise RefusalError(unknown)
    return vllm_version(wanted)


def _wishes(params: dict[str, Any]) -> Wishes:
    def number(attribute: str, least: int = 1) -> int | None:
        return whole_number(variable_name(attribute), params[attribute], least)

    return Wishes(
        context=number("context"),
        concurrent_requests=number("concurrent_requests") or 1,
        max_pixels=number("max_pixels"),
        images_per_prompt=number("images_per_prompt", least=0),
        tensor_parallel_size=number("tensor_parallel_size"),
        gpu_memory_utilization=fraction(variable_name("gpu_memory_utilization"), params["gpu_memory_utilization"]),
        kv_cache_dtype=None if params["kv_cache_dtype"] == "auto" else params["kv_cache_dtype"],
        max_num_seqs=number("max_num_seqs"),
        max_num_batched_tokens=number("max_num_batched_tokens"),
    )


def _host(told: list[dict[str, Any]]) -> gpus.Host:
    """The GPUs: as told, else as the host has them."""
    return gpus.from_facts(told) if told else gpus.from_host(read_gpus(this_machine()))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _write(module: AnsibleModule, path: Path, text: str) -> None:
    """Replace the file in one step, so that an interrupted run leaves the old plan or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".plan-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).chmod(0o644)
    module.atomic_move(temporary, str(path))


if __name__ == "__main__":
    main()
