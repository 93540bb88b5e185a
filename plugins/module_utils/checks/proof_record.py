"""Which start of a container the last full proof of its release is about, so that no release is proven twice.

``reports/<id>/proof.json`` is written after a full proof that was good. It is valid until the container is restarted
or the settings or the code of the checks change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils.checks.container import State
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Verdict
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

RECORD, VERDICT = "proof.json", "verdict.json"


@dataclass(frozen=True)
class Record:
    """A full proof.

    Attributes:
        release: The release that was proven.
        container: Name of its container.
        started: Start of that container, as Docker writes it, to the nanosecond.
        settings: Digest of the settings and the code of the checks.
        finished: End of the proof, UTC, ISO 8601.
    """

    release: str
    container: str
    started: str
    settings: str
    finished: str

    @classmethod
    def of(cls, text: str) -> Record | None:
        """Read a stored record; None if the text is not a record."""
        try:
            data = json.loads(text)
            return cls(**{item.name: str(data[item.name]) for item in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None


def stored(folder: Path) -> tuple[Record | None, Verdict | None]:
    """The record and the verdict of a folder of reports, each None if it is missing or unreadable."""
    return Record.of(_text(folder / RECORD)), _verdict(_text(folder / VERDICT))


def doubt(record: Record | None, verdict: Verdict | None, wanted: Record, state: State) -> str:
    """Why a proof is not valid for the container that runs now; empty if it is.

    Args:
        record: The last full proof.
        verdict: The last verdict on the release, possibly of some of the checks.
        wanted: The record that the proof must equal, except for its end.
        state: The container now.
    """
    judged = _judged(verdict, wanted.release)
    if judged:
        return judged
    if record is None or record.release != wanted.release:
        return "no full proof of it is on record"
    if not state.running:
        return "its container does not run"
    if (record.container, record.started) != (wanted.container, state.started):
        return f"its container was started again at {state.started}"
    if record.settings != wanted.settings:
        return "what is checked, or how, has changed"
    return ""


def _judged(verdict: Verdict | None, release: str) -> str:
    if verdict is None or verdict.release != release:
        return "it has no verdict"
    failures = ", ".join(check.code for check in verdict.failures)
    return "" if verdict.ok else f"its verdict is not good ({failures})"


def keep(folder: Path, record: Record) -> None:
    """Write the record.

    Raises:
        OSError: The folder is missing or the disk is full.
    """
    write_atomic(folder / RECORD, json.dumps(asdict(record), indent=2) + "\n")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _verdict(text: str) -> Verdict | None:
    try:
        return Verdict.from_json(text, VERDICT)
    except RefusalError:
        return None
