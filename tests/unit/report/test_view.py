"""The report: what it shows for a good, a bad and a missing verdict, and that nothing in it is trusted."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from ansible_collections.inference.vllm.plugins.filter.report import FilterModule
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import extended
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.report import view as report
from support.lying_server import KEY, MODEL, lying_server
from support.paths import GOLDEN, ROOT
from support.plans import cpu_plan, gpu_plan, manifest, read_host

TEMPLATE = ROOT / "templates" / "report.html.j2"
STYLE = ROOT / "templates" / "report.css"

ENGINE = {"base_url": "http://127.0.0.1:8000/v1", "model": "tiny-qwen3-vl", "version": "0.32.0", "max_model_len": 4096}
GOOD = Verdict(
    "r1",
    (
        Check("endpoint_identity", True, message="serves tiny-qwen3-vl", value="tiny-qwen3-vl", seconds=0.012),
        Check("engine_version", False, "warning", "bad_response: no version", seconds=0.004, runbook="bad_response"),
        Check("shape_square", True, message='expected "square", got "Square"', value="Square", seconds=0.15),
        Check("reject_video", True, message="refused: HTTP 400", value=400, limit="4xx", unit="http status"),
    ),
    ENGINE,
    (),
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:20Z",
)
BAD = replace(
    GOOD,
    checks=(
        *GOOD.checks,
        Check("colour_red", False, message='wrong_answer: expected "red", got "Blue"', value="Blue", limit="Red",
              seconds=12.3, runbook="wrong_answer"),
        Check("stream", False, message="timeout: not run, because colour_red failed: nothing", runbook="timeout"),
    ),
)  # fmt: skip
RELEASE = manifest(cpu_plan())
FILES = {
    "manifest.json": RELEASE.to_json(),
    "image.json": RELEASE.image.to_json(),
    "plan.json": RELEASE.plan.to_json(),
}


def view(verdict: Verdict | None, **files: str) -> dict[str, Any]:
    stored = {} if verdict is None else {"verdict.json": verdict.to_json()}
    return report.view({**FILES, **stored, **files}, "r1", "gpu1", "/opt/vllm/secrets/api_key", "/opt/vllm/reports/r1")


def page(seen: dict[str, Any]) -> str:
    return report.html(seen, TEMPLATE.read_text(), STYLE.read_text())


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


class _Page(HTMLParser):
    """Collects what a page holds, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "action", "data")]


@pytest.mark.usefixtures("short_runbooks")
@pytest.mark.parametrize(("name", "verdict"), [("good", GOOD), ("bad", BAD), ("none", None)])
def test_what_is_printed_and_rendered(name: str, verdict: Verdict | None) -> None:
    golden(f"report_{name}.txt", report.text(view(verdict)) + "\n")
    golden(f"report_{name}.html", page(view(verdict)))


def test_the_verdict_is_on_top() -> None:
    assert "<h1>Proven: All 3 checks passed</h1>" in page(view(GOOD))
    assert "<h1>Not proven: 2 of 5 checks failed</h1>" in page(view(BAD))
    assert "<h1>Not proven: 1 of 1 checks failed</h1>" in page(view(None))


@pytest.mark.parametrize(
    "text",
    ['{"ok": true', "[]", Verdict("r0", GOOD.checks).to_json(), BAD.to_json().replace('"ok": false', '"ok": true', 1)],
)
def test_a_verdict_that_cannot_be_trusted_never_gives_a_green_report(text: str) -> None:
    assert view(None, **{"verdict.json": text})["ok"] is False


def test_without_a_verdict_the_result_speaks() -> None:
    assert view(None, **{"smoke.json": GOOD.to_json()})["ok"] is True
    assert view(None, **{"smoke.json": BAD.to_json()})["problems"][0]["name"] == "wrong_answer"


