"""Digests of the questions, to check whether the shipped model was trained on the current smoke test."""

from __future__ import annotations

import hashlib
import json

from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import Case, messages
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.images import IMAGES


def question(case: Case) -> str:
    """Short digest of the inputs of a case: texts, tools, schema, and descriptions of its images."""
    seen = [messages(case, lambda name: repr(IMAGES[name])), case.tools, case.schema]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
