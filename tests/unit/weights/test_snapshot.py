"""A model's folder is exactly what was asked for, or there is none: against a real hub that misbehaves on purpose."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.weights.hub import Hub, Retry
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import Lock, parse_lock
from ansible_collections.inference.vllm.plugins.module_utils.weights.progress import Pace
from ansible_collections.inference.vllm.plugins.module_utils.weights.snapshot import (
    SPARE_BYTES,
    Outcome,
    Want,
    ensure,
    write_lock,
)
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import Layout
from support.faulty_hub import FOR_EVER, Fault, FaultyHub, running, write_model

SEED = random.Random(7)
FILES = {
    "config.json": b'{"architectures": ["Qwen3VLForConditionalGeneration"]}\n',
    "empty.txt": b"",
    "model-00001-of-00002.safetensors": SEED.randbytes(700_000),
    "model-00002-of-00002.safetensors": SEED.randbytes(300_001),
    "sub/tokenizer.json": SEED.randbytes(50_000),
}
SIZE = sum(map(len, FILES.values()))
BIG, SMALL = "model-00001-of-00002.safetensors", "config.json"
API, RESOLVE = "/api/*", "*/resolve/*"


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FaultyHub]:
    write_model(tmp_path / "hub", "org/tiny", FILES)
    with running(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def want(served: FaultyHub, tmp_path: Path) -> Want:
    return Want("org/tiny", tmp_path / "models", endpoint=served.url, timeout=20, retry=Retry(3, 0.01))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system of its own; needs root, as the deployment itself does."""
    place = tmp_path / "models"

    def mount(options: str) -> Path:
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", place], check=True)


def refused(want: Want, dry_run: bool = False) -> Refusal:
    with pytest.raises(RefusalError) as error:
        ensure(want, dry_run)
    return error.value.refusals[0]


def assert_complete(want: Want, outcome: Outcome, files: dict[str, bytes] = FILES) -> None:
    """Everything is there, equal, read-only and recorded, and nothing else is."""
    assert outcome.path == want.root / want.repository / outcome.commit
    on_disk = {p.relative_to(outcome.path).as_posix(): p for p in outcome.path.rglob("*") if not p.is_dir()}
    assert {name: path.read_bytes() for name, path in on_disk.items()} == files
    assert {stat.S_IMODE(path.stat().st_mode) for path in on_disk.values()} == {0o444}
    assert {stat.S_IMODE(p.stat().st_mode) for p in outcome.path.rglob("*") if p.is_dir()} <= {0o755}
    lock = json.loads((outcome.path.parent / "lock.json").read_text())
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert (lock["repo"], lock["commit"]) == (want.repository, outcome.commit)
    assert lock["files"] == [{"path": n, "size": len(files[n]), "sha256": hashes[n]} for n in sorted(files)]
    assert not list(outcome.path.parent.glob(".incomplete-*"))


def assert_nothing_placed(want: Want) -> None:
    base = want.root / want.repository
    assert not (base / "lock.json").exists()
    assert not [path for path in base.glob("*") if path.is_dir() and not path.name.startswith(".")]


# --- the ordinary way ---


def test_fetch_then_nothing_to_do(served: FaultyHub, want: Want) -> None:
    first = ensure(want)
    assert_complete(want, first)
    assert (first.changed, first.bytes_fetched, set(first.fetched)) == (True, SIZE, set(FILES))
    served.asked.clear()
    second = ensure(want)
    assert (second.changed, second.bytes_fetched, second.fetched) == (False, 0, ())
    assert second.files == first.files
    assert [asked.path for asked in served.asked] == ["/api/models/org/tiny/revision/main"]


def test_a_dry_run_tells_all_and_writes_nothing(served: FaultyHub, want: Want) -> None:
    outcome = ensure(want, dry_run=True)
    assert (outcome.changed, outcome.bytes_to_fetch, outcome.bytes_fetched) == (True, SIZE, 0)
    assert set(outcome.fetched) == set(FILES)
    assert not want.root.exists()
    assert served.files_asked() == []
    ensure(want)
    assert not ensure(want, dry_run=True).changed


def test_only_the_chosen_files_are_fetched(want: Want) -> None:
    chosen = replace(want, allow=["*.json"], ignore=["sub/"])
    assert_complete(want, ensure(chosen), {SMALL: FILES[SMALL]})
    assert_complete(want, ensure(want))
    back = ensure(chosen)
    assert set(back.removed) == {BIG, "model-00002-of-00002.safetensors", "empty.txt", "sub"}


