"""check_role.py CHECK HOME RELEASE RESULT...: what a role that checks a release does to a host."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import now
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic

check, home, release, *results = sys.argv[1:]
folder = Path(home, "reports", release)
folder.mkdir(parents=True, exist_ok=True)
ok = check not in os.environ.get("BAD_CHECKS", "").split()
one = Verdict(release, (Check(f"{check}_c", ok, message="bad"),), started=now(), finished=now())
write_atomic(folder / f"{check}.json", one.to_json())
texts = {Path(name).stem: (folder / name).read_text() if (folder / name).is_file() else None for name in results}
whole = combine(release, texts)
write_atomic(folder / "verdict.json", whole.to_json())
sys.exit(0 if whole.ok else 1)
