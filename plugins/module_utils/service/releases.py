"""Releases: folders that are written once, atomically, and never edited.

``<home>/releases/<id>/`` holds the files of a deployment and ``manifest.json``, which describes them. The id is a
readable prefix and a hash of the files: the same files always give the same release, and an edited file no longer
matches the name of its folder. ``<home>/current`` is a symbolic link to the proven release.

A release gets its final name by one rename, after all its files are on the disk. Folders of an interrupted run begin
with ``.tmp-``; the next run removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.files import sync_folder
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

MANIFEST = "manifest.json"
#: Placeholder in the files for the release's id, which is known only after the files are hashed.
PLACEHOLDER = "@RELEASE_ID@"
HASH_LENGTH = 12
DEFAULT_MODE = 0o644
FOLDER_MODE = 0o755

_LEFTOVER = ".tmp-"
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,79}[a-z0-9])?")
_ID = re.compile(_PREFIX.pattern + rf"-[0-9a-f]{{{HASH_LENGTH}}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Release:
    """A release, before it is written or as it was read.

    Attributes:
        id: Prefix and hash, the name of its folder.
        files: Final texts by name, without the manifest.
        modes: Permission bits by name.
        manifest: Content of ``manifest.json``.
    """

    id: str
    files: Mapping[str, str]
    modes: Mapping[str, int]
    manifest: Mapping[str, Any]


def design(prefix: str, files: Mapping[str, str], modes: Mapping[str, int], manifest: Mapping[str, Any]) -> Release:
    """Compute the id of a release from its content and insert it into the files.

    Args:
        prefix: Readable beginning of the id: lower case letters, digits, dots and dashes.
        files: Texts by plain file name; ``@RELEASE_ID@`` in them becomes the id.
        modes: Permission bits of files that do not have 0644.
        manifest: Description of the release. It is not part of the id.

    Raises:
        RefusalError: A name or the prefix is no valid file name, or a mode names no file.
    """
    problems = _wrong_names(prefix, files, modes)
    if problems:
        raise RefusalError(*problems)
    all_modes = {name: modes.get(name, DEFAULT_MODE) for name in files}
    release_id = f"{prefix}-{_fingerprint(files, all_modes)}"
    final = {name: text.replace(PLACEHOLDER, release_id) for name, text in files.items()}
    listed = {name: {"sha256": _sha256(final[name]), "mode": f"{all_modes[name]:04o}"} for name in sorted(final)}
    body = {**manifest, "id": release_id, "files": listed}
    return Release(release_id, final, all_modes, {**body, "checksum": _sha256(_canonical(body))})


def manifest_text(release: Release) -> str:
    """The text of ``manifest.json``."""
    return json.dumps(release.manifest, indent=2, sort_keys=True) + "\n"


def problems_of(folder: Path) -> list[str]:
    """Differences between a release's folder and its manifest, one sentence each; empty if there are none."""
    if not (folder / MANIFEST).is_file():
        return [f"{MANIFEST} is missing"]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: (entry["sha256"], int(entry["mode"], 8)) for name, entry in manifest["files"].items()}
        body = {key: value for key, value in manifest.items() if key != "checksum"}
        whole = manifest["checksum"] == _sha256(_canonical(body)) and manifest["id"] == folder.name
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is damaged"]
    found = [] if whole else [f"{MANIFEST} was edited"]
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    found += [f"{name} is missing" for name in sorted(listed.keys() - present)]
    found += [f"{name} does not belong there" for name in sorted(present - listed.keys())]
    for name in sorted(present & listed.keys()):
        digest, mode = listed[name]
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            found.append(f"{name} was edited")
        elif stat.S_IMODE((folder / name).stat().st_mode) != mode:
            found.append(f"{name} has another mode than {mode:04o}")
    if not found and _fingerprint_of(folder, listed) != folder.name[-HASH_LENGTH:]:
        found.append(f"{MANIFEST} and files do not fit the folder's name")
    return found


