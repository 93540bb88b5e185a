"""result.py RELEASE CODE ...: print the result of a check, written by the code that the checks write it with.

The release gets one check named greeting that is ok, and one of each CODE that is not.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "collections"))

from ansible_collections.inference.vllm.plugins.module_utils.checks.results import CheckResult
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check

release, *codes = sys.argv[1:]
failed = [Check(code, False, message=f"wrong_answer: {code} was wrong", runbook="wrong_answer") for code in codes]
sys.stdout.write(CheckResult(release, (Check("greeting", True, message="hello"), *failed)).to_json())
