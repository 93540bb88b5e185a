"""Which release a host steps back to, and what its status says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.history import (
    Past,
    chosen,
    history,
    serving_text,
    status_text,
    step_back,
)
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import Store, design
from ansible_collections.inference.vllm.plugins.modules import release_info
from support.modules import run_module
from support.role_paths import paths


def write(home: Path, word: str, age: int, ok: bool | None = True) -> str:
    """A release whose file holds a word, so many seconds old; its last verdict was good, bad, or there was none."""
    store = Store(home)
    manifest = {"model": {"name": "tiny", "commit": "0" * 40}, "image": {"reference": f"engine:{word}"}}
    release = design("tiny", {"compose.yaml": word}, {}, manifest)
    store.write(release)
    os.utime(store.path(release.id), (1_000_000 - age, 1_000_000 - age))
    if ok is not None:
        report = home / "reports" / release.id
        report.mkdir(parents=True)
        checks = (Check("colour_red", ok), Check("engine_version", False, "warning"))
        verdict = Verdict(release.id, checks, finished="2026-01-01T00:00:00Z")
        (report / "verdict.json").write_text(verdict.to_json())
    return release.id


def test_steps_back_to_the_newest_that_was_proven_and_is_not_current(tmp_path: Path) -> None:
    oldest, former = write(tmp_path, "a", 30), write(tmp_path, "b", 20)
    write(tmp_path, "c", 15, ok=False)
    write(tmp_path, "d", 12, ok=None)
    now = write(tmp_path, "e", 10)
    Store(tmp_path).point(now)
    releases = history(tmp_path)
    assert step_back(releases).id == former
    assert [past.state for past in releases] == ["proven", "prepared", "failed", "proven", "proven"]
    assert [past.id for past in releases if past.current] == [now]
    assert chosen(tmp_path, oldest).image == "engine:a"


def test_an_edited_release_is_not_stepped_back_to(tmp_path: Path) -> None:
    former, edited, now = write(tmp_path, "a", 30), write(tmp_path, "b", 20), write(tmp_path, "c", 10)
    Store(tmp_path).point(now)
    (tmp_path / "releases" / edited / "compose.yaml").write_text("by hand")
    releases = history(tmp_path)
    assert step_back(releases).id == former
    with pytest.raises(RefusalError, match=r"\[release_tampered\].*compose.yaml was edited"):
        chosen(tmp_path, edited)


def test_without_a_former_release_every_one_is_named_with_its_reason(tmp_path: Path) -> None:
    now, bad = write(tmp_path, "a", 20), write(tmp_path, "b", 10, ok=False)
    Store(tmp_path).point(now)
    with pytest.raises(RefusalError) as caught:
        step_back(history(tmp_path))
    assert f"{bad} (failed), {now} (current, proven)" in str(caught.value)
    with pytest.raises(RefusalError, match="No other release was proven on this host; it has: none"):
        step_back(())


def test_damaged_files_of_a_report_count_as_no_proof(tmp_path: Path) -> None:
    release = write(tmp_path, "a", 10)
    for text in ("", "[]", "{", '{"ok": "yes"}'):
        (tmp_path / "reports" / release / "verdict.json").write_text(text)
        assert history(tmp_path)[0].state != "proven"


def test_status_names_container_release_and_failures(tmp_path: Path) -> None:
    now, bad = write(tmp_path, "a", 20), write(tmp_path, "b", 10, ok=False)
    Store(tmp_path).point(now)
    labels = f"com.docker.compose.project=vllm,inference.vllm.release={now},other=a=b"
    container = {"Names": "vllm-vllm-1", "Status": "Up 3 hours (healthy)", "Labels": labels}
    lines = status_text("gpu1", [past.as_dict() for past in history(tmp_path)], [container])
    assert lines[0] == "gpu1:"
    assert any(line.startswith(now) and "current, proven" in line and line.endswith("engine:a") for line in lines)
    assert f"container vllm-vllm-1: Up 3 hours (healthy), release {now}" in lines
    assert f"{bad} failed: colour_red" in lines
    assert status_text("gpu1", [], []) == ["gpu1: nothing is deployed"]
    assert "no container of the service is there" in status_text("gpu1", [Past(now, True, "proven").as_dict()], [])


def test_module_chooses_or_fails_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    former, now = write(tmp_path, "a", 20), write(tmp_path, "b", 10)
    Store(tmp_path).point(now)
    found = run_module(release_info, capsys, {"home": str(tmp_path), "choose": "former"})
    assert (found["failed"], found["changed"], found["chosen"]["id"]) == (False, False, former)
    assert found["path"] == str(tmp_path / "releases" / former)
    assert [past["id"] for past in run_module(release_info, capsys, {"home": str(tmp_path)})["releases"]] == [
        now,
        former,
    ]
    refused = run_module(release_info, capsys, {"home": str(tmp_path), "choose": "tiny-none"})
    assert refused["failed"] is True
    assert "[unknown_release]" in refused["msg"]
    assert former in refused["msg"]


RESTORE_FAILED = (
    "[restore_failed] Release old did not start again: no such image: engine:old\n"
    "Fix: correct the cause, then start a proven release: ansible-playbook playbooks/rollback.yml"
)


@pytest.mark.parametrize(
    ("current", "healthy", "reason", "text"),
    [
        ("old", ["old"], "", "Release old serves again."),
        ("old", [], "no such image: engine:old", f"Nothing serves now. {RESTORE_FAILED}"),
        # The release that failed its proof still runs, because nothing could take its place.
        ("old", ["new"], "no such image: engine:old", f"Release new serves now. {RESTORE_FAILED}"),
        ("", [], "", "Nothing serves now. No release was proven before this one."),
        (
            "new",
            ["new"],
            "",
            "Release new serves now. The release that failed is the current one, so there is no other to restore.",
        ),
        (
            "new",
            [""],
            "",
            "Nothing serves now. The release that failed is the current one, so there is no other to restore.",
        ),
    ],
)
def test_a_failure_says_what_serves_now(current: str, healthy: list[str], reason: str, text: str) -> None:
    assert serving_text("new", current, healthy, reason) == text


def test_the_role_restores_the_current_release_and_says_what_came_of_it() -> None:
    def case(link: str | None, healthy: list[str], **restored: str) -> dict[str, object]:
        stat = {"exists": True, "lnk_source": f"/srv/releases/{link}"} if link else {"exists": False}
        registered = {
            "__vllm_service_current": {"stat": stat},
            "__vllm_service_restored": restored,
            "__vllm_service_healthy": {"results": [{"stdout_lines": healthy}, {"msg": "not run"}]},
        }
        own = {"vllm_home": "/srv", "vllm_service_release_id": "new", **registered}
        return {"role": "vllm_service", "tasks": "restore.yml", "variables": own}

    found = paths(
        {
            "again": case("old", ["old"]),
            "broken": case("old", [], msg="no such image: engine:old"),
            "same": case("new", ["new"]),
            "first": case(None, []),
        }
    )
    composed = {
        name: [(given["project_src"], given["state"]) for module, given in steps if module.endswith("compose_v2")]
        for name, steps in found.items()
    }
    assert composed == {
        "again": [("/srv/releases/old", "present")],
        "broken": [("/srv/releases/old", "present")],
        "same": [],
        "first": [("/srv/releases/new", "stopped")],
    }
    said = {name: steps[-1][1]["__vllm_service_serving"] for name, steps in found.items()}
    assert said == {
        "again": serving_text("new", "old", ["old"]),
        "broken": serving_text("new", "old", [], "no such image: engine:old"),
        "same": serving_text("new", "new", ["new"]),
        "first": serving_text("new", "", []),
    }
