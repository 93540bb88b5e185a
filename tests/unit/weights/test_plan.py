"""Decisions about a model's files, without disk and network."""

from __future__ import annotations

import posixpath
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights import plan
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Answer, Retry, check_endpoint, origin
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import FileSpec, Listing, Lock
from support.paths import PLUGINS, ROOT

COMMIT = "a" * 40
OTHER = "b" * 64
LOCK: dict[str, Any] = {
    "repo": "org/name",
    "revision": "main",
    "commit": COMMIT,
    "files": [{"path": "sub/b", "size": 2, "sha256": "b" * 64}, {"path": "a", "size": 0, "sha256": "0" * 64}],
}


def code_of(error: pytest.ExceptionInfo[RefusalError]) -> str:
    return error.value.refusals[0].code


def test_a_lock_survives_reading_and_writing() -> None:
    lock = plan.parse_lock(LOCK, "x")
    assert plan.parse_lock(lock.file().as_dict(), "x").file() == lock.file()
    assert [row.path for row in lock.file().files] == ["a", "sub/b"]


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"repo": "name"}, "bad_lock", "repo 'name'"),
        ({"commit": "main"}, "bad_lock", "commit 'main'"),
        ({"revision": None}, "bad_lock", "revision is None"),
        ({"files": []}, "bad_lock", "no files"),
        ({"files": "a"}, "bad_lock", "files is 'a', but must be a list"),
        ({"files": [{"path": "a", "size": 1}]}, "bad_lock", "missing fields: files[0].sha256"),
        ({"files": [{"path": "a", "size": -1, "sha256": OTHER}]}, "bad_lock", "-1"),
        ({"files": [{"path": "a", "size": 1, "sha256": "B" * 64}]}, "bad_lock", "BBB"),
        ({"files": [{"path": "../a", "size": 1, "sha256": OTHER}]}, "unsafe_path", "'../a'"),
    ],
)
def test_a_malformed_lock_is_refused_by_the_part_that_is_wrong(change: Any, code: str, named: str) -> None:
    with pytest.raises(RefusalError, match=r"locks/x\.json") as refused:
        plan.parse_lock({**LOCK, **change}, "locks/x.json")
    assert code_of(refused) == code
    assert named in str(refused.value)


@pytest.mark.parametrize("data", [None, [], "text", 5])
def test_a_lock_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(RefusalError) as refused:
        plan.parse_lock(data, "x")
    assert code_of(refused) == "bad_lock"


@pytest.mark.parametrize(
    "path",
    ["../a", "a/../../b", "/etc/passwd", "", ".", "a//b", "a/./b", "a/", "a\\b", "a\0b", "a\nb", "\ud800", "n" * 256],
)
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(RefusalError) as refused:
        plan.check_paths(["fine", path], "the hub")
    assert code_of(refused) == "unsafe_path"
    assert repr(path) in str(refused.value)


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]])
def test_paths_that_collide_are_refused(paths: list[str]) -> None:
    with pytest.raises(RefusalError) as refused:
        plan.check_paths(paths, "the hub")
    assert code_of(refused) == "unsafe_path"


@given(st.text(alphabet="ab./\\\0 ", max_size=12))
def test_what_is_accepted_stays_below_the_folder(path: str) -> None:
    try:
        plan.check_paths([path], "the hub")
    except RefusalError:
        return
    assert posixpath.normpath(posixpath.join("/root/of/it", path)) == f"/root/of/it/{path}"


@pytest.mark.parametrize("name", ["name", "a/b/c", "../b", "a/..", "a/.b", "-a/b", "a/b\n", "a--b/c", "a b/c", ""])
def test_a_repository_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(RefusalError) as refused:
        plan.check_source(name, "main", None)
    assert code_of(refused) == "bad_repository"


@pytest.mark.parametrize("revision", ["", "../main", "a b", "-x", "main\n", "/x", "a?b"])
def test_a_revision_that_is_no_name_is_refused(revision: str) -> None:
    with pytest.raises(RefusalError) as refused:
        plan.check_source("org/name", revision, None)
    assert code_of(refused) == "bad_revision"


