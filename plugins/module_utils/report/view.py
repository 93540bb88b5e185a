"""Content of the report of a release: computed here, so that the template only renders it.

The input is the text of the files that exist; the output is a view of strings, booleans and lists of them. Without any
file there is a report as well, which states that nothing was proven.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import HTTP_STATUS
from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import CHECKS
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import CheckResult
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import extended
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case
from ansible_collections.inference.vllm.plugins.module_utils.columns import columns
from ansible_collections.inference.vllm.plugins.module_utils.contracts import CONTRACTS, VERSION_KEY, Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.report import criteria as report_criteria
from ansible_collections.inference.vllm.plugins.module_utils.report import load as report_load
from ansible_collections.inference.vllm.plugins.module_utils.report import memory as report_memory
from ansible_collections.inference.vllm.plugins.module_utils.report import runbooks

# Part of the report, file that it comes from. The verdict's own files are not among them.
SECTIONS = (("Release", "manifest.json"), ("Engine image", "image.json"), ("Plan", "plan.json"))
# Details of a result that the report shows in addition to its checks.
DETAILS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "vram": report_memory.view,
    "stability": report_load.stability,
    "benchmark": report_load.benchmark,
}
# All files that a report is made of.
FILES = (*(name for _, name in SECTIONS), *(check.file for check in CHECKS), "verdict.json")
NOTHING = "-"
Result = TypeVar("Result", bound=CheckResult)
_PALETTE_COLOURS = 256
_EXACT_BELOW = 10.0
_LEAST_SHARE = 2.0
# Order of the checks in the table: what needs attention comes first.
_RANKS = ("failed", "warning", "ok")


# --- Small parts ----------------------------------------------------------------------------------------------------


def picture_url(name: str) -> str:
    """A smoke test's picture as a `data:` URL, pixel for pixel the same and as short as PNG allows.

    Raises:
        KeyError: No picture has that name.
        ImportError: Pillow is not installed.
    """
    image = extended.draw(name)
    if image.getcolors(_PALETTE_COLOURS):
        image = image.quantize(_PALETTE_COLOURS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pictures(case: Case | None) -> list[dict[str, str]]:
    """The pictures of a case; none without Pillow."""
    try:
        return [{"name": name, "url": picture_url(name)} for name in case.images] if case else []
    except ImportError:
        return []


def text_of(value: Any) -> str:
    """A JSON value as text for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return NOTHING
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(map(str, value)) or NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def rows_of(data: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, str]]:
    """Every value in nested mappings as a row; the label is the path to it. A mapping in a list is one row."""
    for key, value in data.items():
        if key == VERSION_KEY:
            continue
        label = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from rows_of(value, f"{label}.")
        elif _is_table(value):
            for number, item in enumerate(value):
                cells = (f"{name} {text_of(cell)}" for name, cell in item.items() if cell is not None)
                yield {"label": f"{label}[{number}]", "value": ", ".join(cells)}
        else:
            yield {"label": label, "value": text_of(value)}


def _is_table(value: Any) -> bool:
    return bool(value) and isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value)


def seconds_of(seconds: float) -> str:
    """A duration with its significant digits."""
    return f"{seconds:.2f} s" if seconds < _EXACT_BELOW else f"{seconds:.0f} s"


def parse(name: str, text: str | None) -> dict[str, Any]:
    """The content of a file; for a file that cannot be read, the reason under ``unreadable``."""
    if text is None:
        return {}
    try:
        return CONTRACTS[name].from_json(text, name).as_dict()
    except RefusalError as error:
        return {"unreadable": " ".join(refusal.message for refusal in error.refusals)}


# --- The verdict ----------------------------------------------------------------------------------------------------


def verdict_of(release: str, files: Mapping[str, str]) -> Verdict:
    """The stored verdict; if there is none of this release, the verdict over the results."""
    # The other checks run only after the first one was good.
    present = [check for check in CHECKS if check is CHECKS[0] or check.file in files]
    results = {check.name: files.get(check.file) for check in present}
    try:
        stored = Verdict.from_json(files.get("verdict.json"), "verdict.json")
    except RefusalError:
        return combine(release, results)
    return stored if stored.release == release else combine(release, results)


def result_of(release: str, files: Mapping[str, str], kind: type[Result], name: str) -> Result | None:
    """A result of this release; None if there is none that can be read."""
    try:
        result = kind.from_json(files.get(name), name)
    except RefusalError:
        return None
    return result if result.release == release else None


