"""Versions of vLLM: the one that is deployed, the oldest that is safe, those that were measured; read and compared.

Every other file takes these facts from here. A release is three numbers, compared by this module: hosts have no library
``packaging`` when they plan and check an image, for role host_python comes later.
"""

from __future__ import annotations

import re

#: Release that is deployed where nothing else is set: the default of engine_image_tag, without its ``v``.
DEPLOYED = "0.33.0"

#: Oldest release without a known hole that a request to this deployment could reach: API key bypass (closed in 0.22.0),
#: decompression bomb (0.26.0), per-request processor arguments (0.31.0), chat template of a request (0.32.0).
SECURITY_FLOOR = "0.32.0"

#: Newest release on whose boots the planner's constants are fitted.
CALIBRATED = "0.26.0"

#: Releases in whose sources the planner's rules were read, the oldest first.
READ_IN_SOURCE = ("0.26.0", "0.32.0", "0.33.0")

#: A release alone, as a catalogue entry names it.
PLAIN = re.compile(r"\d+\.\d+\.\d+")

_RELEASE = re.compile(rf"v?({PLAIN.pattern})(?:\.post\d+)?(?:[-+].*)?")

Release = tuple[int, int, int]


def plain(text: object) -> str:
    """The release in a version or a tag, such as 0.33.0 in ``v0.33.0-cu129`` or ``0.33.0+cpu``.

    Empty where there is none: ``nightly``, ``latest``, and pre-releases (``0.33.0rc1``), which are not that release.
    """
    match = _RELEASE.fullmatch(str(text))
    return match[1] if match else ""


def parse(text: object) -> Release:
    """The three numbers of a release, for comparisons; raises ValueError where :func:`plain` finds none."""
    release = plain(text)
    if not release:
        raise ValueError(f"{text!r} is not a version of vLLM")
    major, minor, patch = map(int, release.split("."))
    return major, minor, patch


def nearest_read(text: object) -> str:
    """The release of :data:`READ_IN_SOURCE` by whose rules a version is planned: the newest that is not newer.

    Versions before the first are planned as the first. Raises ValueError for what is not a version.
    """
    version = parse(text)
    return max((known for known in READ_IN_SOURCE if parse(known) <= version), key=parse, default=READ_IN_SOURCE[0])
