"""fit.py FOLDER SPEC...: check that the packages in FOLDER fit this image and replace none of its files; compile them.

Runs with the image's own Python, in a container without a network that mounts FOLDER. Prints one line for each conflict
and then exits with 3.
"""

import compileall
import py_compile
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(sys.argv[1])
SITE = Path(str(distribution("vllm").locate_file("")))


def by_name(found: Iterator[Distribution]) -> dict[str, Distribution]:
    """Distributions by normalized name; of two with the same name the first, which an import would use."""
    named: dict[str, Distribution] = {}
    for entry in found:
        named.setdefault(canonicalize_name(entry.metadata["Name"]), entry)
    return named


def needed(package: Distribution, extras: set[str]) -> Iterator[Requirement]:
    """Requirements of a package on this Python, including those of the given extras."""
    for requirement in map(Requirement, package.requires or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": name}) for name in {"", *extras}):
            yield requirement


def faults(specs: list[str]) -> Iterator[str]:
    """One line for each conflict."""
    base, added = by_name(distributions()), by_name(distributions(path=[str(FOLDER)]))
    asked = [Requirement(spec.split()[0]) for spec in specs]
    extras = {canonicalize_name(entry.name): entry.extras for entry in asked}
    for name, package in sorted(added.items()):
        if name in base:
            yield f"{name}: the image already has version {base[name].version}, which is not changed"
        for need in needed(package, extras.get(name, set())):
            other = canonicalize_name(need.name)
            have = added.get(other) or base.get(other)
            if have is None:
                yield f"{name} needs {need}, which image and list lack: add {other}==<version>"
            elif not need.specifier.contains(have.version, prereleases=True):
                yield f"{name} needs {need}, and {'the list' if other in added else 'the image'} has {have.version}"
    for path in sorted(FOLDER.rglob("*")):
        inside = path.relative_to(FOLDER)
        if path.is_file() and inside.parts[0] != "bin" and (SITE / inside).exists():
            yield f"{inside}: the image already has a file of this name, which is not changed"


def settle() -> None:
    """Compile the packages, because the root is read-only later, and make them readable for every user."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(FOLDER, quiet=2, workers=1, invalidation_mode=mode)
    for path in (FOLDER, *FOLDER.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


if __name__ == "__main__":
    found = list(faults(sys.argv[2:]))
    print("\n".join(found))
    if found:
        sys.exit(3)
    settle()