def _headline(verdict: Verdict) -> str:
    deciding = [check for check in verdict.checks if check.decides]
    good = sum(check.ok for check in deciding)
    if verdict.ok:
        return f"All {len(deciding)} checks passed"
    return f"{len(deciding) - good} of {len(deciding)} checks failed"


def _status(check: Check) -> str:
    return "ok" if check.ok else "failed" if check.decides else "warning"


def _rank(check: Check) -> int:
    return _RANKS.index(_status(check))


def _check_view(check: Check, slowest: float) -> dict[str, Any]:
    case = next((case for case in extended.ALL_CASES if case.code == check.code), None)
    return {
        "code": check.code,
        "status": _status(check),
        "seconds": seconds_of(check.seconds) if check.seconds else NOTHING,
        "share": _share(check.seconds, slowest),
        "message": check.message,
        "shown": _seen(check) if case and check.ok else check.message,
        "asked": case.prompt if case else "",
        "pictures": _pictures(case),
        "seen": _seen(check),
    }


def _share(seconds: float, slowest: float) -> str:
    """Length of a bar in percent; empty for a duration that is too short to be seen."""
    share = 100 * seconds / slowest if slowest else 0.0
    return f"{share:.1f}" if share >= _LEAST_SHARE else ""


def _seen(check: Check) -> str:
    """The value of a check with its unit."""
    if check.unit == HTTP_STATUS:
        return f"HTTP {check.value}"
    if check.unit and check.value is not None:
        limit = f" of {check.limit}" if check.limit else ""
        return f"{check.value}{limit} {check.unit}"
    return text_of(check.value)


def _problems(verdict: Verdict) -> list[dict[str, Any]]:
    """Each failure once, with its runbook and the checks that have it."""
    by_name: dict[str, list[Check]] = {}
    for check in verdict.failures:
        by_name.setdefault(check.runbook or "failed", []).append(check)
    return [
        {
            "name": name,
            "checks": [check.code for check in checks],
            "found": [{"code": check.code, "message": check.message.removeprefix(f"{name}: ")} for check in checks],
            **_runbook(name),
        }
        for name, checks in by_name.items()
    ]


def _runbook(name: str) -> dict[str, str]:
    """The summary, path and text of a runbook, or a note that there is none."""
    runbook = runbooks.find(name)
    if runbook is None:
        return {"summary": "There is no runbook. The message of the check gives the reason.", "path": "", "text": ""}
    return {"summary": runbook.summary.replace("`", ""), "path": f"docs/runbooks/{name}.md", "text": runbook.body}


# --- How to ask -----------------------------------------------------------------------------------------------------


def _example_case(verdict: Verdict) -> Case | None:
    """The question with the smallest picture that the model answered correctly.

    None without Pillow.
    """
    cases = [case for case in CASES if case.kind == "chat" and len(case.images) == 1]
    proven = {check.code for check in verdict.checks if check.ok}
    try:
        return min(
            [case for case in cases if case.code in proven] or cases,
            key=lambda case: len(picture_url(case.images[0])),
        )
    except ImportError:
        return None


def curl_of(verdict: Verdict, key_file: str) -> str:
    """A shell command for the host that sends a question about a picture.

    The key is piped from its file to curl, so it is neither in the command nor in the list of processes.
    Without Pillow the question has no picture; without a model that a server reported there is no command.
    """
    if not (verdict.engine.get("base_url") and verdict.engine.get("model")):
        return ""
    case = _example_case(verdict)
    model = text_of(verdict.engine.get("model"))
    if case:
        request = smoke_cases.request(case, model, picture_url)
    else:
        request = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}
    address = shlex.quote(f"{text_of(verdict.engine.get('base_url'))}/chat/completions")
    lines = [
        f"curl --silent --show-error {address} \\",
        "  --header 'Content-Type: application/json' \\",
        f"  --data {shlex.quote(json.dumps(request, ensure_ascii=True))}",
    ]
    if key_file:
        lines[0] = (
            f"$(command -v sudo) sed 's/^/Authorization: Bearer /' {shlex.quote(key_file)} |\n"
            f"  curl --silent --show-error --header @- {address} \\"
        )
    return "\n".join(lines)


# --- The report -----------------------------------------------------------------------------------------------------


def paths_of(folders: Iterable[str]) -> list[str]:
    """The files of a report in each of the folders, in whichever of them they are."""
    return [f"{folder}/{name}" for folder in folders for name in FILES]