class Store:
    """The releases of one host."""

    def __init__(self, home: Path) -> None:
        """Use ``<home>/releases`` and ``<home>/current``; neither needs to exist yet."""
        self.folder = home / "releases"
        self.link = home / "current"

    def path(self, release_id: str) -> Path:
        """Folder of a release, whether it exists or not."""
        return self.folder / release_id

    def ids(self) -> list[str]:
        """All releases, newest first."""
        if not self.folder.is_dir():
            return []
        found = [entry for entry in self.folder.iterdir() if entry.is_dir() and _ID.fullmatch(entry.name)]
        return [entry.name for entry in sorted(found, key=lambda entry: (-entry.stat().st_mtime_ns, entry.name))]

    def current(self) -> str | None:
        """Id that ``current`` points to; None if there is no such link."""
        return self.link.readlink().name if self.link.is_symlink() else None

    def leftovers(self) -> list[str]:
        """Names of folders that an interrupted run left."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if entry.name.startswith(_LEFTOVER))

    def files(self, release_id: str | None) -> dict[str, str]:
        """Texts of a release by name; empty if the release does not exist."""
        folder = self.path(release_id) if release_id else None
        if folder is None or not folder.is_dir():
            return {}
        return {
            entry.name: entry.read_text(encoding="utf-8", errors="replace")
            for entry in sorted(folder.iterdir())
            if entry.is_file()
        }

    def check(self, release_id: str) -> None:
        """Raise RefusalError if a release does not exist or was edited."""
        if not _ID.fullmatch(release_id) or not self.path(release_id).is_dir():
            have = ", ".join(self.ids()) or "none"
            raise RefusalError(
                Refusal("unknown_release", f"{self.folder} has no release {release_id!r}; it has: {have}.", "Name one.")
            )
        problems = problems_of(self.path(release_id))
        if problems:
            raise RefusalError(
                Refusal(
                    "release_tampered",
                    f"{self.path(release_id)} was changed after it was written: {'; '.join(problems)}.",
                    "Change the variables of role vllm_service instead. Restore the file, or remove the folder and "
                    "deploy again, which writes it again.",
                )
            )

    def write(self, release: Release) -> bool:
        """Write a release; False if it exists already and is unchanged.

        Raises:
            RefusalError: A folder of that name was changed by hand.
            OSError: It could not be written; nothing remains under the final name.
        """
        if self.path(release.id).exists():
            self.check(release.id)
            return False
        self.folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        texts = {**release.files, MANIFEST: manifest_text(release)}
        building = Path(tempfile.mkdtemp(prefix=f"{_LEFTOVER}{release.id}-", dir=self.folder))
        try:
            for name, text in texts.items():
                _write_file(building / name, text, release.modes.get(name, DEFAULT_MODE))
            building.chmod(FOLDER_MODE)
            sync_folder(building)
            building.rename(self.path(release.id))
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        sync_folder(self.folder)
        return True

    def point(self, release_id: str) -> bool:
        """Make ``current`` point to a release, atomically; False if it already does."""
        self.check(release_id)
        if self.current() == release_id:
            return False
        # A relative target, so that the link stays valid if the home is mounted elsewhere.
        target = Path(self.folder.name) / release_id
        staged = self.link.with_name(f"{_LEFTOVER}current")
        staged.unlink(missing_ok=True)
        staged.symlink_to(target)
        staged.replace(self.link)
        sync_folder(self.link.parent)
        return True

    def removable(self, release_id: str) -> bool:
        """Whether a release exists and may be removed; raises RefusalError for the current one."""
        if release_id == self.current():
            raise RefusalError(
                Refusal(
                    "release_in_use",
                    f"{release_id} is the current release and is never removed.",
                    "Make another release current first.",
                )
            )
        return self.path(release_id).is_dir()

    def surplus(self, keep: int, spare: tuple[str, ...] = ()) -> list[str]:
        """All releases except the ``keep`` newest, the current one and those in ``spare``."""
        safe = {self.current(), *spare}
        others = [release_id for release_id in self.ids() if release_id not in safe]
        return others[keep:]

    def remove(self, release_id: str) -> None:
        """Remove a release. It is renamed first, so that an interrupted run never leaves half of it in the list."""
        if self.removable(release_id):
            gone = self.folder / f"{_LEFTOVER}removed-{release_id}"
            shutil.rmtree(gone, ignore_errors=True)
            self.path(release_id).rename(gone)
            shutil.rmtree(gone)

    def tidy(self) -> list[str]:
        """Remove the folders of interrupted runs; returns their names. Needs :meth:`lock`."""
        names = self.leftovers()
        for name in names:
            shutil.rmtree(self.folder / name)
        return names

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the releases for one process; others wait. The lock ends with the process."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def parse_modes(modes: Mapping[str, str]) -> dict[str, int]:
    """Permission bits from octal texts such as ``0755``; raises RefusalError for any other text."""
    parsed = {}
    for name, text in modes.items():
        if not re.fullmatch(r"0?[0-7]{3}", str(text)):
            raise RefusalError(
                Refusal("bad_mode", f"modes: {name} is {text!r}, which is not an octal mode.", "Write it as '0755'.")
            )
        parsed[name] = int(str(text), 8)
    return parsed


def _wrong_names(prefix: str, files: Mapping[str, str], modes: Mapping[str, int]) -> list[Refusal]:
    problems = []
    if not _PREFIX.fullmatch(prefix):
        problems.append(
            Refusal("bad_prefix", f"prefix is {prefix!r}.", "Use lower case letters, digits, dots and dashes.")
        )
    if not files:
        problems.append(Refusal("no_files", "files is empty.", "A release holds at least one file."))
    problems += [
        Refusal("bad_file_name", f"files: {name!r} is no plain file name.", "Use letters, digits, dots and dashes.")
        for name in files
        if not _NAME.fullmatch(name) or name == MANIFEST
    ]
    problems += [
        Refusal("bad_mode", f"modes: {name!r} is not among files.", "Remove it.") for name in modes if name not in files
    ]
    return problems


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _fingerprint(files: Mapping[str, str], modes: Mapping[str, int]) -> str:
    content = {name: [_sha256(text), modes[name]] for name, text in files.items()}
    return _sha256(_canonical(content))[:HASH_LENGTH]


def _fingerprint_of(folder: Path, listed: Mapping[str, tuple[str, int]]) -> str:
    texts = {name: (folder / name).read_text(encoding="utf-8").replace(folder.name, PLACEHOLDER) for name in listed}
    return _fingerprint(texts, {name: mode for name, (_, mode) in listed.items()})


def _write_file(path: Path, text: str, mode: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        # fchmod, because open() applies the umask.
        os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())
