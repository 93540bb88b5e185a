"""Arguments that all modules that check a server share: its address and its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import summary
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.api_keys import reason_invalid

# Arguments of every module that asks a server.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "base_url": {"type": "str", "required": True},
    "api_key_file": {"type": "path", "no_log": False},
    "model": {"type": "str", "default": ""},
    "release": {"type": "str", "required": True},
    "report_path": {"type": "path"},
    "fail_on_verdict": {"type": "bool", "default": True},
}


def refusals_of(params: dict[str, Any], least: dict[str, float]) -> list[Refusal]:
    """All errors in the arguments.

    Args:
        params: The module's parameters.
        least: Minimum of each number.
    """
    url = urlsplit(params["base_url"])
    report = params["report_path"]
    found: list[Refusal] = []
    if url.scheme not in ("http", "https") or not url.hostname or not url.path.rstrip("/").endswith("/v1"):
        found.append(
            Refusal(
                "bad_base_url",
                f"base_url is {params['base_url']!r}; it must be an address like http://127.0.0.1:8000/v1.",
                "Set scheme, host, port and the path /v1.",
            )
        )
    for name, lowest in least.items():
        if params[name] < lowest:
            found.append(
                Refusal("bad_number", f"{name} is {params[name]}; the minimum is {lowest}.", f"Set {name} higher.")
            )
    if not params["release"].strip():
        found.append(Refusal("no_release", "release is empty.", "Set it to the identifier of the release under test."))
    if report and not Path(report).parent.is_dir():
        found.append(
            Refusal(
                "no_report_folder",
                f"report_path is {report!r}, and its folder does not exist.",
                "Create the folder first.",
            )
        )
    return found


def read_key(path: str | None) -> str:
    """The key of a file; empty without a file.

    Raises:
        RefusalError: The file is missing, unreadable, empty, or holds more than one line of ASCII.
    """
    if path is None:
        return ""
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds bytes that are not ASCII"
        raise RefusalError(
            Refusal(
                "api_key_file_unreadable",
                f"api_key_file is {path!r}, and cannot be read: {reason}.",
                "Set it to the file from which the service reads its key; playbooks/serve.yml creates it.",
            )
        ) from None
    if reason := reason_invalid(key):
        raise RefusalError(
            Refusal(
                "api_key_file_unusable",
                f"api_key_file is {path!r}, and does not hold an API key: {reason}.",
                "Remove the file and run playbooks/serve.yml, which creates a new key.",
            )
        )
    return key


def key_of(params: dict[str, Any], least: dict[str, float]) -> str:
    """The key, after all arguments were validated.

    Raises:
        RefusalError: The arguments or the key file cannot be used; names all reasons.
    """
    found = refusals_of(params, least)
    key = ""
    try:
        key = read_key(params["api_key_file"])
    except RefusalError as error:
        found.extend(error.refusals)
    if found:
        raise RefusalError(*found)
    return key


def result_of(verdict: Verdict, report_path: str | None, fail: bool) -> dict[str, Any]:
    """Return value of the module. A failure contains only the failed checks, because Ansible prints all of it."""
    where = f"\nReport: {report_path}" if report_path else ""
    failed = fail and not verdict.ok
    return {
        "changed": False,
        "failed": failed,
        "msg": summary(verdict) + where,
        "failures": [check.code for check in verdict.failures],
        **({} if failed else {"verdict": verdict.as_dict()}),
    }
