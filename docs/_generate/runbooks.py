"""docs/runbooks/README.md: the index of the runbooks, by symptom and by the code of the message."""

from __future__ import annotations

from docs._generate.markdown import generated, table

from ansible_collections.inference.vllm.plugins.module_utils.report import runbooks
from ansible_collections.inference.vllm.plugins.module_utils.report.runbooks import Runbook

#: Symptoms that the front matter of a runbook may name, in the order of the index, as a reader would say them.
SYMPTOMS = {
    "no answer": "Nothing answers: the connection is refused, closed, or not trusted",
    "nothing after a reboot": "Nothing answers after a reboot",
    "400": "A client gets 400",
    "401": "A client gets 401",
    "404": "A client gets 404",
    "429": "A client gets 429",
    "500": "A client gets 500",
    "502": "A client gets 502",
    "503": "A client gets 503",
    "504": "A client gets 504",
    "slow": "Answers are slow",
    "hangs": "Requests hang",
    "wrong answers": "Answers are wrong",
    "empty answers": "Answers are empty",
    "unsafe request accepted": "A request is accepted that must be refused",
    "GPU gone": "A GPU is gone, or the driver does not work",
    "out of memory": "The engine runs out of memory",
    "engine restarts": "The engine restarts",
    "engine does not start": "The engine does not start",
    "deploy stops": "A deploy stops",
    "upgrade stops": "An upgrade stops",
    "rollback stops": "A rollback stops",
    "key rotation stops": "A key rotation stops",
    "check without a result": "A check has no result",
}


def page() -> str:
    """The whole page.

    Raises:
        ValueError: A file is not a runbook, or names a symptom that is not in :data:`SYMPTOMS`.
    """
    found = [runbooks.parse((runbooks.FOLDER / f"{name}.md").read_text(encoding="utf-8")) for name in runbooks.names()]
    for runbook in found:
        if unknown := set(runbook.symptoms) - SYMPTOMS.keys():
            raise ValueError(f"docs/runbooks/{runbook.name}.md names unknown symptoms: {', '.join(sorted(unknown))}")
    parts = [
        generated("the runbooks"),
        "# Runbooks",
        "The name of a runbook is the code at the start of the message. Commands use the default `vllm_home` "
        "(`/opt/vllm`) and `vllm_project` (`vllm`) and run on the host. Playbooks run where the inventory is.",
        "## By symptom",
        table(("symptom", "runbooks"), [(text, _links(key, found)) for key, text in SYMPTOMS.items()]),
        "## By code",
        table(("message", "meaning"), [(_link(runbook), runbook.summary) for runbook in found]),
    ]
    return "\n\n".join(parts) + "\n"


def _links(symptom: str, found: list[Runbook]) -> str:
    return ", ".join(_link(runbook) for runbook in found if symptom in runbook.symptoms)


def _link(runbook: Runbook) -> str:
    return f"[{runbook.name}]({runbook.name}.md)"
