"""Says whether the shipped model was taught the questions that the smoke test asks today."""

from __future__ import annotations

import hashlib
import json

from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import Case, messages
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.images import IMAGES


def question(case: Case) -> str:
    """A short digest of all that the model sees of a case: texts, tools, schema, and how its pictures are drawn."""
    seen = [messages(case, lambda name: repr(IMAGES[name])), case.tools, case.schema]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
