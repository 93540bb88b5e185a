"""Common part of the modules that check a server: arguments, result file and return value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.inference.vllm.plugins.module_utils.checks import endpoint
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Target
from ansible_collections.inference.vllm.plugins.module_utils.contracts import ManifestFile, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError, join

Plan = TypeVar("Plan")
Value = TypeVar("Value")
Params = dict[str, Any]
Files = Iterable[tuple[Path, str]]


def run(
    arguments: Mapping[str, Mapping[str, Any]],
    prepare: Callable[[Params], tuple[Target, Plan]],
    ask: Callable[[Params, Target, Plan], tuple[Verdict, Files]],
    *,
    unsent: str = "",
    library: str = "openai",
    outputs: Iterable[str] = ("report_path",),
) -> None:
    """Run a module.

    Args:
        arguments: Its arguments.
        prepare: Validates the arguments, and returns the server and what else ``ask`` needs. May raise
            RefusalError.
        ask: Runs the check, and returns the verdict and the files to write. May raise ImportError; the
            files may raise OSError as they are taken.
        unsent: Message of check mode, which then does not run the check; empty if check mode runs it.
        library: Missing library if an ImportError does not name one.
        outputs: Arguments with the path of a file that is written. Check mode writes none, so it needs no folder; the
            task that makes it has only been predicted.
    """
    module = AnsibleModule(dict(arguments), supports_check_mode=True)
    params: Params = module.params | (dict.fromkeys(outputs) if module.check_mode else {})
    try:
        for name in outputs:
            if params[name]:
                # An old result must not count as a new one, however this run ends.
                Path(params[name]).unlink(missing_ok=True)
        target, plan = prepare(params)
    except RefusalError as error:
        module.fail_json(join(error.refusals), refusals=[refusal.as_dict() for refusal in error.refusals])
    except OSError as error:
        module.fail_json(f"cannot remove {error.filename}: {error.strerror}")
    if module.check_mode and unsent:
        module.exit_json(changed=False, msg=f"check mode: {unsent}")
    if target.api_key:
        module.no_log_values.add(target.api_key)
    try:
        verdict, files = ask(params, target, plan)
    except ImportError as error:
        module.fail_json(missing_required_lib(error.name or library))
    try:
        for path, text in files:
            write_atomic(path, text)
    except OSError as error:
        module.fail_json(f"cannot write {error.filename}: {error.strerror}", verdict=verdict.as_dict())
    module.exit_json(**endpoint.result_of(verdict, params["report_path"], params["fail_on_verdict"]))


def target_of(params: Params, least: dict[str, float]) -> Target:
    """The server that the arguments describe.

    Raises:
        RefusalError: The arguments or the key file cannot be used; names all reasons.
    """
    key = endpoint.key_of(params, least)
    return Target(params["base_url"].rstrip("/"), key, params["model"], timeout=params["timeout"])


def report_of(params: Params, text: str) -> Files:
    """The report as a file to write; empty without a path."""
    return [(Path(params["report_path"]), text)] if params["report_path"] else []


def from_manifest(path: str, of: Callable[[ManifestFile], Value]) -> Value:
    """What ``of`` makes of a manifest.json.

    Raises:
        RefusalError: It is missing, unreadable, or no manifest.
    """
    try:
        return of(ManifestFile.from_json(Path(path).read_text(encoding="utf-8", errors="replace"), path))
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}."
    except RefusalError as error:
        reason = " ".join(refusal.message for refusal in error.refusals)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path} has no complete plan and flags ({type(error).__name__}: {error})."
    fix = "Set manifest_path to the manifest.json of the release that runs; playbooks/serve.yml writes it."
    raise RefusalError(Refusal("manifest_unusable", f"manifest_path cannot be used: {reason}", fix))
