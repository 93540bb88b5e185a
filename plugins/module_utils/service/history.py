"""The releases of a host: which one is current, which were proven, and which one a rollback starts.

Reads ``releases/<id>/manifest.json``, the content of a release, and ``reports/<id>/verdict.json``, the result of its
last proof. Writes nothing.
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

VERDICT, PROOF, STATE = "verdict.json", "proof.json", "state.json"
PROVEN, FAILED, PREPARED = "proven", "failed", "prepared"


@dataclass(frozen=True)
class Past:
    """One release of the host.

    Attributes:
        id: Its identifier.
        current: Whether the link ``current`` points to it.
        state: ``proven`` if a full proof of it is on record, also if it failed later; else ``failed`` if its last
            verdict is bad, and ``prepared`` if it was never proven.
        finished: End of its last proof, UTC, ISO 8601; empty if there was none.
        failures: Codes of the checks that failed in its last proof.
        model: Name of the model's entry in the catalogue.
        commit: Revision of the weights.
        image: Reference of the engine's image.
        problems: Differences between its folder and its manifest; a release with any is never started.
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


def history(home: Path) -> list[Past]:
    """All releases below a ``vllm_home``, newest first; a file that cannot be read counts as missing."""
    store = Store(home)
    current = store.current()
    return [
        _past(home, release_id, release_id == current, problems_of(store.path(release_id)))
        for release_id in store.ids()
    ]


def former(home: Path) -> list[str]:
    """Releases that were current, newest first, as ``state.json`` has them."""
    names = _read(home / STATE).get("former")
    return [str(name) for name in names] if isinstance(names, list) else []


def step_back(releases: Sequence[Past], former: Sequence[str] = ()) -> Past:
    """The release that was current before, else the newest one that was proven; it is whole, and not current.

    Args:
        releases: All releases, newest first.
        former: Releases that were current, newest first.

    Raises:
        RefusalError: There is none.
    """
    found = [past for past in releases if past.state == PROVEN and not past.problems and not past.current]
    if found:
        known_order = {name: place for place, name in enumerate(former)}
        return min(found, key=lambda past: known_order.get(past.id, len(former)))
    known = ", ".join(f"{past.id} ({_standing(past)})" for past in releases) or "none"
    raise RefusalError(
        Refusal(
            "no_former_release",
            f"No other release was proven on this host; it has: {known}.",
            "Correct the inventory and deploy again: a proven release becomes the current one.",
        )
    )


def chosen(home: Path, release_id: str) -> Past:
    """A release by its identifier.

    Raises:
        RefusalError: It does not exist, or its folder was edited.
    """
    Store(home).check(release_id)
    return next(past for past in history(home) if past.id == release_id)


def status_text(
    host: str,
    releases: Sequence[Mapping[str, Any]],
    containers: Sequence[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """The releases and containers of a host, and whether clients get what was proven, as lines of text.

    Args:
        host: Name of the host.
        releases: Releases in the shape of :meth:`Past.as_dict`, newest first.
        containers: Output of ``docker ps --format json``, one mapping for each container of the service.
        facts: The parts of the invariant, in the shape of :class:`state.judge.Fact`.
    """
    if not releases and not containers:
        return [f"{host}: nothing is deployed"]
    pasts = [Past(**{**past, **{key: tuple(past[key]) for key in ("failures", "problems")}}) for past in releases]
    rows = [
        ("release", "is", "last proof", "image"),
        *((p.id, _standing(p), p.finished or "-", p.image) for p in pasts),
    ]
    running = [f"container {c.get('Names')}: {c.get('Status')}, release {_release_of(c)}" for c in containers]
    failed = [f"{past.id} failed: {', '.join(past.failures)}" for past in pasts if past.failures]
    parts = columns([(fact["name"], "ok" if fact["holds"] else "NOT OK", fact["found"]) for fact in facts])
    return [f"{host}:", *columns(rows), *(running or ["the service has no container"]), *failed, *parts]


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
    record = _read(home / "reports" / release_id / PROOF)
    bad = verdict is not None and not verdict.ok
    state = PROVEN if record.get("release") == release_id else FAILED if bad else PREPARED
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
