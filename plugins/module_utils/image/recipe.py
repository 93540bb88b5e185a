"""What a build depends on: a hash of its recipe, and the Debian mirrors that the host already uses."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

#: The part of the archive that a suite consists of, by what follows the suite's name.
_PARTS = ("", "-updates", "-security")

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def recipe_hash(folder: Path, *facts: str) -> str:
    """Hash of all files under a folder, by name and content, and of more facts that decide what is built.

    Args:
        folder: Folder with the recipe. Byte code is not part of it.
        facts: Further input of the build, in a fixed order.

    Returns:
        Twelve hexadecimal digits, fit for an image's tag.

    Raises:
        FileNotFoundError: There is no file in the folder.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if not files:
        raise FileNotFoundError(f"{folder}: no recipe in this folder")
    digest = hashlib.sha256()
    for name, content in _parts_of(folder, files, facts):
        # With the lengths in front no two different recipes give one stream of bytes.
        digest.update(f"{len(name)} {len(content)} ".encode() + name + content)
    return digest.hexdigest()[:12]


def pinned_version(requirements: str, name: str) -> str:
    """Version of a package in the text of a requirements file with exact pins; ValueError where it is not pinned."""
    match = re.search(rf"^{re.escape(name)}={{2,3}}([^\s=]+)", requirements, re.MULTILINE)
    if not match:
        raise ValueError(f"{name} is not pinned with == in the requirements")
    return match[1]


def debian_sources(index_targets: str, suite: str) -> list[str]:
    """Sources of a Debian suite on the mirrors that a Debian host is set up to use.

    Args:
        index_targets: What ``apt-get indextargets`` prints, with the format
            ``$(CREATED_BY)|$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)``.
        suite: Codename of the wanted suite. It may differ from the host's: the mirrors carry both.

    Returns:
        Lines of a sources.list. Empty where the host is no Debian: then the tool's own default holds.
    """
    sources: dict[str, str] = {}
    for line in index_targets.splitlines():
        created_by, origin, codename, component, uri = [*line.split("|"), "", "", "", ""][:5]
        if (created_by, origin, component) != ("Packages", "Debian", "main"):
            continue
        part = codename.partition("-")[2]
        sources.setdefault(f"-{part}" if part else "", uri)
    if "" not in sources:
        return []
    return [f"deb [signed-by={_KEYRING}] {sources[part]} {suite}{part} main" for part in _PARTS if part in sources]


def _parts_of(folder: Path, files: Iterable[Path], facts: Iterable[str]) -> Iterable[tuple[bytes, bytes]]:
    for path in files:
        yield str(path.relative_to(folder)).encode(), path.read_bytes()
    for fact in facts:
        yield b"", fact.encode()
