"""The generated pages are those that the program makes now, and say what the data says."""

from __future__ import annotations

import pytest
import yaml
from docs._generate import chain, models, support, variables
from docs._generate.markdown import prose, table
from docs._generate.pages import PAGES, main

from support.paths import ROLES, ROOT


@pytest.mark.parametrize("path", PAGES)
def test_page_is_fresh(path: str) -> None:
    """Run `make docs` where this fails."""
    assert (ROOT / path).read_text(encoding="utf-8") == PAGES[path]()


def test_check_names_a_stale_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--check"]) == 0
    monkeypatch.setattr("docs._generate.pages.PAGES", {"docs/reference/flags.md": lambda: "other"})
    assert main(["--check"]) == 1
    assert "docs/reference/flags.md" in capsys.readouterr().err


def test_every_public_variable_has_an_anchor() -> None:
    shown = variables.page()
    specs = [path for path in ROLES.glob("*/meta/argument_specs.yml") if not path.parts[-3].startswith("_")]
    names = {
        name
        for path in specs
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values()
        for name in entry.get("options") or {}
    }
    assert names
    assert {name for name in names if shown.count(f'<a id="{name}"></a>') != 1} == set()


def test_every_model_is_listed() -> None:
    shown = models.page()
    for path in (ROOT / "catalogue").glob("*.yaml"):
        assert f"`{path.stem}`" in shown


def test_systems_that_were_never_run_are_not_called_tested() -> None:
    rows = [line for line in support.systems().splitlines() if line.startswith(("| Ubuntu", "| RedHat"))]
    assert len(rows) == 4
    assert all(row.count("rendered only") == 3 and "run in" not in row for row in rows)


def test_a_source_of_the_support_matrix_that_is_missing_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="no/such"):
        support.exists("no/such/file")


def test_markup_of_ansible_becomes_markdown() -> None:
    text = prose("Set O(vllm_home) to V(/opt), see L(docs, https://a.b) and C(<name>); B(not) <that>.", {"vllm_home"})
    assert text == ("Set [`vllm_home`](#vllm_home) to `/opt`, see [docs](https://a.b) and `<name>`; **not** &lt;that>.")


def test_a_cell_keeps_the_table_whole() -> None:
    assert table(("a",), [("x | y\nz",)]).splitlines()[-1] == r"| x \| y z |"


def test_text_that_is_wider_than_its_box_is_refused() -> None:
    with pytest.raises(ValueError, match="wider than its box"):
        chain.text(0, 0, "a word that cannot fit into a box of the chain", "does", 108)