def files_of(read: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name to text of the files that module read_files found."""
    return {PurePosixPath(str(file["path"])).name: str(file["text"]) for file in read if file["text"] is not None}


def view(
    files: Mapping[str, str], release: str, host: str, key_file: str, folder: str, *, again: str = ""
) -> dict[str, Any]:
    """Everything that the report shows.

    Args:
        files: Name to text of those files of the chain that exist.
        release: Identifier of the release.
        host: Name of the host in the inventory.
        key_file: File on the host that holds the API key; empty for a server without one.
        folder: Folder on the host that holds the report.
        again: Command that runs the checks again; empty for the command for a host of the inventory.

    Returns:
        A mapping of strings, booleans, and lists and mappings of these.
    """
    verdict = verdict_of(release, files)
    parsed = {name: parse(name, files.get(name)) for _, name in SECTIONS}
    # The host's own image.json and plan.json may already be those of a later release.
    parsed |= {
        f"{part}.json": parsed["manifest.json"].pop(part)
        for part in ("image", "plan")
        if part in parsed["manifest.json"]
    }
    flags = parsed["manifest.json"].pop("flags", None) or parsed["plan.json"].get("flags") or {}
    parsed["plan.json"].pop("flags", None)
    results = {check.name: result_of(release, files, check.result, check.file) for check in CHECKS}
    slowest = max((check.seconds for check in verdict.checks), default=0.0)
    return {
        "release": release,
        "host": host,
        "ok": verdict.ok,
        "headline": _headline(verdict),
        "started": text_of(verdict.started),
        "finished": text_of(verdict.finished),
        "total": seconds_of(sum(check.seconds for check in verdict.checks)),
        "address": text_of(verdict.engine.get("base_url")),
        "model": text_of(verdict.engine.get("model")),
        "version": text_of(verdict.engine.get("version")),
        "problems": _problems(verdict),
        "checks": [_check_view(check, slowest) for check in sorted(verdict.checks, key=_rank)],
        "criteria": report_criteria.criteria(verdict.checks, getattr(results["vram"], "source", "none")),
        "titles": {check.name: check.title for check in CHECKS},
        **{name: show(results[name]) if results[name] else None for name, show in DETAILS.items()},
        "sections": [
            {"title": "Engine", "file": CHECKS[0].file, "rows": list(rows_of(verdict.engine))},
            {"title": "Flags", "file": "manifest.json", "rows": list(rows_of(flags) if flags else ())},
            *({"title": title, "file": name, "rows": list(rows_of(parsed[name]))} for title, name in SECTIONS),
        ],
        "curl": curl_of(verdict, key_file),
        "again": again or f"ansible-playbook playbooks/verify.yml --limit {shlex.quote(host)}",
        "files": ", ".join(["verdict.json", *(check.file for check in CHECKS), "junit.xml"]),
        "folder": folder,
        "path": f"{folder}/report.html",
    }


def html(seen: Mapping[str, Any], template: str, style: str) -> str:
    """The view as a page. Everything that is put in is escaped: models, servers and files are not trusted.

    Ansible's own templating does not do this; there, even an autoescape block has no effect.

    Args:
        seen: What `view` returns.
        template: Text of the page's Jinja template.
        style: Text of its style sheet, which alone is not escaped: it comes from this project.

    Raises:
        jinja2.UndefinedError: The template asks for something that the view does not hold.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(report=seen, style=style) + "\n"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def text(seen: Mapping[str, Any]) -> str:
    """The view as plain text for the end of a play: table, address, command, path of the report."""
    lines = [("CHECK", "RESULT", "TIME", "SEEN")]
    for check in seen["checks"]:
        result = check["status"] if check["status"] == "ok" else check["status"].upper()
        what = check["seen"] if check["status"] == "ok" else check["message"]
        lines.append((check["code"], result, check["seconds"], _short(what, 70 if check["status"] == "ok" else 160)))
    proven = "PROVEN" if seen["ok"] else "NOT PROVEN"
    return "\n".join(
        [
            f"{proven}: {seen['headline']}, release {seen['release']} on {seen['host']}",
            "",
            *columns(lines),
            "",
            f"Service  {seen['address']} on {seen['host']}, model {seen['model']}, vLLM {seen['version']}",
            f"Report   {seen['path']} on {seen['host']}",
            *(f"Runbook  {problem['path']}" for problem in seen["problems"] if problem["path"]),
            *(["", f"To ask about an image, paste this on {seen['host']}:", "", seen["curl"]] if seen["curl"] else []),
        ]
    )