def test_a_lock_of_something_else_is_stale() -> None:
    lock = plan.parse_lock(LOCK, "x")
    plan.check_source("org/name", "main", lock)
    plan.check_source("org/name", COMMIT, lock)
    for repository, revision in (("org/other", "main"), ("org/name", "v2"), ("org/name", "c" * 40)):
        with pytest.raises(RefusalError) as refused:
            plan.check_source(repository, revision, lock)
        assert code_of(refused) == "stale_lock"


def test_selection() -> None:
    files = [FileSpec(path, 1) for path in ("b.json", "a.safetensors", "sub/c.json", "sub/d.bin", "A.JSON")]

    def chosen(allow: list[str], ignore: list[str]) -> list[str]:
        return [spec.path for spec in plan.select(files, allow, ignore)]

    assert chosen([], []) == ["A.JSON", "a.safetensors", "b.json", "sub/c.json", "sub/d.bin"]
    assert chosen(["*.json"], []) == ["b.json", "sub/c.json"]
    assert chosen([], ["sub/"]) == ["A.JSON", "a.safetensors", "b.json"]
    assert chosen(["*.json", "*.bin"], ["b*"]) == ["sub/c.json", "sub/d.bin"]


def test_pickles_need_permission() -> None:
    files = [FileSpec("a.safetensors", 1), FileSpec("sub/Old.BIN", 1)]
    with pytest.raises(RefusalError, match=r"sub/Old\.BIN") as refused:
        plan.check_wanted(files, "org/name", allow_pickle=False)
    assert code_of(refused) == "pickle_refused"
    plan.check_wanted(files, "org/name", allow_pickle=True)
    plan.check_wanted(files[:1], "org/name", allow_pickle=False)
    with pytest.raises(RefusalError) as refused:
        plan.check_wanted([], "org/name", allow_pickle=True)
    assert code_of(refused) == "no_files"


@pytest.mark.parametrize(
    ("offered", "named"),
    [
        ([FileSpec("a", 1, "0" * 64), FileSpec("sub/b", 2, "b" * 64)], "a: the lock says 0 bytes"),
        ([FileSpec("a", 0, "0" * 64), FileSpec("sub/b", 2, "c" * 64)], "sub/b: the lock says sha256 bbb"),
        ([FileSpec("a", 0, "0" * 64)], "sub/b: the lock says 2 bytes, found no such file"),
    ],
)
def test_a_hub_that_contradicts_the_lock_is_refused_by_file(offered: list[FileSpec], named: str) -> None:
    with pytest.raises(RefusalError) as refused:
        plan.lock_files(plan.parse_lock(LOCK, "x"), Listing(COMMIT, tuple(offered)))
    assert code_of(refused) == "lock_mismatch"
    assert named in str(refused.value)


def test_a_lock_takes_from_the_hub_what_it_does_not_say() -> None:
    lock = Lock("org/name", "main", COMMIT, (FileSpec("a", 1, "0" * 64),))
    offered = Listing(COMMIT, (FileSpec("a", 1, None, "f" * 40), FileSpec("more", 5)))
    assert plan.lock_files(lock, offered) == (FileSpec("a", 1, "0" * 64, "f" * 40),)
    assert plan.lock_files(lock, None) == lock.files
    with pytest.raises(RefusalError) as refused:
        plan.lock_files(lock, Listing("b" * 40, offered.files))
    assert code_of(refused) == "lock_mismatch"


@pytest.mark.parametrize(
    ("need", "free", "code"),
    [
        ((10, 1), (10, 1), ""),
        ((11, 1), (10, 5), "disk_full"),
        ((1, 6), (10, 5), "inodes_full"),
        ((1, 6), (9, None), ""),
    ],
)
def test_space(need: tuple[int, int], free: tuple[int, int | None], code: str) -> None:
    if not code:
        plan.check_space(*need, *free, "/models")
        return
    with pytest.raises(RefusalError, match="/models has") as refused:
        plan.check_space(*need, *free, "/models")
    assert code_of(refused) == code


A, B, C = "a" * 40, "b" * 40, "c" * 40


