#!/usr/bin/python
"""Module: plan the memory of an engine before anything is downloaded."""

from __future__ import annotations

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
extends_documentation_fragment:
  - inference.vllm.requirements
attributes:
  check_mode:
    description: Computes the plan and says whether the file would change.
    support: full
  diff_mode:
    description: Shows the file before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
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
    requirements:
      max_model_len: 65536
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

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.contracts import PlanFile
from ansible_collections.inference.vllm.plugins.module_utils.files import FOLDER_MODE, write_atomic
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
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import options, read, variable_name
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import solve
from ansible_collections.inference.vllm.plugins.module_utils.planner.table import table
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError, join

MEMINFO = Path("/proc/meminfo")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "dict", "required": True},
            "alternatives": {"type": "list", "elements": "dict", "default": []},
            "accelerator": {"type": "str", "choices": ["nvidia", "cpu"], "default": "nvidia"},
            "gpus": {"type": "list", "elements": "dict", "default": []},
            "requirements": {"type": "dict", "apply_defaults": True, "options": options()},
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
        write_atomic(Path(path), after, mode=0o644, folder_mode=FOLDER_MODE)
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
    requirements = read(params["requirements"], variable_name)
    if params["accelerator"] == "cpu":
        cpu = plan_cpu(
            entry,
            requirements,
            memory_gib=memory_of_host(MEMINFO.read_text(encoding="utf-8")),
            kv_cache_gib=_kv_cache_gib(params["cpu_kv_cache_gib"]),
        )
        return cpu, cpu_table(cpu)
    model = from_entry(entry)
    engine = engines.engine(_engine_version(params["engine_image"]), is_moe=model.is_moe)
    ladder = [Entry.from_dict(other) for other in params["alternatives"]]
    found = solve(Case(model, _host(params["gpus"]), engine, variable_name), requirements, ladder)
    return found.file(), table(found)


def _engine_version(image: dict[str, Any]) -> str:
    """Version of vLLM in the image, by the rule of role engine_image; raises RefusalError if it is unknown."""
    if image["source"] == "build":
        return versions.DEPLOYED
    wanted = Wanted(**{**image, "tag": image["tag"] or versions.DEPLOYED})
    if unknown := unknown_version(wanted):
        raise RefusalError(unknown)
    return vllm_version(wanted)


def _kv_cache_gib(value: int) -> int:
    if value < 1:
        name = variable_name("cpu_kv_cache_gib")
        raise RefusalError(
            Refusal("impossible_value", f"{name}: {value} is not possible.", f"Set {name} to at least 1.")
        )
    return value


def _host(named: list[dict[str, Any]]) -> gpus.Host:
    """The GPUs: as named, else as the host has them."""
    return gpus.from_facts(named) if named else gpus.from_host(read_gpus(this_machine()))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    main()