def test_a_branch_that_moves_on_gets_its_own_folder(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    first = ensure(want)
    changed = {**FILES, SMALL: b"{}\n"}
    write_model(tmp_path / "hub", "org/tiny", changed)
    second = ensure(want)
    assert first.commit != second.commit
    assert_complete(want, second, changed)
    assert (first.path / SMALL).read_bytes() == FILES[SMALL]


def test_numeric_owner_and_group(want: Want) -> None:
    outcome = ensure(replace(want, owner=2000, group=5))
    assert {(p.stat().st_uid, p.stat().st_gid) for p in [outcome.path, *outcome.path.rglob("*")]} == {(2000, 5)}
    assert not ensure(replace(want, owner=2000, group=5)).changed


def test_readable_by_all_whatever_the_umask(want: Want) -> None:
    before = os.umask(0o077)
    try:
        outcome = ensure(want)
    finally:
        os.umask(before)
    assert_complete(want, outcome)
    assert {stat.S_IMODE(p.stat().st_mode) for p in [want.root, *outcome.path.parents][:4]} == {0o755}


# --- without a network ---


def test_a_complete_commit_needs_no_network(served: FaultyHub, want: Want) -> None:
    commit = ensure(want).commit
    ensure(replace(want, revision=commit))
    served.asked.clear()
    assert not ensure(replace(want, revision=commit, endpoint="http://127.0.0.1:9")).changed
    assert served.asked == []


def test_a_complete_folder_with_a_lock_needs_no_network_and_no_state(served: FaultyHub, want: Want) -> None:
    outcome = ensure(want)
    lock = parse_lock(json.loads((outcome.path.parent / "lock.json").read_text()), "lock")
    for left_over in outcome.path.parent.glob(".*"):
        left_over.unlink()
    served.asked.clear()
    assert not ensure(replace(want, lock=lock, endpoint="http://127.0.0.1:9")).changed
    assert served.asked == []


def test_a_known_branch_stands_in_while_the_hub_is_away(want: Want) -> None:
    commit = ensure(want).commit
    away = replace(want, endpoint=f"http://127.0.0.1:{free_port()}")
    outcome = ensure(away)
    assert (outcome.commit, outcome.changed) == (commit, False)
    assert any("Using commit" in warning for warning in outcome.warnings)
    assert refused(replace(away, revision="other")).code == "hub_unreachable"


@pytest.mark.parametrize("status", [403, 404])
def test_a_hub_that_refuses_is_not_unreachable(served: FaultyHub, want: Want, status: int) -> None:
    ensure(want)
    served.faults = [Fault("status", API, FOR_EVER, status=status)]
    assert refused(want).code in ("forbidden", "repository_not_found")


def test_nobody_listens(want: Want) -> None:
    away = replace(want, endpoint=f"http://127.0.0.1:{free_port()}")
    refusal = refused(away)
    assert refusal.code == "hub_unreachable"
    assert away.endpoint in refusal.message
    assert_nothing_placed(want)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- a hub that fails and recovers ---


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", API, 3, status=500),
        Fault("status", RESOLVE, 3, status=503),
        Fault("status", RESOLVE, 2, status=429, headers={"Retry-After": "0"}),
        Fault("hang_up", API, 2),
        Fault("hang_up", RESOLVE, 2),
        Fault("cut", f"*/{BIG}", 1, at=100_000),
        Fault("cut", f"*/{BIG}", 1, at=0),
        Fault("truncate", f"*/{BIG}", 1, at=300_000),
        Fault("promise", f"*/{BIG}", 1, at=10),
        Fault("promise", f"*/{SMALL}", 1, at=10),
        Fault("surplus", f"*/{BIG}", 1, at=10),
        Fault("flip", f"*/{BIG}", 1, at=5000),
        Fault("flip", f"*/{SMALL}", 1, at=5),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status if fault.kind == 'status' else fault.at}-{fault.on.split('/')[-1]}",
)
def test_a_passing_fault_is_overcome(served: FaultyHub, want: Want, fault: Fault) -> None:
    served.faults = [fault]
    assert_complete(want, ensure(want))
    assert fault.times == 0


def test_a_cut_file_goes_on_where_it_was_cut(served: FaultyHub, want: Want) -> None:
    served.faults = [Fault("cut", f"*/{BIG}", 6, at=100_000)]
    outcome = ensure(want)
    assert_complete(want, outcome)
    assert outcome.bytes_fetched == SIZE
    ranges = [a.headers.get("range") for a in served.asked if a.path.endswith(BIG)]
    assert ranges == [None, *(f"bytes={n}00000-" for n in range(1, 7))]


@pytest.mark.parametrize("kind", ["ignore_range", "other_range"])
def test_a_hub_that_does_not_continue_is_begun_again(served: FaultyHub, want: Want, kind: str) -> None:
    served.faults = [Fault("cut", f"*/{BIG}", 1, at=200_000), Fault(kind, f"*/{BIG}", 1)]
    served.faults[1].times = 0

    def second_fault() -> None:
        served.faults[1].times = 1

    served.alarms = [(1, second_fault)]
    outcome = ensure(replace(want, workers=1))
    assert_complete(want, outcome)
    assert outcome.bytes_fetched >= SIZE + 200_000


def test_a_next_run_does_not_fetch_again_what_is_there(served: FaultyHub, want: Want) -> None:
    served.faults = [Fault("cut", f"*/{BIG}", 1, at=500_000), Fault("status", f"*/{BIG}", FOR_EVER, status=503)]
    served.faults[1].times = 0
    served.alarms = [(400_000, lambda: setattr(served.faults[1], "times", FOR_EVER))]
    assert refused(replace(want, workers=1)).code == "hub_error"
    assert_nothing_placed(want)
    assert ensure(want, dry_run=True).bytes_to_fetch == SIZE - 500_000
    served.faults.clear()
    outcome = ensure(want)
    assert_complete(want, outcome)
    assert outcome.bytes_fetched == SIZE - 500_000


def test_after_a_failure_no_other_file_is_begun(served: FaultyHub, want: Want) -> None:
    served.faults = [Fault("status", f"*/{BIG}", FOR_EVER, status=404)]
    assert refused(replace(want, workers=1)).code == "repository_not_found"
    assert served.files_asked() == [BIG]