@pytest.mark.parametrize(
    ("in_use", "keep", "gone"),
    [
        ((), 0, []),
        ((), 1, [B, C]),
        ((), 2, [B]),
        ((), 3, []),
        ((), 9, []),
        ((B,), 2, []),
        ((B,), 1, [C]),
        ((A,), 1, [B, C]),
        (("d" * 40,), 1, [B, C]),
    ],
)
def test_what_may_go(in_use: tuple[str, ...], keep: int, gone: list[str]) -> None:
    assert plan.superfluous({A: 1.0, B: 2.0, C: 3.0}, A, in_use, keep) == gone


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), st.floats(allow_nan=False), min_size=1),
    st.sets(st.sampled_from(["a", "b", "c", "d", "e"])),
    st.integers(0, 6),
)
def test_what_is_wanted_or_in_use_never_goes(commits: dict[str, float], in_use: set[str], keep: int) -> None:
    wanted = min(commits)
    gone = set(plan.superfluous(commits, wanted, in_use, keep))
    assert gone <= set(commits) - in_use - {wanted}
    left = commits.keys() - gone
    assert len(left) >= min(keep, len(commits))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("-3", 0.0),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),  # by the server's clock, whatever this host's says
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert plan.retry_after_seconds(header, "Wed, 21 Oct 2015 07:28:00 GMT") == seconds


def test_a_date_without_the_servers_clock_is_ignored() -> None:
    assert plan.retry_after_seconds("Wed, 21 Oct 2015 07:28:30 GMT", None) is None


def test_patience_doubles_up_to_a_limit() -> None:
    retry = Retry(times=9, delay=1, longest=5)
    assert [retry.wait(n) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 5, 5]


@pytest.mark.parametrize(
    ("status", "error_code", "code", "advice"),
    [
        (403, "GatedRepo", "gated", "https://hub.example/org/name"),
        (401, "GatedRepo", "gated", "https://hub.example/org/name"),
        (404, "RevisionNotFound", "revision_not_found", "https://hub.example/org/name/commits"),
        (404, "EntryNotFound", "file_not_found", "Run again"),
        (404, "RepoNotFound", "repository_not_found", "Check repository"),
        (401, "", "unauthorized", "token_file"),
        (403, "", "forbidden", "token"),
        (404, "", "repository_not_found", "endpoint"),
        (429, "", "rate_limited", "later"),
        (500, "", "hub_error", "later"),
        (503, "", "hub_error", "later"),
        (408, "", "hub_error", "later"),
        (418, "", "hub_refused", "endpoint"),
    ],
)
def test_an_error_of_the_hub_has_a_fix(status: int, error_code: str, code: str, advice: str) -> None:
    refusal = Answer(status, error_code, "https://hub.example/api/x").explain("org/name", "v1")
    assert refusal.code == code
    assert advice in refusal.fix
    assert f"https://hub.example/api/x answered {status} for org/name" in refusal.message


@pytest.mark.parametrize(
    "url", ["", "hub", "ftp://hub", "https://", "https://u:p@hub", "https://hub?x=1", "https://h:x"]
)
def test_an_endpoint_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RefusalError, match="endpoint is") as refused:
        check_endpoint("endpoint", url)
    assert code_of(refused) == "bad_endpoint"


def test_origins() -> None:
    assert origin("https://Hub.example/a") == origin("https://hub.example:443/b")
    assert origin("https://hub.example") != origin("http://hub.example:443")
    assert origin("https://hub.example") != origin("https://hub.example.evil.org")
    assert check_endpoint("endpoint", "http://[::1]:80/x//") == "http://[::1]:80/x"


def test_every_code_is_in_the_documentation() -> None:
    sources = [*(PLUGINS / "module_utils" / "weights").glob("*.py"), PLUGINS / "modules" / "hf_snapshot.py"]
    text = "".join(path.read_text() for path in sources)
    refused = re.findall(r'(?:refuse|Refusal)\(\s*"(\w+)"', text)
    used = {*refused, *re.findall(r'(?:: |= )\(\s*"([a-z]\w+)",', text)}
    table = (ROOT / "docs/weights.md").read_text().split("## Failures")[1]
    assert used == set(re.findall(r"`([a-z_]+)`", table))
