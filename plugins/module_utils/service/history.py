"""What a host remembers of its releases: which one is current, which were proven, and which one to step back to.

Read from the files that the chain leaves: ``releases/<id>/manifest.json`` says what a release is,
``reports/<id>/verdict.json`` what its last proof said. Nothing is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.columns import columns
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import MANIFEST, Store, problems_of

VERDICT = "verdict.json"
PROVEN, FAILED, PREPARED = "proven", "failed", "prepared"


@dataclass(frozen=True)
class Past:
    """One release as the host knows it.

    Attributes:
        id: Its identifier.
        current: Whether the link ``current`` points to it.
        state: ``proven`` or ``failed`` as its last verdict says, ``prepared`` where it was never proven.
        finished: End of its last proof, UTC, ISO 8601; empty where there was none.
        failures: Codes of the checks that failed in its last proof.
        model: Name of the model's entry in the catalogue.
        commit: Revision of the weights.
        image: Reference of the engine's image.
        problems: What in its folder differs from the day it was written; such a release is never started.
    """

    id: str
    current: bool
    state: str
    finished: str = ""
    failures: tuple[str, ...] = ()
    model: str = ""
    commit: str = ""
    image: str = ""
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The release as plain data for JSON and module results."""
        return {**asdict(self), "failures": list(self.failures), "problems": list(self.problems)}


def serving_text(failed: str, current: str, healthy: Sequence[str], reason: str = "") -> str:
    """Describe which release serves after a failure, for the message of the failure.

    Args:
        failed: The release that failed.
        current: The current release; empty if no release was proven.
        healthy: Releases with a healthy container.
        reason: Why the current release did not start again; empty if it did.
    """
    if current != failed and current in healthy:
        return f"Release {current} serves again."
    names = ", ".join(filter(None, healthy))
    serves = f"Release {names} serves now." if names else "Nothing serves now."
    if not current:
        return f"{serves} No release was proven before this one."
    if current == failed:
        return f"{serves} The release that failed is the current one, so there is no other to restore."
    return (
        f"{serves} [restore_failed] Release {current} did not start again: {reason or 'Docker gave no reason'}\n"
        "Fix: correct the cause, then start a proven release: ansible-playbook playbooks/rollback.yml"
    )


def history(home: Path) -> list[Past]:
    """All releases below a ``vllm_home``, newest first; a file that cannot be read counts as missing."""
    store = Store(home)
    current = store.current()
    return [
        _past(home, release_id, release_id == current, problems_of(store.path(release_id)))
        for release_id in store.ids()
    ]


def step_back(releases: Sequence[Past]) -> Past:
    """The newest release that was proven, is whole, and is not current.

    Raises:
        RefusalError: There is none.
    """
    for past in releases:
        if past.state == PROVEN and not past.problems and not past.current:
            return past
    known = ", ".join(f"{past.id} ({_standing(past)})" for past in releases) or "none"
    raise RefusalError(
        Refusal(
            "no_former_release",
            f"No other release was proven on this host; it has: {known}.",
            "Correct the inventory and deploy: what is proven becomes current.",
        )
    )


def chosen(home: Path, release_id: str) -> Past:
    """A release by its identifier.

    Raises:
        RefusalError: It is not there, or its folder was edited.
    """
    Store(home).check(release_id)
    return next(past for past in history(home) if past.id == release_id)


def status_text(host: str, releases: Sequence[Mapping[str, Any]], containers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What an operator wants to know of a host, as lines.

    Args:
        host: Name of the host.
        releases: Releases in the shape of :meth:`Past.as_dict`, newest first.
        containers: What ``docker ps --format json`` says of each container of the service.
    """
    if not releases:
        return [f"{host}: nothing is deployed"]
    pasts = [Past(**{**past, **{key: tuple(past[key]) for key in ("failures", "problems")}}) for past in releases]
    rows = [
        ("release", "is", "last proof", "image"),
        *((p.id, _standing(p), p.finished or "-", p.image) for p in pasts),
    ]
    running = [f"container {c.get('Names')}: {c.get('Status')}, release {_release_of(c)}" for c in containers]
    failed = [f"{past.id} failed: {', '.join(past.failures)}" for past in pasts if past.failures]
    return [f"{host}:", *columns(rows), *(running or ["no container of the service is there"]), *failed]


def _standing(past: Past) -> str:
    state = "edited by hand" if past.problems else past.state
    return f"current, {state}" if past.current else state


def _release_of(container: Mapping[str, Any]) -> str:
    labels = dict(part.partition("=")[::2] for part in str(container.get("Labels", "")).split(","))
    return labels.get("inference.vllm.release", "unknown")


def _past(home: Path, release_id: str, current: bool, problems: Sequence[str]) -> Past:
    manifest = _read(home / "releases" / release_id / MANIFEST)
    verdict = _verdict(home / "reports" / release_id / VERDICT)
    model, image = (_mapping(manifest.get(key)) for key in ("model", "image"))
    state = PREPARED if verdict is None else PROVEN if verdict.ok else FAILED
    return Past(
        id=release_id,
        current=current,
        state=state,
        finished=verdict.finished if verdict else "",
        failures=tuple(check.code for check in verdict.failures) if verdict else (),
        model=str(model.get("name") or ""),
        commit=str(model.get("commit") or ""),
        image=str(image.get("reference") or ""),
        problems=tuple(problems),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _verdict(path: Path) -> Verdict | None:
    try:
        return Verdict.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except (OSError, RefusalError):
        return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