def test_each_gpu_of_the_plan_is_a_row() -> None:
    plan = gpu_plan(read_host(4), tensor_parallel_size=2)
    *_, shown = view(GOOD, **{"manifest.json": manifest(plan).to_json()})["sections"]
    gpus = {row["label"]: row["value"] for row in shown["rows"] if row["label"].startswith("gpus[")}
    assert list(gpus) == ["gpus[0]", "gpus[1]", "gpus[2]", "gpus[3]"]
    assert gpus["gpus[1]"].startswith("index 1, uuid GPU-00000001, name RTX 4090, total_gib 23.52")
    assert [value.endswith("selected yes") for value in gpus.values()] == [True, True, False, False]


def test_image_and_plan_are_those_of_the_release_and_not_of_a_later_one() -> None:
    later = {"plan.json": gpu_plan().to_json(), "image.json": replace(RELEASE.image, reference="later").to_json()}
    shown = {
        part["title"]: {row["label"]: row["value"] for row in part["rows"]} for part in view(GOOD, **later)["sections"]
    }
    assert shown["Plan"]["model"] == RELEASE.plan.model
    assert shown["Engine image"]["reference"] == RELEASE.image.reference
    assert not [label for label in shown["Release"] if label.startswith(("plan.", "image."))]


def test_failed_checks_come_first_and_then_warnings() -> None:
    rows = [(row["code"], row["status"]) for row in view(BAD)["checks"]]
    assert rows[:3] == [("colour_red", "failed"), ("stream", "failed"), ("engine_version", "warning")]
    assert {status for _, status in rows[3:]} == {"ok"}


def test_a_bar_that_nobody_can_see_is_not_drawn() -> None:
    shares = {row["code"]: row["share"] for row in view(BAD)["checks"]}
    assert (shares["colour_red"], shares["shape_square"], shares["stream"]) == ("100.0", "", "")


def test_each_failure_is_shown_once_with_its_runbook() -> None:
    problems = view(BAD)["problems"]
    assert [(item["name"], item["checks"]) for item in problems] == [
        ("wrong_answer", ["colour_red"]),
        ("timeout", ["stream"]),
    ]
    text = html.unescape(page(view(BAD)))
    for item in problems:
        assert item["summary"] in text
        # On the host there is no other copy of it.
        runbook = (ROOT / item["path"]).read_text()
        assert runbook.partition("## Fix")[2].strip() in text


@pytest.mark.parametrize("name", [None, "no_such_failure", "../../README", "result_missing"])
def test_a_failure_without_a_runbook_leaves_the_report_whole(name: str | None) -> None:
    check = Check("shape_square", False, message="x", runbook=name)
    (problem,) = view(replace(GOOD, checks=(check,)))["problems"]
    assert problem["name"] == name or "failed"
    assert bool(problem["text"]) is (name == "result_missing")
    assert '<p class="found"><span class="code">shape_square</span> x</p>' in page(view(replace(GOOD, checks=(check,))))


def test_the_files_of_a_report_are_looked_for_in_each_folder() -> None:
    paths = FilterModule().filters()["report_paths"](["/a", "/b"])
    assert {"/a/smoke.json", "/b/smoke.json", "/a/verdict.json", "/b/benchmark.json", "/b/manifest.json"} <= set(paths)
    assert len(paths) == len(set(paths)) == 16


def test_nothing_that_a_model_or_a_file_says_becomes_markup() -> None:
    evil = "<script>alert(1)</script><img src=http://x/y onerror=z> & \" ' {{ 7 * 7 }}"
    check = Check("shape_square", False, message=evil, value=evil, runbook=evil)
    files = {"manifest.json": replace(RELEASE, image=replace(RELEASE.image, reference=evil)).to_json()}
    verdict = replace(GOOD, checks=(check, replace(check, ok=True)), engine={"model": evil, "base_url": evil})
    seen = view(verdict, **files)
    text = page(seen)
    assert "&lt;script&gt;" in text
    assert "script" not in _Page(text).tags
    assert "{{ 7 * 7 }}" in text
    assert all(url.startswith("data:image/png;base64,") for url in _Page(text).loads)


def test_the_page_loads_nothing_and_is_small() -> None:
    text = page(view(BAD))
    loads = _Page(text).loads
    assert loads, "pictures are shown"
    assert all(url.startswith("data:") for url in loads)
    assert "@import" not in text
    assert "url(" not in text
    assert len(text) < 2_000_000


