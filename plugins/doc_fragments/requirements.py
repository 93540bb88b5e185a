"""Documentation of what a plan may be required to hold, made from the table in module_utils/planner/requirements.py."""

from __future__ import annotations

import json

from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import REQUIREMENTS


class ModuleDocFragment:
    """Option ``requirements`` of module vram_plan."""

    # JSON is YAML.
    DOCUMENTATION = json.dumps(
        {
            "options": {
                "requirements": {
                    "description": ["What the service must do, and which settings are already decided."],
                    "type": "dict",
                    "suboptions": {row.name: {"description": [row.help], **row.option()} for row in REQUIREMENTS},
                }
            }
        }
    )
