"""The engine's key: made once, changed with both valid in between, never shown."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.inference.vllm.plugins.module_utils.service import api_keys
from ansible_collections.inference.vllm.plugins.modules import api_key
from support.modules import run_module
from support.role_paths import paths

GIVEN = "the-first-key-of-all"
OTHER = "another-key-entirely"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the module on a folder; no key may be in what it says."""

    def call(state: str = "present", key: str = "", check: bool = False) -> dict[str, Any]:
        owner = {"owner": tmp_path.stat().st_uid, "group": tmp_path.stat().st_gid}
        given = {"path": str(tmp_path), "state": state, "key": key, "_ansible_check_mode": check, **owner}
        before = texts(tmp_path)
        with patch_module_args(given), pytest.raises(SystemExit):
            api_key.main()
        output = capsys.readouterr().out
        result = dict(json.loads(output))
        result.pop("invocation", None)
        for secret in {*before, *texts(tmp_path), key} - {""}:
            assert secret not in json.dumps(result)
        return result

    return call


def texts(folder: Path) -> tuple[str, str]:
    """The key in use and the former one."""
    current, former = ((folder / name) for name in ("api_key", "former_api_key"))
    return tuple(path.read_text() if path.exists() else "" for path in (current, former))  # type: ignore[return-value]


def test_a_key_is_made_once_and_closed(run: Any, tmp_path: Path) -> None:
    assert run()["changed"] is True
    first = texts(tmp_path)
    assert (len(first[0]), first[1]) == (48, "")
    assert run()["changed"] is False
    assert texts(tmp_path) == first
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o400}
    (tmp_path / "api_key").chmod(0o644)
    opened = run()
    assert (opened["changed"], opened["keys_changed"]) == (True, False)
    assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o400


def test_both_are_valid_until_the_rotation_is_finished(run: Any, tmp_path: Path) -> None:
    run(key=GIVEN)
    begun = run("rotated", OTHER)
    assert (begun["keys_changed"], begun["overlap"]) == (True, True)
    assert texts(tmp_path) == (OTHER, GIVEN)
    # Again, and a deploy in between: the rotation goes on.
    for again in (run("rotated", OTHER), run("rotated"), run(key=OTHER), run()):
        assert (again["changed"], again["overlap"]) == (False, True)
    ended = run("finished")
    assert (ended["keys_changed"], ended["overlap"]) == (True, False)
    assert texts(tmp_path) == (OTHER, "")
    assert run("finished")["changed"] is False


@pytest.mark.parametrize(
    ("key", "engine", "other"),
    [
        ("a" * 16, "", ""),
        ("!~" * 8, "", ""),
        ("a" * 15, "it has fewer than 16 characters", ""),
        ("", "it is empty", "it is empty"),
        ("-" + "a" * 20, "it begins with a dash, which vLLM would read as a flag", ""),
        ("a" * 513, "", "it has more than 512 characters"),
        ("two words of sixteen", "it is not one word of ASCII characters", "it is not one word of ASCII characters"),
        ("two\nlines-of-sixteen", "it is not one word of ASCII characters", "it is not one word of ASCII characters"),
        ("a" * 16 + "\n", "it is not one word of ASCII characters", "it is not one word of ASCII characters"),
        ("clé-of-more-than-16", "it is not one word of ASCII characters", "it is not one word of ASCII characters"),
        ("a" * 16 + "\x7f", "it is not one word of ASCII characters", "it is not one word of ASCII characters"),
    ],
)
def test_the_one_rule_for_keys(key: str, engine: str, other: str) -> None:
    assert api_keys.reason_invalid_for_engine(key) == engine
    assert api_keys.reason_invalid(key, longest=512) == other
    assert not api_keys.reason_invalid_for_engine(api_keys.generate())


def test_a_key_file_is_judged_on_the_controller_before_anything_changes(tmp_path: Path) -> None:
    contents = {
        "good": f"{GIVEN}\n",
        "short": "short\n",
        "two": f"{GIVEN}\n{OTHER}\n",
        "dash": f"-{GIVEN}",
        "empty": "",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    file = {name: str(tmp_path / name) for name in [*contents, "missing"]} | {"none": ""}
    output = paths(
        {
            name: {
                "role": "vllm_service",
                "tasks": "check_key_file.yml",
                "variables": {"vllm_service_api_key_file": path},
            }
            for name, path in file.items()
        }
    )
    reasons = {
        "short": "it has fewer than 16 characters",
        "two": "it is not one word of ASCII characters",
        "dash": "it begins with a dash, which vLLM would read as a flag",
        "empty": "it is empty",
        "missing": "it is no file",
    }
    assert {name: text for name, text in output.items() if text} == {
        name: f"[bad_api_key_file] vllm_service_api_key_file is {file[name]}, and {reason}. Fix: write a key on one"
        " line into that file on the controller, as `openssl rand -hex 32` makes one; or leave the variable empty."
        for name, reason in reasons.items()
    }


def test_a_run_that_was_cut_off_between_the_files_has_lost_nothing(run: Any, tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text(GIVEN)
    (tmp_path / "former_api_key").write_text(GIVEN)
    assert run("rotated", OTHER)["overlap"] is True
    assert texts(tmp_path) == (OTHER, GIVEN)


@pytest.mark.parametrize(
    ("there", "asked", "code"),
    [
        (("", ""), ("rotated", ""), "no_key"),
        ((GIVEN, ""), ("rotated", GIVEN), "same_key"),
        ((OTHER, GIVEN), ("rotated", "a-third-key-is-too-much"), "rotation_open"),
        (("", ""), ("present", "short"), "bad_key"),
        (("", ""), ("present", "-begins-like-a-flag-of-vllm"), "bad_key"),
        (("", ""), ("present", "two words of sixteen"), "bad_key"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    run: Any, tmp_path: Path, there: tuple[str, str], asked: tuple[str, str], code: str
) -> None:
    for name, text in zip(("api_key", "former_api_key"), there, strict=True):
        (tmp_path / name).write_text(text)
    result = run(*asked)
    assert result["failed"] is True
    assert f"[{code}]" in result["msg"]
    assert texts(tmp_path) == there


def test_the_folder_is_made_and_closed(run: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert run(key=GIVEN)["changed"] is True
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert run(key=GIVEN)["changed"] is False
    tmp_path.chmod(0o750)
    opened = run(key=GIVEN)
    assert (opened["changed"], opened["keys_changed"]) == (True, False)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_missing_folder_is_made_with_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "home" / "secrets"
    given = {"path": str(folder), "owner": os.geteuid(), "group": os.getegid()}
    assert run_module(api_key, capsys, given | {"_ansible_check_mode": True})["changed"] is True
    assert not folder.exists()
    assert run_module(api_key, capsys, given)["changed"] is True
    assert (stat.S_IMODE(folder.stat().st_mode), len(texts(folder)[0])) == (0o700, 48)


def test_check_mode_writes_nothing(run: Any, tmp_path: Path) -> None:
    assert run(check=True)["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_no_traceback_shows_a_key() -> None:
    assert GIVEN not in repr(api_keys.Keys(GIVEN))
