"""A model hub on one host that serves local folders with the download protocol of the Hugging Face hub.

Implements listing and downloading of models, without accounts and uploads, and needs only the standard library. Each
folder ``<root>/<org>/<name>/`` is one repository with one branch, ``main``. Its commit is a hash of file names and
contents, so it changes if and only if the files change. Protocol of huggingface_hub 2.4:

* ``GET /api/models/<org>/<name>[/revision/<rev>][?blobs=true]``: commit and file list, with sizes and hashes.
* ``GET /api/models/<org>/<name>/tree/<rev>[/<folder>][?recursive=true]``: the same information as a tree.
* ``HEAD`` and ``GET /<org>/<name>/resolve/<rev>/<path>``: a file or a part of it (``Range``).
* Errors carry ``X-Error-Code``: ``RepoNotFound``, ``RevisionNotFound``, ``EntryNotFound``.

In addition, ``GET /`` reports the hash of the program, its settings, and the SHA-256 of every file that it serves.

``hub.py --config hub.json`` serves with the settings ``{"address": "127.0.0.1", "port": 18080, "root": "models"}``; a
relative root is relative to the folder of that file. With ``"user": "nobody"`` the program switches to that user after
it has changed into that folder and opened the port, so that the user needs no access to the parent folders.
``hub.py --list FOLDER`` prints the files that ``GET /`` would report for a repository with the files of that folder.
The program needs file_server.py of role model_weights next to it.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from file_server import REPOSITORY_NAME, Blob, FileHandler, FileServer, RequestRefusedError, become

BRANCH = "main"
LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".pkl", ".gguf", ".onnx"})
LFS_LEAST_BYTES = 10 * 1000 * 1000  # the real hub stores larger files with LFS, whatever their name
SKIPPED_FOLDERS = frozenset({".git", ".cache"})
CHUNK_BYTES = 1 << 20
PORT_SECONDS = 5
TRUE = frozenset({"1", "true"})


@dataclass(frozen=True)
class Snapshot:
    """All files of a repository at one commit."""

    name: str
    commit: str
    blobs: dict[str, Blob]


class Store:
    """The repositories under one folder, with a cache of file hashes."""

    def __init__(self, root: Path) -> None:
        """Serve ``<root>/<org>/<name>/``. A relative root needs no access to the parent folders."""
        self.root = root
        self._hashes: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names ``org/name`` of all repositories, sorted."""
        return sorted(f"{p.parent.name}/{p.name}" for p in self.root.glob("*/*") if p.is_dir())

    def listings(self) -> dict[str, dict[str, str]]:
        """SHA-256 of every file, by repository and path."""
        return {name: {path: blob.sha256 for path, blob in self.snapshot(name).blobs.items()} for name in self.names()}

    def snapshot(self, name: str) -> Snapshot:
        """Read the folder of a repository. Raises RequestRefusedError if there is no repository of that name."""
        folder = self.root / name
        # The name must be in the list, so that a request cannot escape the root folder.
        if not REPOSITORY_NAME.fullmatch(name) or name not in self.names():
            raise RequestRefusedError(404, "RepoNotFound", "Repository not found")
        files = (file for file in _files(folder) if not file.is_symlink())
        blobs = {blob.path: blob for blob in (self._blob(folder, file) for file in files)}
        listing = "".join(f"{blob.sha256} {blob.path}\n" for blob in blobs.values())
        return Snapshot(name, hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest(), blobs)

    def _blob(self, folder: Path, file: Path) -> Blob:
        seen = file.stat()
        key = (file, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
        with self._lock:  # one thread computes the hash, the others wait for the result
            if key not in self._hashes:
                self._hashes[key] = _hashes(file, seen.st_size)
            sha256, oid = self._hashes[key]
        lfs = file.suffix in LFS_SUFFIXES or seen.st_size > LFS_LEAST_BYTES
        if lfs:
            oid = git_blob_id(pointer(sha256, seen.st_size))
        return Blob(file.relative_to(folder).as_posix(), file, seen.st_size, sha256, oid, lfs)


def listing(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a folder, by their paths in a repository with these files."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    return {file.relative_to(folder).as_posix(): _hashes(file, file.stat().st_size)[0] for file in _files(folder)}


def pointer(sha256: str, size: int) -> bytes:
    """Content of the pointer file that Git stores for a file in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_entry(blob: Blob) -> dict[str, Any]:
    """Size of the content and of the pointer, as both kinds of listing give them."""
    return {"size": blob.size, "pointerSize": len(pointer(blob.sha256, blob.size))}


def git_blob_id(content: bytes) -> str:
    """Git blob ID of a content: the SHA-1 of a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _files(folder: Path) -> list[Path]:
    """Files of a repository, sorted by name."""
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and SKIPPED_FOLDERS.isdisjoint(p.relative_to(folder).parts)
    )


def _hashes(file: Path, size: int) -> tuple[str, str]:
    """SHA-256 and Git blob ID of a file, both as hex."""
    sha256 = hashlib.sha256()
    oid = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            sha256.update(chunk)
            oid.update(chunk)
    return sha256.hexdigest(), oid.hexdigest()


def sibling(blob: Blob, with_blobs: bool) -> dict[str, Any]:
    """A file as an entry of ``siblings`` in the model information."""
    entry: dict[str, Any] = {"rfilename": blob.path}
    if with_blobs:
        entry |= {"size": blob.size, "blobId": blob.oid}
        if blob.lfs:
            entry["lfs"] = {"sha256": blob.sha256} | lfs_entry(blob)
    return entry


def tree(blobs: dict[str, Blob], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Entries of the tree listing below ``folder``; empty means the root."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, blob in blobs.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        parents = [prefix + "/".join(parts[: depth + 1]) for depth in range(len(parts) - 1)]
        for parent in parents if recursive else parents[:1]:
            oid = hashlib.sha1(parent.encode(), usedforsecurity=False).hexdigest()
            entries.setdefault(parent, {"type": "directory", "oid": oid, "size": 0, "path": parent})
        if recursive or not parents:
            entries[path] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
            if blob.lfs:
                entries[path]["lfs"] = {"oid": blob.sha256} | lfs_entry(blob)
    return [entries[path] for path in sorted(entries)]


class HubHandler(FileHandler):
    """Handles one connection."""

    server: HubServer

    def version_string(self) -> str:
        """Value of the ``Server`` header."""
        return "local-hub"

    def route(self, parts: list[str], query: dict[str, str]) -> None:
        """Send the answer for a path, given as its decoded segments."""
        match parts:
            case [""]:
                self.send_json({**self.server.identity, "files": self.server.store.listings()})
            case ["api", "models", org, name]:
                self.send_info(self.snapshot(f"{org}/{name}", BRANCH), query)
            case ["api", "models", org, name, "revision", revision]:
                self.send_info(self.snapshot(f"{org}/{name}", revision), query)
            case ["api", "models", org, name, "tree", revision, *folder]:
                listing = self.snapshot(f"{org}/{name}", revision)
                entries = tree(listing.blobs, "/".join(folder), query.get("recursive", "").lower() in TRUE)
                if folder and not entries:
                    raise RequestRefusedError(404, "EntryNotFound", "/".join(folder))
                self.send_json(entries)
            case [org, name, "resolve", revision, *path] if path:
                listing = self.snapshot(f"{org}/{name}", revision)
                blob = listing.blobs.get("/".join(path))
                if blob is None:
                    raise RequestRefusedError(404, "EntryNotFound", "Entry not found")
                self.send_file(listing.commit, blob)
            case _:
                super().route(parts, query)

    def snapshot(self, name: str, revision: str) -> Snapshot:
        """Repository at a revision, which must be the branch or its current commit."""
        found = self.server.store.snapshot(name)
        if revision not in (BRANCH, found.commit):
            raise RequestRefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def send_info(self, found: Snapshot, query: dict[str, str]) -> None:
        """Send the commit and the file list of a repository."""
        with_blobs = query.get("blobs", "").lower() in TRUE
        self.send_json(
            {
                "id": found.name,
                "modelId": found.name,
                "sha": found.commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
                "siblings": [sibling(blob, with_blobs) for blob in found.blobs.values()],
            },
            headers={"X-Repo-Commit": found.commit},
        )


class HubServer(FileServer):
    """Listening socket and repositories of the hub."""

    def __init__(self, address: str, port: int, root: Path, handler: type[FileHandler] = HubHandler) -> None:
        """Start to listen; port 0 selects a free port."""
        super().__init__(address, port, root, handler)
        self.store = Store(root)
        self.identity: dict[str, Any] = {"software": "local-hub"}


def listen(address: str, port: int, root: Path) -> HubServer:
    """Open the port. Retries for some seconds, because a previous hub that is stopping may still hold the port."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            return HubServer(address, port, root)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def main() -> None:
    """Serve until the process ends, or list files."""
    parser = argparse.ArgumentParser(description="Serve local folders with the Hugging Face hub's protocol.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="JSON file with address, port and root")
    what.add_argument("--list", type=Path, nargs="*", help="folders whose files to list, with their hashes, as JSON")
    given = parser.parse_args()
    if given.list is not None:
        print(json.dumps([listing(folder) for folder in given.list]))
    else:
        serve(given.config)


def serve(file: Path) -> None:
    """Serve with the settings in a file."""
    config = json.loads(file.read_text())
    here = Path(__file__)
    program = hashlib.sha256(here.read_bytes() + here.with_name("file_server.py").read_bytes()).hexdigest()
    os.chdir(file.parent)
    with listen(config["address"], config["port"], Path(config["root"])) as server:
        server.identity |= {"program": program, "settings": config}
        if config.get("user"):
            become(config["user"])
        print(f"Serving {server.store.names()} at {server.url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
