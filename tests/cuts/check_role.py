"""check_role.py CHECK HOME RELEASE RESULT...: what a role that checks a release does to a host."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import RESULTS
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import now
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic

TESTS = Path(__file__).resolve().parents[1]

check, home, release, *results = sys.argv[1:]
folder = Path(home, "reports", release)
folder.mkdir(parents=True, exist_ok=True)
ok = check not in os.environ.get("BAD_CHECKS", "").split()
# A real result; only its release, its checks and its time matter here.
sample = TESTS / "unit/fixtures/schema_0" / f"cpu_{check}.json"
real = RESULTS[f"{check}.json"].from_json(sample.read_text(encoding="utf-8"), str(sample))
checks = (Check(f"{check}_c", ok, message="bad"),)
write_atomic(folder / f"{check}.json", replace(real, release=release, checks=checks, finished=now()).to_json())
texts = {Path(name).stem: (folder / name).read_text() if (folder / name).is_file() else None for name in results}
whole = combine(release, texts)
write_atomic(folder / "verdict.json", whole.to_json())
sys.exit(0 if whole.ok else 1)
