"""Versions of vLLM: deployed by default, oldest safe one, measured ones; parsing and comparison.

This module is the only source of these facts. It compares releases itself, because library ``packaging`` is not yet
on the host when a plan is made and an image is checked: role host_python runs later.
"""

from __future__ import annotations

import re

#: Release that is deployed by default: the default of engine_image_tag, without its ``v``.
DEPLOYED = "0.33.0"

#: Oldest release without a known vulnerability to requests of this deployment: API key bypass (fixed in 0.22.0),
#: decompression bomb (0.26.0), per-request processor arguments (0.31.0), chat template of a request (0.32.0).
SECURITY_FLOOR = "0.32.0"

#: Newest release whose boots the planner's constants are fitted to.
CALIBRATED = "0.26.0"

#: Releases from whose sources the planner's rules were taken, oldest first.
READ_IN_SOURCE = ("0.26.0", "0.32.0", "0.33.0")

#: A release as in a catalogue entry.
PLAIN = re.compile(r"\d+\.\d+\.\d+")

_RELEASE = re.compile(rf"v?({PLAIN.pattern})(?:\.post\d+)?(?:[-+].*)?")

Release = tuple[int, int, int]


def plain(text: object) -> str:
    """The release in a version or a tag, such as 0.33.0 in ``v0.33.0-cu129`` or ``0.33.0+cpu``.

    Empty if there is none: ``nightly``, ``latest``, and pre-releases (``0.33.0rc1``), which are not that release.
    """
    match = _RELEASE.fullmatch(str(text))
    return match[1] if match else ""


def parse(text: object) -> Release:
    """The three numbers of a release, for comparisons; raises ValueError if :func:`plain` finds none."""
    release = plain(text)
    if not release:
        raise ValueError(f"{text!r} is not a version of vLLM")
    major, minor, patch = map(int, release.split("."))
    return major, minor, patch


def nearest_read(text: object) -> str:
    """The release of :data:`READ_IN_SOURCE` whose rules apply to a version: the newest one that is not newer.

    Versions before the first are planned like the first. Raises ValueError if the text is not a version.
    """
    version = parse(text)
    return max((known for known in READ_IN_SOURCE if parse(known) <= version), key=parse, default=READ_IN_SOURCE[0])
