#!/usr/bin/python
"""Combine the results of all checks of a release into one verdict, or read the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import exit_code, junit, summary
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError, join

DOCUMENTATION = r"""
module: verdict
short_description: Combine the results of all checks of a release into one verdict, or read the verdict
version_added: 0.1.0
author:
  - The project's contributors (!UNKNOWN)
description:
  - With O(results), reads these files, combines their checks and writes O(path). A file that is missing, broken, empty
    or of another release becomes a failed check, so that nothing unproven counts as good.
  - Without O(results), reads O(path) and fails unless it is good, as a gate before a later step.
  - C(failed) follows from the verdict, unless O(fail_on_verdict=false).
  - A verdict describes a run and is not part of the state of the host, so the module never reports C(changed).
options:
  release:
    description: Identifier of the release that is judged.
    type: str
    required: true
  path:
    description: The C(verdict.json) of the release, mode 0640; the folder must exist.
    type: path
    required: true
  results:
    description: Result files of the checks, such as C(smoke.json). Each must be there.
    type: list
    elements: path
  junit_path:
    description: Where to write the verdict as JUnit XML as well.
    type: path
  fail_on_verdict:
    description: Whether a verdict that is not ok makes the task fail.
    type: bool
    default: true
attributes:
  check_mode:
    description: Reads the files, and writes nothing.
    support: full
  diff_mode:
    description: Nothing on the host changes but the report.
    support: none
"""

EXAMPLES = r"""
- name: Judge the release by its smoke test
  inference.vllm.verdict:
    release: 20260101-4f2c
    path: /opt/vllm/reports/20260101-4f2c/verdict.json
    results:
      - /opt/vllm/reports/20260101-4f2c/smoke.json

- name: Stop here if the release was not proven
  inference.vllm.verdict:
    release: 20260101-4f2c
    path: /opt/vllm/reports/20260101-4f2c/verdict.json
"""

RETURN = r"""
verdict:
  description: The verdict in the shape of C(verdict.json).
  returned: when there is a verdict that can be read and the task did not fail
  type: dict
failures:
  description: Codes of the checks that make the verdict not ok.
  returned: when there is a verdict that can be read
  type: list
  elements: str
exit_code:
  description: V(0) good, V(1) not good, V(2) there is no verdict that can be read. For scripts that drive the playbook.
  returned: always
  type: int
"""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "release": {"type": "str", "required": True},
    "path": {"type": "path", "required": True},
    "results": {"type": "list", "elements": "path"},
    "junit_path": {"type": "path"},
    "fail_on_verdict": {"type": "bool", "default": True},
}


def _text_of(path: Path) -> str | None:
    """Text of a file; None if there is none. Bytes that are not text become a text that is no verdict."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def judged(release: str, path: Path, results: list[str] | None) -> Verdict:
    """The verdict over the results, or the stored one.

    Raises:
        RefusalError: There is no stored verdict, it cannot be read, or it is of another release.
        OSError: A file cannot be opened.
    """
    if results is not None:
        return combine(release, {Path(item).stem: _text_of(Path(item)) for item in results})
    verdict = Verdict.from_json(_text_of(path), str(path))
    if verdict.release != release:
        problem = f"{path} is of release {verdict.release}, not of {release}."
        raise RefusalError(Refusal("other_release", problem, Verdict.REMEDY))
    return verdict


def main() -> None:
    """Run the module."""
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    params = module.params
    path = Path(params["path"])
    try:
        verdict = judged(params["release"], path, params["results"])
        if params["results"] is not None and not module.check_mode:
            write_atomic(path, verdict.to_json())
        if params["junit_path"] and not module.check_mode:
            write_atomic(Path(params["junit_path"]), junit(verdict))
    except RefusalError as error:
        module.fail_json(join(error.refusals), exit_code=exit_code(None))
    except OSError as error:
        module.fail_json(f"{error.filename}: {error.strerror}", exit_code=exit_code(None))
    failed = params["fail_on_verdict"] and not verdict.ok
    # A failure contains only the failed checks, because Ansible prints all of it.
    module.exit_json(
        changed=False,
        failed=failed,
        msg=f"{summary(verdict)}\nReport: {path.parent}",
        failures=[check.code for check in verdict.failures],
        exit_code=exit_code(verdict),
        **({} if failed else {"verdict": verdict.as_dict()}),
    )


if __name__ == "__main__":
    main()
