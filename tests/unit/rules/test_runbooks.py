"""Every failure that names a runbook has one, and what a runbook tells an operator to type exists."""

from __future__ import annotations

import re

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils.checks import stability as stability_run
from ansible_collections.inference.vllm.plugins.module_utils.checks import verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import run as benchmark_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import run as smoke_run
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import judge as vram_judge
from support.paths import ROOT

FOLDER = ROOT / "docs" / "runbooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
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


@pytest.mark.parametrize(
    "failures", [smoke_run.FAILURES, vram_judge.FAILURES, stability_run.FAILURES, benchmark_run.FAILURES]
)
def test_every_failure_of_a_check_has_one(failures: dict[str, str]) -> None:
    assert set(failures) <= set(NAMES)


@pytest.mark.parametrize("results", [{"smoke": None}, {"smoke": "{"}])
def test_every_failure_of_a_result_has_one(results: dict[str, str | None]) -> None:
    (check,) = verdict.combine("r", results).checks
    assert check.runbook in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_the_message_that_the_operator_sees(name: str) -> None:
    title, _, quote = text_of(name).splitlines()[:3]
    assert title == f"# {name}"
    assert quote.startswith((f"> {name}: ", f"> [{name}] "))


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


def test_the_list_is_complete() -> None:
    assert set(re.findall(r"\]\((\w+)\.md\)", text_of("README"))) == set(NAMES)
