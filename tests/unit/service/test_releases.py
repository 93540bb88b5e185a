"""Releases: whole or absent, never edited, the same for the same files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import releases as module
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import Release, Store, design, parse_modes

FILES = {"compose.yaml": "name: x\nlabel: @RELEASE_ID@\n", "entrypoint.sh": "#!/bin/sh\n"}
MODES = {"entrypoint.sh": 0o755}


def make(files: dict[str, str] = FILES, prefix: str = "tiny-v0.32.0", **manifest: Any) -> Release:
    modes = {name: mode for name, mode in MODES.items() if name in files}
    return design(prefix, files, modes, manifest)


def numbered(number: int) -> Release:
    return make({"compose.yaml": f"number: {number}\n"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_a_release_holds_its_files_modes_and_manifest(store: Store) -> None:
    release = make(model="tiny")
    assert store.write(release) is True
    folder = store.path(release.id)
    assert folder.name.startswith("tiny-v0.32.0-")
    assert (folder / "compose.yaml").read_text() == f"name: x\nlabel: {release.id}\n"
    assert (folder / "entrypoint.sh").stat().st_mode & 0o777 == 0o755
    assert (folder / "compose.yaml").stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o777 == 0o755
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == "tiny"
    assert set(manifest["files"]) == set(FILES)
    assert module.problems_of(folder) == []


def test_modes_do_not_depend_on_the_umask(store: Store) -> None:
    before = os.umask(0o077)
    try:
        store.write(make())
    finally:
        os.umask(before)
    assert module.problems_of(store.path(make().id)) == []


def test_the_same_files_are_the_same_release(store: Store) -> None:
    assert store.write(make(note="first")) is True
    first = (store.path(make().id) / "manifest.json").read_text()
    assert store.write(make(note="second")) is False
    assert (store.path(make().id) / "manifest.json").read_text() == first


@pytest.mark.parametrize(
    "other",
    [
        make({**FILES, "compose.yaml": "name: y\n"}),
        make({**FILES, "more": ""}),
        design("tiny-v0.32.0", FILES, {}, {}),
        make(prefix="other"),
    ],
)
def test_any_other_content_name_or_mode_is_another_release(other: Release) -> None:
    assert other.id != make().id


def forge(folder: Path) -> None:
    """Edit a file and its entry in the manifest, checksum and all."""
    other = design("tiny-v0.32.0", {**FILES, "compose.yaml": "name: forged\n"}, MODES, {"model": "tiny-model"})
    body = {**other.manifest, "id": folder.name}
    body.pop("checksum")
    body["checksum"] = module._sha256(module._canonical(body))
    (folder / "compose.yaml").write_text(other.files["compose.yaml"])
    (folder / "manifest.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "compose.yaml").write_text("name: z\n"), "compose.yaml was edited"),
        (lambda folder: (folder / "compose.yaml").unlink(), "compose.yaml is missing"),
        (lambda folder: (folder / "entrypoint.sh").chmod(0o777), "entrypoint.sh has another mode"),
        (lambda folder: (folder / "override.yaml").touch(), "override.yaml does not belong there"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json is damaged"),
        (
            lambda folder: (folder / "manifest.json").write_text(
                (folder / "manifest.json").read_text().replace("tiny-model", "other-model")
            ),
            "manifest.json was edited",
        ),
        (forge, "do not fit the folder's name"),
    ],
)
def test_an_edited_release_is_refused_by_name_of_the_file(store: Store, harm: Any, message: str) -> None:
    release = make(model="tiny-model")
    store.write(release)
    harm(store.path(release.id))
    acts: list[Callable[[], object]] = [lambda: store.write(release), lambda: store.point(release.id)]
    for act in acts:
        with pytest.raises(RefusalError, match="release_tampered") as caught:
            act()
        assert message in str(caught.value)
        assert "Fix:" in str(caught.value)
    assert store.current() is None


def die_at_call(number: int, home: Path) -> None:
    """Write and choose a release, killed at the given call of fsync, rename or symlink."""
    calls = iter(range(number + 1))

    def deadly(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for place, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "symlink_to")):
        setattr(place, name, deadly(getattr(place, name)))
    store = Store(home)
    with store.lock():
        store.tidy()
        store.write(make())
        store.point(make().id)


@pytest.mark.parametrize("number", range(10))
def test_a_killed_run_leaves_no_half_release_and_the_next_run_ends_it(
    store: Store, tmp_path: Path, number: int
) -> None:
    store.write(numbered(0))
    store.point(numbered(0).id)
    child = multiprocessing.get_context("fork").Process(target=die_at_call, args=(number, tmp_path / "home"))
    child.start()
    child.join()
    # The last number is one past the last call: that run lives, which shows that all calls were tried.
    assert child.exitcode == (0 if number == 9 else -signal.SIGKILL)
    for release_id in store.ids():
        assert module.problems_of(store.path(release_id)) == []
    assert store.current() in (numbered(0).id, make().id)
    with store.lock():
        store.tidy()
        store.write(make())
        store.point(make().id)
    assert store.leftovers() == []
    assert store.current() == make().id
    assert module.problems_of(store.path(make().id)) == []
    assert sorted(entry.name for entry in (tmp_path / "home").iterdir()) == ["current", "releases"]


def test_a_full_disk_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(make())
    assert list(store.folder.iterdir()) == []


def test_current_is_a_link_that_moves_with_its_home(store: Store, tmp_path: Path) -> None:
    store.write(make())
    assert store.point(make().id) is True
    assert store.point(make().id) is False
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "current" / "compose.yaml").is_file()


def test_an_unknown_release_is_refused_with_those_that_exist(store: Store) -> None:
    store.write(make())
    for name in ("nothing-0123456789ab", "../releases", "", "/etc"):
        with pytest.raises(RefusalError, match="unknown_release") as caught:
            store.point(name)
        assert make().id in str(caught.value)


def fill(store: Store, count: int) -> list[str]:
    names = []
    for number in range(count):
        release = numbered(number)
        store.write(release)
        os.utime(store.path(release.id), (number, number))
        names.append(release.id)
    return names


def test_prune_keeps_the_newest_and_never_removes_the_current(store: Store) -> None:
    names = fill(store, 5)
    store.point(names[0])
    assert store.ids() == names[::-1]
    assert store.surplus(2) == [names[2], names[1]]
    assert store.surplus(0, spare=(names[3],)) == [names[4], names[2], names[1]]
    for name in store.surplus(2):
        store.remove(name)
    assert store.ids() == [names[4], names[3], names[0]]
    with pytest.raises(RefusalError, match="release_in_use"):
        store.remove(names[0])


def test_writers_wait_for_each_other(store: Store) -> None:
    order = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(5)
        with store.lock():
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.lock():
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("prefix", "files", "modes", "code"),
    [
        ("Bad Prefix", FILES, {}, "bad_prefix"),
        ("../x", FILES, {}, "bad_prefix"),
        ("x", {}, {}, "no_files"),
        ("x", {"../compose.yaml": ""}, {}, "bad_file_name"),
        ("x", {".env": ""}, {}, "bad_file_name"),
        ("x", {"manifest.json": ""}, {}, "bad_file_name"),
        ("x", FILES, {"other": 0o755}, "bad_mode"),
    ],
)
def test_names_that_would_leave_the_folder_are_refused(
    prefix: str, files: dict[str, str], modes: dict[str, int], code: str
) -> None:
    with pytest.raises(RefusalError, match=code):
        design(prefix, files, modes, {})


def test_modes_are_octal_texts() -> None:
    assert parse_modes({"a": "0755", "b": "600"}) == {"a": 0o755, "b": 0o600}
    for wrong in ("rwx", "0999", "4755", ""):
        with pytest.raises(RefusalError, match="bad_mode"):
            parse_modes({"a": wrong})
