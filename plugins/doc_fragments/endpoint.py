"""Documentation that the modules that query a server share; module_utils/checks/endpoint.py has the arguments."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of every module that asks a server, and what all of them do."""

    DOCUMENTATION = r"""
notes:
  - Every error of server, driver, tool or Docker is reported as a named failure.
  - C(failed) follows the verdict, unless O(fail_on_verdict=false).
  - A report describes a run and does not change the host, so the module never reports C(changed).
options:
  base_url:
    description: Address of the API up to and including C(/v1).
    type: str
    required: true
  api_key_file:
    description:
      - File on the host that holds the API key; the key itself appears in no argument, output or report.
      - Without it the server is asked without a key.
    type: path
  model:
    description: Served name of the model that must be there. Empty takes the only one that is served.
    type: str
    default: ""
  release:
    description: Identifier of the release under test, written into the report.
    type: str
    required: true
  report_path:
    description:
      - Where to write the result as JSON, mode 0640; the folder must exist. A former result is removed first.
      - Without it nothing is written.
    type: path
  fail_on_verdict:
    description: Whether a verdict that is not ok makes the task fail.
    type: bool
    default: true
"""