def test_damage_in_a_part_is_found_and_begun_again(served: FaultyHub, want: Want) -> None:
    served.faults = [Fault("cut", f"*/{BIG}", 1, at=500_000), Fault("status", f"*/{BIG}", FOR_EVER, status=404)]
    served.faults[1].times = 0
    served.alarms = [(400_000, lambda: setattr(served.faults[1], "times", FOR_EVER))]
    refused(replace(want, workers=1))
    (part,) = [p for p in want.root.glob("org/tiny/.incomplete-*/parts/*") if p.stat().st_size == 500_000]
    part.write_bytes(b"\0" * 500_000)
    served.faults.clear()
    assert_complete(want, ensure(want))


# --- a hub that stays wrong ---


@pytest.mark.parametrize(
    ("fault", "code", "named"),
    [
        (Fault("status", API, FOR_EVER, status=500), "hub_error", "/api/models/org/tiny"),
        (Fault("status", RESOLVE, FOR_EVER, status=502), "hub_error", "/resolve/"),
        (Fault("status", API, FOR_EVER, status=429, headers={"Retry-After": "0"}), "rate_limited", "org/tiny"),
        (Fault("status", API, 1, status=429, headers={"Retry-After": "86400"}), "rate_limited", "86400 s"),
        (Fault("status", API, 1, status=401), "unauthorized", "org/tiny"),
        (Fault("status", API, 1, status=403), "forbidden", "org/tiny"),
        (Fault("status", RESOLVE, 1, status=403, headers={"X-Error-Code": "GatedRepo"}), "gated", "org/tiny"),
        (Fault("status", f"*/{BIG}", 1, status=404, headers={"X-Error-Code": "EntryNotFound"}), "file_not_found", BIG),
        (Fault("html", API, FOR_EVER), "not_a_hub", "/api/models/org/tiny"),
        (Fault("no_size", API), "not_a_hub", "no size"),
        (Fault("commit", API, to="../../x"), "not_a_hub", "../../x"),
        (Fault("list", API, names=("../../../etc/passwd",)), "unsafe_path", "'../../../etc/passwd'"),
        (Fault("list", API, names=("/etc/passwd",)), "unsafe_path", "'/etc/passwd'"),
        (Fault("list", API, names=("model.pt",)), "pickle_refused", "model.pt"),
        (Fault("hang_up", RESOLVE, FOR_EVER), "hub_unreachable", "/resolve/"),
        (Fault("stall", API, FOR_EVER, at=20), "hub_unreachable", "Timeout"),
        (Fault("redirect", API, FOR_EVER), "hub_unreachable", "TooManyRedirects"),
        (Fault("truncate", f"*/{BIG}", FOR_EVER, at=0), "size_mismatch", BIG),
        (Fault("surplus", f"*/{BIG}", FOR_EVER, at=1), "size_mismatch", BIG),
        (Fault("html", f"*/{BIG}", FOR_EVER), "size_mismatch", BIG),
        (Fault("flip", f"*/{BIG}", FOR_EVER, at=699_999), "checksum_mismatch", BIG),
        (Fault("flip", f"*/{SMALL}", FOR_EVER, at=0), "checksum_mismatch", SMALL),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else None,
)
def test_a_fault_that_stays_is_refused_by_name(
    served: FaultyHub, want: Want, fault: Fault, code: str, named: str
) -> None:
    served.faults = [replace(fault)]
    refusal = refused(replace(want, timeout=0.3 if fault.kind == "stall" else 20))
    assert refusal.code == code
    assert named in refusal.message
    assert refusal.fix
    assert_nothing_placed(want)
    served.faults.clear()
    assert_complete(want, ensure(want))


def test_a_repository_and_a_revision_that_do_not_exist(want: Want) -> None:
    refusal = refused(replace(want, repository="org/other"))
    assert (refusal.code, "org/other" in refusal.message) == ("repository_not_found", True)
    refusal = refused(replace(want, revision="v9"))
    assert (refusal.code, "'v9'" in refusal.message) == ("revision_not_found", True)


def test_a_hub_that_gives_another_commit_is_refused(served: FaultyHub, want: Want) -> None:
    commit = ensure(want, dry_run=True).commit
    served.faults = [Fault("commit", API, to="c" * 40)]
    assert refused(replace(want, revision=commit)).code == "wrong_commit"


# --- the token ---

TOKEN = "hf_theSecretOfTheTest"


def with_token(want: Want, server: FaultyHub) -> Want:
    return replace(want, token=TOKEN, token_endpoint=server.url)


def test_the_token_goes_to_its_hub(served: FaultyHub, want: Want) -> None:
    served.token = TOKEN
    assert refused(want).code == "unauthorized"
    assert_complete(want, ensure(with_token(want, served)))


def test_the_token_goes_to_no_mirror(served: FaultyHub, want: Want) -> None:
    ensure(replace(want, token=TOKEN, token_endpoint="https://huggingface.co"))
    assert not [asked for asked in served.asked if "authorization" in asked.headers]
    served.faults = [Fault("status", API, 1, status=403)]
    refusal = refused(replace(want, token=TOKEN))
    assert "The token was not sent: it belongs to https://huggingface.co." in refusal.message
    assert TOKEN not in str(refusal)


def test_no_token_is_taken_from_the_environment(
    served: FaultyHub, want: Want, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    ensure(replace(want, token_endpoint=served.url))
    assert not [asked for asked in served.asked if "authorization" in asked.headers]


def test_a_redirect_takes_the_file_from_elsewhere_but_not_the_token(
    served: FaultyHub, want: Want, tmp_path: Path
) -> None:
    served.token = TOKEN
    with running(tmp_path / "hub") as elsewhere:
        served.faults = [Fault("redirect", RESOLVE, FOR_EVER, to=elsewhere.url)]
        assert_complete(want, ensure(with_token(want, served)))
        assert set(elsewhere.files_asked()) == {name for name, content in FILES.items() if content}
        assert not [asked for asked in elsewhere.asked if "authorization" in asked.headers]


def test_neither_token_nor_request_leave_the_encrypted_way() -> None:
    hub = Hub(
        "https://hub.example", "org/tiny", token=TOKEN, token_endpoint="https://hub.example", timeout=1, retry=Retry()
    )

    def sent(url: str) -> httpx2.Request:
        request = httpx2.Request("GET", url, headers={"Authorization": f"Bearer {TOKEN}"})
        hub.guard(request)
        return request

    assert "authorization" in sent("https://hub.example/x").headers
    assert "authorization" not in sent("https://hub.example:8443/x").headers
    assert "authorization" not in sent("https://cdn.example/x").headers
    with pytest.raises(RefusalError) as error:
        sent("http://hub.example/x")
    assert error.value.refusals[0].code == "insecure_redirect"
    assert TOKEN not in str(error.value)


def test_neither_token_nor_bytes_leave_the_encrypted_way() -> None:
    hub = Hub(
        "https://hub.example", "org/tiny", token=TOKEN, token_endpoint="https://hub.example", timeout=1, retry=Retry()
    )
    own = {name.lower() for name in hub.headers_for("https://hub.example/x")}
    other = {name.lower() for name in hub.headers_for("https://cdn.example/x")}
    assert ("authorization" in own, "authorization" in other) == (True, False)
    with pytest.raises(RefusalError) as error:
        hub.headers_for("http://hub.example/x")
    assert error.value.refusals[0].code == "insecure_redirect"


# --- sources, in order ---


def away() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[FaultyHub]:
    write_model(tmp_path / "mirror", "org/tiny", FILES)
    with running(tmp_path / "mirror") as server:
        yield server


def test_a_mirror_is_asked_before_the_hub(served: FaultyHub, mirror: FaultyHub, want: Want) -> None:
    outcome = ensure(replace(want, mirrors=[mirror.url], token=TOKEN, token_endpoint=served.url))
    assert_complete(want, outcome)
    assert served.asked == []
    assert outcome.sources == {mirror.url: SIZE}
    assert not [asked for asked in mirror.asked if "authorization" in asked.headers]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "*", FOR_EVER, status=500),
        Fault("status", "*", FOR_EVER, status=403),
        Fault("html", API, FOR_EVER),
        Fault("status", RESOLVE, FOR_EVER, status=404),
        Fault("flip", f"*/{BIG}", FOR_EVER, at=7),
        Fault("truncate", f"*/{BIG}", FOR_EVER, at=0),
        Fault("list", API, FOR_EVER, names=("../evil",)),
        Fault("hang_up", "*", FOR_EVER),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.on.split('/')[-1]}-{fault.status}",
)
def test_a_mirror_that_fails_or_lies_is_passed_over(
    served: FaultyHub, mirror: FaultyHub, want: Want, fault: Fault
) -> None:
    mirror.faults = [fault]
    outcome = ensure(replace(want, mirrors=[mirror.url], lock=lock_of(want)))
    assert_complete(want, outcome)
    assert outcome.sources[served.url] > 0
    assert any(f"Going on with {served.url}" in warning for warning in outcome.warnings)


