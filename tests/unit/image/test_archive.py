"""Image archives: both layouts, three compressions, and damage."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.image.archive import (
    ArchiveError,
    find,
    images_of,
    reading,
    same_image,
    write,
)

NAME = "localhost/vllm-cpu:0.32.0-abc"
CONFIG = json.dumps(
    {"created": "2026-01-02T03:04:05Z", "rootfs": {"type": "layers", "diff_ids": ["sha256:aa", "sha256:bb"]}}
).encode()
CONFIG_ID = hashlib.sha256(CONFIG).hexdigest()
MANIFEST_DIGEST = "sha256:" + "1" * 64
FORMATS = [
    "a.tar",
    "a.tar.gz",
    pytest.param("a.tar.zst", marks=pytest.mark.skipif(not shutil.which("zstd"), reason="")),
]


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def legacy() -> bytes:
    entry = {"Config": f"{CONFIG_ID}.json", "RepoTags": [NAME], "Layers": ["1/layer.tar", "2/layer.tar"]}
    layer = b"\0" * ((1 << 20) + 1)
    return tar(
        {
            "1/layer.tar": layer,
            f"{CONFIG_ID}.json": CONFIG,
            "2/layer.tar": layer,
            "manifest.json": json.dumps([entry]).encode(),
        }
    )


def oci(name: str = NAME) -> bytes:
    annotation = {"io.containerd.image.name": name if "/" in name else f"docker.io/library/{name}"}
    index = {"manifests": [{"digest": MANIFEST_DIGEST, "annotations": annotation}]}
    entry = {"Config": f"blobs/sha256/{CONFIG_ID}", "RepoTags": [name], "Layers": []}
    return tar(
        {
            f"blobs/sha256/{CONFIG_ID}": CONFIG,
            "index.json": json.dumps(index).encode(),
            "manifest.json": json.dumps([entry]).encode(),
        }
    )


def chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


def test_layout_of_old_engines() -> None:
    image = find(images_of(io.BytesIO(legacy())), NAME)
    assert image.ids == {f"sha256:{CONFIG_ID}"}
    assert image.layers == ("sha256:aa", "sha256:bb")
    assert image.created == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("name", [NAME, "busybox:1"])
def test_oci_layout_has_the_manifests_digest_too(name: str) -> None:
    image = find(images_of(io.BytesIO(oci(name))), name)
    assert image.ids == {f"sha256:{CONFIG_ID}", MANIFEST_DIGEST}


def test_missing_name_is_refused_with_the_existing_names() -> None:
    with pytest.raises(ArchiveError, match=r"does not hold other:1; it holds localhost/vllm-cpu:0\.32\.0-abc"):
        find(images_of(io.BytesIO(legacy())), "other:1")


@pytest.mark.parametrize(
    ("inspected", "expected"),
    [
        ({"Id": f"sha256:{CONFIG_ID}"}, True),
        ({"Id": MANIFEST_DIGEST}, True),
        ({"Id": "sha256:other"}, False),
        (
            {"Id": "x", "Created": "2026-01-02T03:04:05Z", "RootFS": {"Layers": ["sha256:aa", "sha256:bb"]}},
            True,
        ),
        ({"Id": "x", "Created": "2026-01-02T03:04:06Z", "RootFS": {"Layers": ["sha256:aa", "sha256:bb"]}}, False),
        ({"Id": "x", "Created": "2026-01-02T03:04:05Z", "RootFS": {"Layers": ["sha256:aa"]}}, False),
        ({"Id": "x", "Created": "2026-01-02T03:04:05Z", "RootFS": {"Layers": None}}, False),
    ],
)
def test_same_image(inspected: dict[str, object], expected: bool) -> None:
    assert same_image(find(images_of(io.BytesIO(oci())), NAME), inspected) is expected


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_can_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, chunks(legacy()))
    with reading(path) as stream:
        assert find(images_of(stream), NAME).layers == ("sha256:aa", "sha256:bb")
    assert name == "a.tar" or path.stat().st_size < len(legacy()) / 10


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_archive_that_was_cut_off_is_noticed(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    write(path, chunks(legacy()))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ArchiveError, match=r"damaged|not in it"), reading(path) as stream:
        images_of(stream)


@pytest.mark.parametrize("name", FORMATS)
def test_file_that_is_no_archive_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ArchiveError), reading(path) as stream:
        images_of(stream)


def test_archive_of_something_else_is_noticed() -> None:
    with pytest.raises(ArchiveError, match=r"manifest\.json"):
        images_of(io.BytesIO(tar({"hello": b"world"})))


@pytest.mark.parametrize("name", FORMATS)
def test_failed_write_raises_and_does_not_hang(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=name):
        write(tmp_path / "missing" / name, chunks(legacy()))


@pytest.mark.parametrize("more", [b"", b"x", bytes(1 << 20)])
def test_reason_of_a_failed_write_survives_the_broken_pipe(tmp_path: Path, more: bytes) -> None:
    def slower_than_zstd_gives_up() -> Iterator[bytes]:
        yield b"x"
        time.sleep(0.5)
        yield more

    with pytest.raises(OSError, match=r"zstd could not write .*missing"):
        write(tmp_path / "missing" / "a.tar.zst", slower_than_zstd_gives_up())


def test_engine_that_fails_while_it_exports_raises(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ConnectionError("engine went away")

    for name in ("a.tar", "a.tar.gz", "a.tar.zst"):
        with pytest.raises(ConnectionError):
            write(tmp_path / name, broken())
