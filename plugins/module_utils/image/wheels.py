"""Sources of the wheels of the CPU image, in particular of torch, whose build for CPUs is not on PyPI."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

#: Files of the recipe that pin torch: the build for CPUs, and what PyPI has in its place.
CPU, PYPI = "requirements-torch.txt", "requirements-torch-pypi.txt"

#: Options of pip that end a question soon, and the seconds after which it is ended in any case: a host name can have
#: many addresses, and each of them costs pip's timeout. What pip is set up to use is asked once more, because it has
#: the other wheels too.
_CONFIGURED = (["--retries=1", "--timeout=10"], 60)
_INDEX = (["--retries=0", "--timeout=5"], 20)

#: Lines of pip that say why an index gave nothing. The second is about an index without TLS, which pip does not ask.
_REASON = re.compile(r"\s*(Could not fetch URL|WARNING: The repository located at)")

#: Of torch with the CUDA libraries that it loads, compared with the build for CPUs.
_DOWNLOAD = "The download is 2.5 GB instead of 0.2 GB"
_IMAGE = "the image takes 5.3 GB of disk instead of 1.9 GB, twice that during the build"


@dataclass(frozen=True)
class Offer:
    """Result of one query with pip.

    Attributes:
        versions: Versions of torch that have a wheel for the image.
        complaint: Why there are none, in pip's words.
    """

    versions: frozenset[str] = frozenset()
    complaint: str = ""


@dataclass(frozen=True)
class Torch:
    """Source of torch.

    Attributes:
        requirements: File of the recipe that pins what to download.
        arguments: Arguments of pip that say where to look, besides what pip is set up to use.
        notice: What the operator has to know before the download; may be empty.
    """

    requirements: str
    arguments: list[str] = field(default_factory=list)
    notice: str = ""


def wheel_sources(index: str, wheels: str) -> list[str]:
    """Arguments of pip that say where wheels come from.

    Args:
        index: Package index to ask instead of the one that pip is set up to use; empty leaves that one.
        wheels: Folder of wheels; when set, no index is asked.
    """
    if wheels:
        return ["--no-index", "--find-links", wheels]
    return ["--index-url", index] if index else []


def choose(cpu: str, pypi: str, configured: Offer, asked: Offer, *, index: str, wheels: str) -> Torch:
    """Decide where torch comes from: what pip is set up to use, else the index for CPUs, else PyPI's own torch.

    Args:
        cpu: Pinned version of the build for CPUs, such as ``2.13.0+cpu``.
        pypi: Pinned version of what PyPI has in its place.
        configured: What pip offers as it is set up, or the folder of wheels.
        asked: What the index for CPUs offers; nothing where it was not asked.
        index: ``engine_image_cpu_torch_index``.
        wheels: ``engine_image_cpu_wheels``.

    Raises:
        RefusalError: Neither of the two versions is offered.
    """
    if cpu in configured.versions:
        return Torch(CPU, wheel_sources("", wheels))
    if cpu in asked.versions:
        return Torch(CPU, wheel_sources(index, wheels))
    if pypi in configured.versions:
        return Torch(PYPI, wheel_sources("", wheels), _notice(cpu, pypi, asked, wheels))
    raise RefusalError(_missing(cpu, pypi, (configured, asked), index, wheels))


def find(
    ask: Callable[[list[str], int], Offer], cpu: str, pypi: str, *, target: Sequence[str], index: str, wheels: str
) -> Torch:
    """Ask pip for torch, the index for CPUs only where it is needed, and decide as :func:`choose` does.

    Args:
        ask: Runs pip with arguments and a timeout in seconds.
        cpu: Pinned version of the build for CPUs.
        pypi: Pinned version of what PyPI has in its place.
        target: Arguments of pip that say what the wheels have to run on.
        index: ``engine_image_cpu_torch_index``.
        wheels: ``engine_image_cpu_wheels``.

    Raises:
        RefusalError: Neither of the two versions is offered.
    """

    def offer(place: list[str], options: list[str], seconds: int) -> Offer:
        # Without the check of pip's own version, which is one more question to the same index.
        quiet = ["-vv", "--no-input", "--disable-pip-version-check"]
        return ask(["index", "versions", "torch", *quiet, *options, *target, *place], seconds)

    configured = offer(wheel_sources("", wheels), *_CONFIGURED)
    needed = index and not wheels and cpu not in configured.versions
    asked = offer(wheel_sources(index, ""), *_INDEX) if needed else Offer()
    return choose(cpu, pypi, configured, asked, index=index, wheels=wheels)


def ask_pip(python: str, arguments: Sequence[str], seconds: int) -> Offer:
    """Run ``pip index versions`` with a Python of this host and read the answer.

    Args:
        python: Path of that Python.
        arguments: Arguments of pip.
        seconds: Timeout.

    Raises:
        OSError: There is no such Python.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the command is the role's
            [python, "-m", "pip", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Offer(complaint=f"no answer in {seconds} s")
    return read_offer(done.stdout)


def read_offer(output: str) -> Offer:
    """Parse the output of ``pip -vv index versions``."""
    versions = re.search(r"^Available versions: (.*)$", output, re.MULTILINE)
    lines = output.strip().splitlines()
    errors = [line.strip() for line in lines if line.startswith("ERROR:")]
    complaints = [line.strip() for line in lines if _REASON.match(line)] or errors or lines[-1:]
    return Offer(
        frozenset(re.split(r",\s*", versions[1].strip())) if versions else frozenset(),
        "" if versions else "; ".join(dict.fromkeys(complaints)),
    )


def _notice(cpu: str, pypi: str, asked: Offer, wheels: str) -> str:
    used = f"so torch {pypi} is used, PyPI's build for CUDA"
    if wheels:
        return f"engine_image_cpu_wheels ({wheels}) has no wheel of torch {cpu}, {used}: {_IMAGE}."
    return (
        f"No package index that answers has torch {cpu}, {used}. {_DOWNLOAD}, and {_IMAGE}; to avoid that, set"
        " engine_image_cpu_torch_index to an index with PyTorch's CPU wheels that this host can reach." + _reason(asked)
    )


def _reason(*offers: Offer) -> str:
    complaints = "; ".join(dict.fromkeys(offer.complaint for offer in offers if offer.complaint))
    return f" pip says: {complaints}." if complaints else ""


def _missing(cpu: str, pypi: str, offers: Collection[Offer], index: str, wheels: str) -> Refusal:
    suffix = _reason(*offers)
    if wheels:
        return Refusal(
            "wheels_missing",
            f"engine_image_cpu_wheels ({wheels}) has no wheel of torch {cpu}, nor of torch {pypi}.{suffix}",
            "Fill the folder with all wheels: wheels/ in the cache of a host that has built the image has them.",
        )
    shown = re.sub(r"//[^/@]*@", "//****@", index)
    asked = f"the index of engine_image_cpu_torch_index ({shown}) has no torch {cpu}" if index else ""
    return Refusal(
        "wheels_missing",
        f"what pip on this host is set up to use has neither torch {cpu} nor torch {pypi}"
        + (f", and {asked}." if asked else "; engine_image_cpu_torch_index is empty, so no other index was asked.")
        + suffix,
        "Let pip on this host reach PyPI or a mirror of it (`pip config list` shows what it uses), set"
        " engine_image_cpu_torch_index to an index with PyTorch's CPU wheels that this host can reach, or"
        " engine_image_cpu_wheels to a folder with all wheels.",
    )