def test_a_mirror_that_is_away_is_passed_over_and_the_last_source_decides(want: Want) -> None:
    assert_complete(want, ensure(replace(want, mirrors=[away(), away()])))
    last = away()
    refusal = refused(replace(want, revision="other", mirrors=[away()], endpoint=last))
    assert (refusal.code, last in refusal.message) == ("hub_unreachable", True)


@pytest.mark.parametrize("layout", ["{repository}/{commit}", "models--org--tiny/snapshots/{commit}", "."])
def test_a_local_folder_with_a_lock_needs_no_network(want: Want, tmp_path: Path, layout: str) -> None:
    lock = lock_of(want)
    disk = tmp_path / "disk"
    write_model(disk, layout.format(repository=want.repository, commit=lock.commit), FILES)
    outcome = ensure(replace(want, lock=lock, folders=[tmp_path / "none", disk], endpoint=away()))
    assert_complete(want, outcome)
    assert outcome.sources == {str(disk): SIZE}


def test_a_cache_whose_files_are_links_is_read(want: Want, tmp_path: Path) -> None:
    lock, disk = lock_of(want), tmp_path / "cache"
    folder = write_model(disk, f"models--org--tiny/snapshots/{lock.commit}", FILES)
    for name in FILES:
        (folder / name).rename(disk / name.replace("/", "-"))
        (folder / name).symlink_to(disk / name.replace("/", "-"))
    outcome = ensure(replace(want, lock=lock, folders=[disk], endpoint=away()))
    assert_complete(want, outcome)


