"""Every failure that names a runbook has one, and what a runbook tells an operator to type exists."""

from __future__ import annotations

import re

import pytest
import yaml
from docs._generate.runbooks import SYMPTOMS

from ansible_collections.inference.vllm.plugins.module_utils.checks import failures
from ansible_collections.inference.vllm.plugins.module_utils.checks.combine import combine
from ansible_collections.inference.vllm.plugins.module_utils.report import runbooks
from support.paths import ROOT

FOLDER = ROOT / "docs" / "runbooks"
NAMES = runbooks.names()
CODE = [
    path.read_text(encoding="utf-8")
    for root in ("plugins", "roles", "playbooks")
    for path in (ROOT / root).rglob("*")
    if path.suffix in (".py", ".yml", ".sh", ".j2")
]
VARIABLES = {
    name
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values()
    for name in entry["options"]
}
ROLES = tuple(f"{path.name}_" for path in (ROOT / "roles").iterdir())


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_every_failure_of_a_check_has_one() -> None:
    assert set(NAMES) >= failures.NAMES


@pytest.mark.parametrize("results", [{"smoke": None}, {"smoke": "{"}])
def test_every_failure_of_a_result_has_one(results: dict[str, str | None]) -> None:
    (check,) = combine("r", results).checks
    assert check.runbook in failures.NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_operator_sees_and_what_that_means(name: str) -> None:
    runbook = runbooks.parse(text_of(name))
    assert runbook.name == name
    assert runbook.message.startswith((f"{name}: ", f"[{name}] "))
    assert runbook.symptoms
    assert len(runbook.summary) > 20
    assert runbook.summary.endswith(".")


def test_each_symptom_leads_to_a_runbook() -> None:
    assert {symptom for name in NAMES for symptom in runbooks.parse(text_of(name)).symptoms} == set(SYMPTOMS)


@pytest.mark.parametrize(
    "text", ["", "# x\n\n> x: y\n\nNo symptoms.\n", "---\nsymptoms: [slow]\n---\n\n# x\n\nNo message.\n"]
)
def test_another_page_is_no_runbook(text: str) -> None:
    with pytest.raises(ValueError, match="not a runbook"):
        runbooks.parse(text)


@pytest.mark.parametrize("name", ["README", "../runbooks/slower", "slower.md", "", "no_such"])
def test_only_the_name_of_a_runbook_finds_one(name: str) -> None:
    assert runbooks.find("slower")
    assert runbooks.find(name) is None


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_verified_by_the_playbook_that_reads_every_byte(name: str) -> None:
    """``weights.yml`` reads again only files that look changed."""
    assert "playbooks/weights.yml" not in text_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_same_sections_as_the_others(name: str) -> None:
    assert re.findall(r"^## .*", text_of(name), re.MULTILINE) == ["## Diagnose", "## Fix"]


@pytest.mark.parametrize("name", NAMES)
def test_the_code_uses_its_name(name: str) -> None:
    stem = name.removeprefix("result_")
    assert any(re.search(rf"[\"\[]({name}|{stem})[\"\]]", text) for text in CODE)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_tells_to_use_exists(name: str) -> None:
    text = text_of(name)
    for word in re.findall(r"`([a-z]\w+)(?:: [^`]*)?`", text):
        assert not word.startswith(ROLES) or word in VARIABLES | {role.rstrip("_") for role in ROLES}, word
    for playbook in re.findall(r"ansible-playbook (\S+)", text):
        assert (ROOT / playbook).is_file(), playbook
    for link in re.findall(r"\]\((\w+)\.md\)", text):
        assert link in NAMES, link
