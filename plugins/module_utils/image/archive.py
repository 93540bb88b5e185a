"""Archives of `docker save`: what is in one, and whether an engine already has it.

An archive is read as a stream, because a compressed one cannot be searched. Both layouts are understood: Docker's own
(engines before 25) and OCI's, which carries Docker's `manifest.json` as well.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

#: Descriptions in an archive are a few KiB; a bigger file is a layer.
_LARGEST_DESCRIPTION = 1 << 20

_CHUNK = 1 << 20


class ArchiveError(Exception):
    """The archive cannot be read, or is none."""


@dataclass(frozen=True)
class ArchivedImage:
    """One image in an archive.

    Attributes:
        references: Names with tags that the archive gives it.
        ids: Identifiers that an engine may give it: the hash of its configuration, or of its manifest where the
            engine keeps images in containerd.
        layers: Hashes of its unpacked layers, lowest first.
        created: When it was made, as its configuration says.
    """

    references: tuple[str, ...]
    ids: frozenset[str]
    layers: tuple[str, ...]
    created: str


def images_of(stream: IO[bytes]) -> list[ArchivedImage]:
    """Every image in an uncompressed archive, which is read to its end.

    Raises:
        ArchiveError: The stream is no archive of `docker save`.
    """
    descriptions: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.size <= _LARGEST_DESCRIPTION:
                    file = archive.extractfile(member)
                    descriptions[member.name] = file.read() if file else b""
        manifest = json.loads(descriptions["manifest.json"])
        by_reference = _manifest_digests(descriptions.get("index.json"))
        return [_image(entry, descriptions, by_reference) for entry in manifest]
    except (tarfile.TarError, ValueError, EOFError, TypeError) as error:
        raise ArchiveError(f"it is damaged or no archive of `docker save`: {error}") from error
    except KeyError as error:
        raise ArchiveError(f"it is no archive of `docker save`: {error} is not in it") from error


def find(images: Iterable[ArchivedImage], reference: str) -> ArchivedImage:
    """The image that an archive holds under a name; ArchiveError says which names it has instead."""
    images = list(images)
    for image in images:
        if reference in image.references:
            return image
    names = sorted(name for image in images for name in image.references)
    raise ArchiveError(f"it does not hold {reference}; it holds {', '.join(names) or 'images without a name'}")


def same_image(archived: ArchivedImage, inspected: dict[str, Any]) -> bool:
    """Whether an engine's image, as `docker image inspect` shows it, is the archived one.

    An engine that keeps images in containerd may give an image from an older archive a new identifier; then the same
    layers made at the same time are the same image.
    """
    if inspected.get("Id") in archived.ids:
        return True
    layers = tuple(inspected.get("RootFS", {}).get("Layers") or ())
    return bool(layers) and layers == archived.layers and inspected.get("Created") == archived.created


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Open an archive for reading, uncompressed by what its name ends in.

    Raises:
        ArchiveError: The compressed data is damaged.
    """
    if path.suffix == ".zst":
        with _unpacked_by_zstd(path) as stream:
            yield stream
    elif path.suffix == ".gz":
        try:
            with gzip.open(path) as stream:
                yield cast(IO[bytes], stream)
        except (gzip.BadGzipFile, EOFError) as error:
            raise ArchiveError(f"it is damaged: {error}") from error
    else:
        with path.open("rb") as stream:
            yield stream


def write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write an archive, compressed by what its name ends in. OSError where the disk is full or the like."""
    if path.suffix == ".zst":
        _pack_by_zstd(path, chunks)
        return
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def sha256_of(path: Path) -> str:
    """Hash of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _image(entry: dict[str, Any], descriptions: dict[str, bytes], by_reference: dict[str, str]) -> ArchivedImage:
    references = tuple(entry["RepoTags"] or ())
    raw = descriptions[entry["Config"]]
    config = json.loads(raw)
    manifests = {by_reference[name] for name in references if name in by_reference}
    return ArchivedImage(
        references=references,
        ids=frozenset({f"sha256:{hashlib.sha256(raw).hexdigest()}", *manifests}),
        layers=tuple(config["rootfs"]["diff_ids"]),
        created=config.get("created", ""),
    )


def _manifest_digests(index: bytes | None) -> dict[str, str]:
    """Digests of the manifests in an OCI index, by the name that the engine annotated."""
    if index is None:
        return {}
    entries = json.loads(index)["manifests"]
    names = ((entry.get("annotations", {}).get("io.containerd.image.name", ""), entry["digest"]) for entry in entries)
    return {name.removeprefix("docker.io/library/").removeprefix("docker.io/"): digest for name, digest in names}


@contextmanager
def _unpacked_by_zstd(path: Path) -> Iterator[IO[bytes]]:
    arguments = [_zstd(), "--decompress", "--stdout", "--quiet", str(path)]
    # The path is one argument of a fixed program.
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
        output = cast(IO[bytes], process.stdout)
        try:
            yield output
            # What follows the end of the archive is padding; zstd must not die of a closed pipe.
            while output.read(_CHUNK):
                pass
        except BaseException:
            process.kill()
            raise
        if message := _complaint(process):
            raise ArchiveError(f"it is damaged: {message}")


def _pack_by_zstd(path: Path, chunks: Iterable[bytes]) -> None:
    arguments = [_zstd(), "-T0", "-3", "--quiet", "--force", "-o", str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
        data = cast(IO[bytes], process.stdin)
        try:
            # A broken pipe means that zstd stopped; its error output has the reason.
            with suppress(BrokenPipeError):
                for chunk in chunks:
                    data.write(chunk)
        except BaseException:
            process.kill()
            raise
        finally:
            # Closing writes what is still buffered; left to Popen, its broken pipe would hide the reason.
            with suppress(BrokenPipeError):
                data.close()
        if message := _complaint(process):
            raise OSError(f"zstd could not write {path}: {message}")


def _complaint(process: subprocess.Popen[bytes]) -> str:
    """Wait for the process; its error output if it failed, otherwise empty."""
    message = cast(IO[bytes], process.stderr).read().decode(errors="replace").strip()
    return (message or f"exit status {process.returncode}") if process.wait() != 0 else ""


def _zstd() -> str:
    program = shutil.which("zstd")
    if program is None:
        raise ArchiveError("zstd is not installed on this host; install the package zstd")
    return program