def test_a_copy_of_another_hosts_models_needs_neither_lock_nor_network(want: Want, tmp_path: Path) -> None:
    first = ensure(want)
    second = replace(want, root=tmp_path / "second", folders=[want.root], endpoint=away())
    outcome = ensure(second)
    assert_complete(second, outcome)
    assert outcome.commit == first.commit
    assert any("There is no lock" in warning for warning in outcome.warnings)


def test_what_a_folder_has_wrong_or_lacks_comes_from_the_hub(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    lock, disk = lock_of(want), tmp_path / "disk"
    folder = write_model(disk, f"org/tiny/{lock.commit}", FILES)
    damage_bit(folder / BIG)
    (folder / SMALL).unlink()
    outcome = ensure(replace(want, lock=lock, folders=[disk]))
    assert_complete(want, outcome)
    assert set(served.files_asked()) == {BIG, SMALL}
    assert outcome.sources[served.url] == len(FILES[BIG]) + len(FILES[SMALL])
    assert any(str(folder / BIG) in warning for warning in outcome.warnings)
    assert (folder / BIG).exists()


def test_a_wrong_folder_does_not_cost_what_a_hub_sent(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    served.faults = [Fault("cut", f"*/{BIG}", 1, at=500_000), Fault("status", f"*/{BIG}", FOR_EVER, status=503)]
    served.faults[1].times = 0
    served.alarms = [(400_000, lambda: setattr(served.faults[1], "times", FOR_EVER))]
    locked = replace(want, lock=lock_of(want), workers=1)
    refused(locked)
    served.faults.clear()
    folder = write_model(tmp_path / "disk", "org/tiny", {BIG: b"\0" * len(FILES[BIG])})
    outcome = ensure(replace(locked, folders=[folder]))
    assert_complete(want, outcome)
    assert outcome.sources[served.url] == SIZE - 500_000


def test_a_right_folder_helps_a_part_that_is_wrong(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    lock = lock_of(want)
    part = Layout(want.root, want.repository).part(lock.commit, BIG)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 500_000)
    write_model(tmp_path / "disk", f"org/tiny/{lock.commit}", FILES)
    assert_complete(want, ensure(replace(want, lock=lock, folders=[tmp_path / "disk"], endpoint=away())))


def test_a_new_commit_takes_equal_files_from_the_old_one(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    ensure(want)
    changed = {**FILES, SMALL: b"{}\n"}
    write_model(tmp_path / "hub", "org/tiny", changed)
    served.asked.clear()
    outcome = ensure(want)
    assert_complete(want, outcome, changed)
    # Small files have no SHA-256 on the hub, so equality cannot be determined.
    assert {name for name in served.files_asked() if name.endswith(".safetensors")} == set()


def test_a_source_that_is_not_absolute(want: Want) -> None:
    assert refused(replace(want, folders=[Path("disk")])).code == "bad_root"


# --- a branch that is not asked for again ---


def test_without_a_refresh_the_recorded_commit_stays(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    assert refused(replace(want, refresh=False)).code == "not_recorded"
    first = ensure(want)
    damage_bit(first.path / BIG)
    write_model(tmp_path / "hub", "org/tiny", {SMALL: b"{}\n"})
    served.asked.clear()
    stays = replace(want, refresh=False, full_check=True)
    assert ensure(stays, dry_run=True).fetched == (BIG,)
    assert served.asked == []
    assert refused(stays).code == "revision_not_found"  # this small hub forgets what the branch was
    write_model(tmp_path / "hub", "org/tiny", FILES)
    outcome = ensure(stays)
    assert (outcome.commit, outcome.fetched) == (first.commit, (BIG,))
    assert_complete(want, outcome)


def test_without_a_refresh_a_lock_of_another_commit_fetches_nothing(served: FaultyHub, want: Want) -> None:
    lock = lock_of(want)
    served.asked.clear()
    stays = replace(want, refresh=False, full_check=True)
    assert refused(replace(stays, lock=lock)).code == "not_recorded"
    assert refused(replace(stays, revision=lock.commit)).code == "not_recorded"
    assert served.asked == []
    ensure(replace(want, lock=lock))
    assert not ensure(replace(stays, lock=lock)).changed


# --- old commits ---


def deploy_commits(want: Want, tmp_path: Path, number: int, **changes: Any) -> list[str]:
    commits = []
    for step in range(number):
        write_model(tmp_path / "hub", "org/tiny", {SMALL: b"%d" % step})
        commits.append(ensure(replace(want, **changes)).commit)
    return commits


def on_disk(want: Want) -> set[str]:
    return {path.name for path in (want.root / want.repository).iterdir() if path.is_dir()}


def release_with(place: Path, commit: str, repository: str = "org/tiny") -> Path:
    place.mkdir(exist_ok=True)
    (place / "manifest.json").write_text(json.dumps({"model": {"repo": repository, "commit": commit}}))
    return place / "manifest.json"


def test_no_commit_is_removed_unless_asked(want: Want, tmp_path: Path) -> None:
    commits = deploy_commits(want, tmp_path, 3)
    assert on_disk(want) == set(commits)


@pytest.mark.parametrize("skew", [-(10**9), 0, 10**9])
def test_old_commits_are_removed_but_never_the_one_in_use(want: Want, tmp_path: Path, skew: int) -> None:
    """Independent of the times of their creation."""
    commits = deploy_commits(want, tmp_path, 4)
    manifest = release_with(tmp_path / "current", commits[0])
    for index, commit in enumerate(commits):
        os.utime(Layout(want.root, want.repository).state(commit), (10**9 + index + skew,) * 2)
    pruning = replace(want, keep=2, in_use=manifest)
    dry = ensure(pruning, dry_run=True)
    assert (dry.pruned, dry.changed, on_disk(want)) == ((commits[1],), True, set(commits))
    outcome = ensure(pruning)
    assert (outcome.pruned, outcome.changed) == ((commits[1],), True)
    assert on_disk(want) == {commits[0], commits[2], commits[3]}
    assert not list((want.root / want.repository).glob(f".state-{commits[1]}*"))
    assert not ensure(pruning).changed


def test_the_wanted_commit_stays_even_if_it_is_the_oldest(want: Want, tmp_path: Path) -> None:
    commits = deploy_commits(want, tmp_path, 3)
    ensure(replace(want, revision=commits[0], keep=1))
    assert on_disk(want) == {commits[0]}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {"repo": "org/tiny", "commit": "main"}}', None])
def test_nothing_is_removed_while_the_release_in_use_cannot_be_read(
    want: Want, tmp_path: Path, text: str | None
) -> None:
    commits = deploy_commits(want, tmp_path, 2)
    (tmp_path / "current").symlink_to(tmp_path / "release")
    if text is not None:
        (tmp_path / "release").mkdir()
        (tmp_path / "release/manifest.json").write_text(text)
    outcome = ensure(replace(want, keep=1, in_use=tmp_path / "current/manifest.json"))
    assert outcome.pruned == ()
    assert "Old commits are kept" in outcome.warnings[-1]
    assert on_disk(want) == set(commits)


def test_a_release_of_another_model_protects_nothing_here(want: Want, tmp_path: Path) -> None:
    commits = deploy_commits(want, tmp_path, 2)
    manifest = release_with(tmp_path / "current", commits[0], "org/other")
    assert ensure(replace(want, keep=1, in_use=manifest)).pruned == (commits[0],)


def test_what_was_begun_of_another_commit_goes_too(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    served.faults = [Fault("status", f"*/{BIG}", FOR_EVER, status=404)]
    refused(want)
    begun = {name for name in on_disk(want) if name.startswith(".incomplete-")}
    assert begun
    served.faults.clear()
    write_model(tmp_path / "hub", "org/tiny", {SMALL: b"{}\n"})
    ensure(replace(want, keep=1))
    assert not begun & on_disk(want)


def test_what_a_repair_left_of_a_kept_commit_goes_but_not_the_commit(want: Want, tmp_path: Path) -> None:
    commits = deploy_commits(want, tmp_path, 2)
    layout = Layout(want.root, want.repository)
    layout.part(commits[0], BIG).parent.mkdir(parents=True)
    outcome = ensure(replace(want, keep=2))
    assert (outcome.pruned, on_disk(want)) == ((), set(commits))
    assert layout.state(commits[0]).exists()


def test_a_commit_that_was_deployed_again_counts_as_new(want: Want, tmp_path: Path) -> None:
    commits = deploy_commits(want, tmp_path, 3)
    for index, commit in enumerate(commits):
        os.utime(Layout(want.root, want.repository).state(commit), (10**9 + index,) * 2)
    ensure(replace(want, revision=commits[0]))
    assert ensure(replace(want, keep=2)).pruned == (commits[1],)


def test_a_removal_that_was_cut_off_is_ended_by_the_next_run(want: Want) -> None:
    base = ensure(want).path.parent
    (base / f".condemned-{'a' * 40}").mkdir()
    ensure(want)
    assert not list(base.glob(".condemned-*"))


# --- locks ---


@pytest.mark.parametrize("names", [("config.json",), ()])
def test_a_lock_is_written_without_fetching_the_weights(served: FaultyHub, want: Want, names: tuple[str, ...]) -> None:
    lock, warnings = write_lock(replace(want, allow=names))
    expected = {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in FILES.items() if n in (names or FILES)}
    assert {spec.path: (spec.size, spec.sha256) for spec in lock.files} == expected
    assert (lock.repo, lock.revision, warnings) == ("org/tiny", "main", ())
    assert not want.root.exists()
    assert not [name for name in served.files_asked() if name.endswith(".safetensors")]
    chosen = replace(want, lock=lock)
    assert_complete(chosen, ensure(chosen), {n: c for n, c in FILES.items() if n in expected})


def test_a_lock_is_not_written_of_a_file_that_came_wrong(served: FaultyHub, want: Want) -> None:
    served.faults = [Fault("flip", f"*/{SMALL}", FOR_EVER, at=0)]
    with pytest.raises(RefusalError) as error:
        write_lock(want)
    assert error.value.refusals[0].code == "checksum_mismatch"


def lock_of(want: Want, **changes: Any) -> Lock:
    """The right lock of the model; ``changes`` replaces the hash of a file by its name."""
    rows = [
        {"path": n, "size": len(c), "sha256": changes.get(n, hashlib.sha256(c).hexdigest())} for n, c in FILES.items()
    ]
    commit = ensure(want, dry_run=True).commit
    return parse_lock({"repo": "org/tiny", "revision": "main", "commit": commit, "files": rows}, "lock")


def test_a_right_lock(served: FaultyHub, want: Want) -> None:
    locked = replace(want, lock=lock_of(want))
    assert_complete(want, ensure(locked))
    served.asked.clear()
    assert not ensure(locked).changed
    assert served.asked == []


@pytest.mark.parametrize(("name", "requests"), [(BIG, 0), (SMALL, 1)])
def test_a_lock_with_another_hash_is_refused_by_file(served: FaultyHub, want: Want, name: str, requests: int) -> None:
    refusal = refused(replace(want, lock=lock_of(want, **{name: "0" * 64})))
    assert refusal.code == "lock_mismatch"
    assert refusal.message.startswith(f"{name}: the lock says sha256 {'0' * 64}")
    assert served.files_asked().count(name) == requests
    assert_nothing_placed(want)


def test_a_complete_folder_does_not_pass_another_lock(want: Want) -> None:
    ensure(want)
    assert refused(replace(want, lock=lock_of(want, **{SMALL: "0" * 64}))).code == "lock_mismatch"


def test_a_stale_lock_is_refused(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    lock = lock_of(want)
    assert refused(replace(want, lock=lock, revision="v2")).code == "stale_lock"
    assert refused(replace(want, lock=lock, repository="org/other")).code == "stale_lock"
    write_model(tmp_path / "hub", "org/tiny", {SMALL: b"{}"})
    assert refused(replace(want, lock=lock)).code == "revision_not_found"


def test_a_commit_whose_content_changes_is_refused(served: FaultyHub, want: Want, tmp_path: Path) -> None:
    outcome = ensure(want)
    for left_over in outcome.path.parent.glob(".state*"):
        left_over.unlink()
    write_model(tmp_path / "hub", "org/tiny", {BIG: b"\0" * len(FILES[BIG])})
    served.faults = [Fault("commit", API, FOR_EVER, to=outcome.commit)]
    refusal = refused(want)
    assert (refusal.code, refusal.message.split(":")[0]) == ("lock_mismatch", BIG)


def test_a_damaged_record_is_written_again(want: Want) -> None:
    record = ensure(want).path.parent / "lock.json"
    right = record.read_text()
    record.write_text('{"repo":')
    outcome = ensure(want)
    assert outcome.recorded
    assert "is not JSON" in outcome.warnings[0]
    assert record.read_text() == right


# --- rot ---


def damage_bit(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)


def damage_bit_and_hide_it(path: Path) -> None:
    marks = path.stat()
    damage_bit(path)
    os.utime(path, ns=(marks.st_atime_ns, marks.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to("../moved")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").touch()


@pytest.mark.parametrize("name", [BIG, SMALL])
@pytest.mark.parametrize(
    "harm", [damage_bit, damage_bit_and_hide_it, truncate, Path.unlink, replace_by_link, replace_by_folder]
)
def test_rot_is_found_and_only_the_broken_file_fetched(
    served: FaultyHub, want: Want, harm: Callable[[Path], None], name: str
) -> None:
    path = ensure(want).path
    harm(path / name)
    served.asked.clear()
    outcome = ensure(want)
    assert_complete(want, outcome)
    assert (outcome.fetched, outcome.bytes_fetched) == ((name,), len(FILES[name]))
    assert served.files_asked() == [name]


def test_rot_of_a_pinned_commit_is_reported_by_a_dry_run(want: Want) -> None:
    outcome = ensure(want)
    damage_bit(outcome.path / SMALL)
    pinned = replace(want, revision=outcome.commit)
    assert ensure(pinned, dry_run=True).fetched == (SMALL,)
    assert ensure(pinned).fetched == (SMALL,)


def test_a_full_check_reads_what_the_cheap_one_trusts(want: Want) -> None:
    outcome = ensure(want)
    state = next(outcome.path.parent.glob(".state-*"))
    damage_bit(outcome.path / BIG)
    marks = (outcome.path / BIG).stat()  # as if the disk had changed the bit under the file system
    data = json.loads(state.read_text())
    data["files"][BIG][:4] = [marks.st_size, marks.st_mtime_ns, marks.st_ctime_ns, marks.st_ino]
    state.write_text(json.dumps(data))
    assert ensure(want).fetched == ()
    assert ensure(replace(want, full_check=True)).fetched == (BIG,)
    assert_complete(want, ensure(want))


@pytest.mark.parametrize("state", ["", "{}", "[]", '{"version": 1}', "\0"])
def test_a_damaged_state_costs_a_look_but_no_byte(want: Want, state: str) -> None:
    outcome = ensure(want)
    next(outcome.path.parent.glob(".state-*")).write_text(state)
    again = ensure(want)
    assert not again.changed
    assert_complete(want, again)


def test_what_does_not_belong_is_removed(want: Want) -> None:
    path = ensure(want).path
    (path / "model-00003.safetensors").write_bytes(b"evil")
    (path / "sub/deep").mkdir()
    (path / "sub/deep/x").touch()
    (path / "link").symlink_to("/etc")
    assert set(ensure(want, dry_run=True).removed) == {"link", "model-00003.safetensors", "sub/deep"}
    outcome = ensure(want)
    assert outcome.changed
    assert_complete(want, outcome)
    assert Path("/etc/passwd").exists()


def test_a_folder_replaced_by_a_link_is_not_followed(want: Want, tmp_path: Path) -> None:
    path = ensure(want).path
    (path / "sub").rename(tmp_path / "elsewhere")
    (path / "sub").symlink_to(tmp_path / "elsewhere")
    outcome = ensure(want)
    assert outcome.fetched == ("sub/tokenizer.json",)
    assert_complete(want, outcome)
    assert (tmp_path / "elsewhere/tokenizer.json").exists()


def test_modes_are_set_right_without_a_fetch(want: Want) -> None:
    path = ensure(want).path
    (path / SMALL).chmod(0o666)
    (path / "sub").chmod(0o700)
    outcome = ensure(want)
    assert (outcome.fixed, outcome.fetched) == ((SMALL, "sub"), ())
    assert_complete(want, outcome)
    assert not ensure(want).changed


@pytest.mark.parametrize("years", [-40, 40])
def test_a_clock_that_jumps_costs_no_byte(served: FaultyHub, want: Want, years: int) -> None:
    """Marks are compared for equality only; a file from the future is as good as one from the past."""
    outcome = ensure(want)
    when = 1_800_000_000 + years * 365 * 86400
    for path in [*outcome.path.rglob("*"), *outcome.path.parent.glob(".state*")]:
        os.utime(path, (when, when))
    assert ensure(want).fetched == ()
    assert served.files_asked().count(BIG) == 1


@pytest.mark.parametrize("date", ["Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2065 07:28:00 GMT"])
def test_a_date_in_retry_after_counts_by_the_hubs_own_clock(served: FaultyHub, want: Want, date: str) -> None:
    served.date, headers = date, {"Retry-After": date}
    served.faults = [
        Fault("status", API, 1, status=429, headers=headers),
        Fault("status", RESOLVE, 1, status=429, headers=headers),
    ]
    # By this host's clock it would be minutes or decades; by its own patience an hour.
    assert_complete(want, ensure(replace(want, retry=Retry(3, 3600, 3600))))


# --- progress and bandwidth ---


def test_the_figures_are_there_while_it_runs_and_gone_afterwards(served: FaultyHub, want: Want) -> None:
    file = Layout(want.root, want.repository).progress
    seen: list[dict[str, Any]] = []

    def look() -> None:
        deadline = time.monotonic() + 60
        # The figures of the moment when the fetch begins have no byte yet.
        while time.monotonic() < deadline and not (seen and seen[-1]["phase"] == "fetch" and seen[-1]["done"]):
            time.sleep(0.05)
            if file.exists():
                seen.append(json.loads(file.read_text()))

    served.alarms = [(SIZE // 2, look)]
    ensure(replace(want, show_progress=True))
    assert (seen[-1]["phase"], seen[-1]["total"]) == ("fetch", SIZE)
    assert 0 < seen[-1]["done"] < SIZE
    assert not file.exists()


def test_a_limit_holds_all_files_together(want: Want, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def wait(pace: Pace, count: int) -> float:
        waits.append(real(pace, count))
        return 0.0

    real = Pace.wait
    monkeypatch.setattr(Pace, "wait", wait)
    ensure(replace(want, bytes_per_second=1e-3))  # so slow that the clock does not count
    assert max(waits) == pytest.approx(SIZE / 1e-3, rel=1e-3)


# --- the disk ---


def test_too_small_a_disk_is_refused_before_the_first_byte(
    served: FaultyHub, want: Want, mounted: Callable[[str], Path]
) -> None:
    mounted("size=512k")
    refusal = refused(want)
    assert refusal.code == "disk_full"
    assert f"{SIZE + SPARE_BYTES:,} more are needed" in refusal.message
    assert served.files_asked() == []
    assert refused(want, dry_run=True).code == "disk_full"


def test_too_few_inodes_are_refused_before_the_first_byte(
    served: FaultyHub, want: Want, mounted: Callable[[str], Path]
) -> None:
    mounted("size=64m,nr_inodes=16")
    assert refused(want).code == "inodes_full"
    assert served.files_asked() == []


def test_a_disk_that_fills_up_on_the_way(served: FaultyHub, want: Want, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=8m")
    filler = place / "filler"

    def fill() -> None:
        filler.write_bytes(b"\0" * (os.statvfs(place).f_bavail * 4096 - 8192))

    served.alarms = [(SIZE * 6 // 10, fill)]
    refusal = refused(want)
    assert refusal.code == "disk_full"
    assert str(place) in refusal.message
    assert_nothing_placed(want)
    filler.unlink()
    outcome = ensure(want)
    assert_complete(want, outcome)
    assert outcome.bytes_fetched < SIZE


def test_a_hub_that_sends_without_end_does_not_fill_the_disk(
    served: FaultyHub, want: Want, mounted: Callable[[str], Path]
) -> None:
    mounted("size=8m")
    served.faults = [Fault("surplus", f"*/{BIG}", FOR_EVER, at=16 << 20)]
    assert refused(want).code == "size_mismatch"


def test_a_read_only_target(want: Want, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=8m,ro")
    refusal = refused(want)
    assert (refusal.code, str(place) in refusal.message) == ("not_writable", True)


def test_a_file_where_the_root_should_be(want: Want, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    assert refused(want).code == "disk_error"


def test_a_root_that_is_not_absolute(want: Want) -> None:
    assert refused(replace(want, root=Path("models"))).code == "bad_root"


def test_an_unencrypted_hub_without_a_lock_is_worth_a_warning(want: Want) -> None:
    far = replace(want, endpoint="http://hub.invalid", retry=Retry(0, 0))
    assert refused(far).code == "hub_unreachable"
    assert ensure(want).warnings == ()