def test_every_file_may_be_missing_or_broken() -> None:
    bare = report.view({}, "r1", "gpu1", "", "/r")
    assert "Missing: plan.json" in page(bare)
    assert bare["ok"] is False
    broken = view(GOOD, **{"manifest.json": "7", "plan.json": "{", "image.json": '["1"]'})
    assert "manifest.json: the content is 7, but must be a mapping" in page(broken)
    assert "plan.json is not JSON" in page(broken)
    assert "image.json: the content is [&#39;1&#39;]" in page(broken)


@pytest.mark.parametrize("name", sorted({name for case in extended.ALL_CASES for name in case.images}))
def test_a_short_picture_has_the_same_pixels(name: str) -> None:
    short = report.picture_url(name)
    image = Image.open(io.BytesIO(base64.b64decode(short.split(",")[1]))).convert("RGB")
    assert ImageChops.difference(image, extended.draw(name)).getbbox() is None
    assert len(short) <= len(extended.data_url(name))


def test_every_question_about_a_picture_is_shown_with_it() -> None:
    checks = tuple(Check(case.code, True, value=case.example) for case in extended.ALL_CASES)
    rows = {row["code"]: row for row in view(replace(GOOD, checks=checks))["checks"]}
    for case in extended.ALL_CASES:
        assert rows[case.code]["asked"] == case.prompt
        assert len(rows[case.code]["pictures"]) == len(case.images)


def test_the_printed_command_works_when_pasted(tmp_path: Path) -> None:
    key_file = tmp_path / "the api key's file"
    key_file.write_text(f"{KEY}\n")
    with lying_server() as base_url:
        verdict = replace(GOOD, engine={"base_url": base_url, "model": MODEL})
        command = report.curl_of(verdict, str(key_file))
        # As it stands in the output of a play, where every line is indented.
        pasted = "\n".join(f"        {line}" for line in command.splitlines())
        done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True, timeout=30)
    assert KEY not in command
    # The picture is another file than the one of the check, so the answer depends on the picture's pixels only.
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert shlex.quote(str(key_file)) in command


def test_a_server_that_nobody_reached_has_no_command() -> None:
    assert report.curl_of(replace(GOOD, engine={"base_url": ENGINE["base_url"]}), "/k") == ""


def test_without_a_key_file_the_command_sends_none() -> None:
    assert "Authorization" not in report.curl_of(GOOD, "")


def test_a_report_survives_a_controller_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> str:
        raise ImportError("PIL")

    monkeypatch.setattr(report, "picture_url", missing)
    seen = view(GOOD)
    assert seen["ok"] is True
    assert not any(check["pictures"] for check in seen["checks"])
    assert "image_url" not in seen["curl"]


def test_the_filters_take_what_read_files_returns() -> None:
    filters = FilterModule().filters()
    found = [
        {"path": "/opt/vllm/reports/r1/verdict.json", "text": GOOD.to_json()},
        {"path": "/opt/vllm/releases/r1/verdict.json", "text": None},
    ]
    seen = filters["report_view"](found, "r1", "gpu1", "/k", "/r")
    assert seen["ok"] is True
    assert filters["report_text"](seen).startswith("PROVEN: All 3 checks passed, release r1 on gpu1\n")


def test_a_task_with_another_filter_does_not_load_the_report() -> None:
    plugins = "ansible_collections.inference.vllm.plugins"
    folder = ROOT / "collections" / plugins.replace(".", "/") / "filter"
    imports = "; ".join(f"import {plugins}.filter.{file.stem}" for file in folder.glob("*.py"))
    code = f"import sys; {imports}; sys.exit('{plugins}.module_utils.report' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "collections", check=True)


def test_the_text_shows_as_a_block_in_the_output_of_a_play() -> None:
    text = report.text(view(replace(BAD, checks=(*BAD.checks, Check("ocr", True, value="héllo 日本")))))
    assert not any(line != line.rstrip() for line in text.splitlines())
    assert all(char.isprintable() or char == "\n" for char in text)
