"""The requested engine's image: its settings, their checks, and the content of `image.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.contracts import ImageFile, ImageSource
from ansible_collections.inference.vllm.plugins.module_utils.image import packages as extra_packages
from ansible_collections.inference.vllm.plugins.module_utils.image import signature as image_signature
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?::\d+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tar.zst")

#: Labels of an image with extra packages, and what image.json calls them.
_LABELS = {"inference.vllm.base": "base", "inference.vllm.base-id": "base_id", "inference.vllm.packages": "packages"}


@dataclass(frozen=True)
class Wanted:
    """The settings of role engine_image, without their prefix, and facts about the host.

    Attributes:
        source: ``pull``, ``load`` or ``build``.
        accelerator: ``nvidia`` or ``cpu``.
        repository: Repository in a registry, with the registry's name.
        tag: Tag in that repository.
        digest: ``sha256:<64 hex>`` of the reviewed image; empty where only the tag is known.
        allow_tag_without_digest: Accept a tag without a digest, which the registry may move.
        archive: Path of an image archive.
        archive_reference: Name and tag that the archive is expected to hold.
        archive_sha256: Hash of the archive file, 64 hex; empty is not checked.
        save_archive: Path that receives the image as an archive; empty saves nothing.
        built_reference: Name and tag that a build gives.
        built_version: vLLM's version that a build gives.
        vllm_version: vLLM's version where it cannot be read from a tag.
        unsafe_allow_old_version: Accept a version below the security floor.
        extra_packages: Packages to lay over the image, each ``name==version``.
        extra_wheels: Folder that they come from; empty asks an index.
        extra_files: Names of the files in that folder.
        signer: Who must have signed the image.
        signature_tool: Program that checks it.
        signature_tool_found: Whether the host has it.
        machine: Hardware name as in ``uname -m``.
        cpu_flags: Instruction sets as in ``/proc/cpuinfo``; empty where they are not known.
    """

    source: ImageSource
    accelerator: str = "nvidia"
    repository: str = ""
    tag: str = ""
    digest: str = ""
    allow_tag_without_digest: bool = False
    archive: str = ""
    archive_reference: str = ""
    archive_sha256: str = ""
    save_archive: str = ""
    built_reference: str = ""
    built_version: str = ""
    vllm_version: str = ""
    unsafe_allow_old_version: bool = False
    extra_packages: tuple[str, ...] = ()
    extra_wheels: str = ""
    extra_files: frozenset[str] = frozenset()
    signer: image_signature.Signer = image_signature.NO_SIGNER
    signature_tool: str = "cosign"
    signature_tool_found: bool = True
    machine: str = "x86_64"
    cpu_flags: frozenset[str] = frozenset()


def reference(wanted: Wanted) -> str:
    """What an engine is asked for: ``repository@digest``, or name and tag where there is no digest."""
    if wanted.source == "build":
        return wanted.built_reference
    if wanted.source == "load":
        return wanted.archive_reference
    return f"{wanted.repository}@{wanted.digest}" if wanted.digest else f"{wanted.repository}:{wanted.tag}"


def vllm_version(wanted: Wanted) -> str:
    """vLLM's version as ``major.minor.patch``; empty if neither a setting nor the tag has it."""
    by_source = {"pull": wanted.tag, "load": wanted.archive_reference.rpartition(":")[2], "build": wanted.built_version}
    return versions.plain(wanted.vllm_version) or versions.plain(by_source.get(wanted.source, ""))


def refusals(wanted: Wanted) -> list[Refusal]:
    """All reasons why these settings are not accepted; empty if they are."""
    checks = {"pull": _pull_refusals, "load": _load_refusals, "build": _build_refusals}
    if wanted.source not in checks:
        return [
            Refusal(
                "unknown_image_source",
                f"engine_image_source is {wanted.source!r}; allowed are pull, load and build.",
                "Set engine_image_source to one of them.",
            )
        ]
    return [
        *checks[wanted.source](wanted),
        *_save_refusals(wanted),
        *_version_refusals(wanted),
        *extra_packages.refusals(wanted.extra_packages, wanted.extra_wheels, wanted.extra_files),
        *image_signature.refusals(
            wanted.signer,
            source=wanted.source,
            digest=wanted.digest,
            archive_sha256=wanted.archive_sha256,
            tool=wanted.signature_tool,
            tool_found=wanted.signature_tool_found,
        ),
    ]


def ask(run: Callable[[list[str]], tuple[int, str, str]], docker: str | None, name: str) -> tuple[dict[str, Any], str]:
    """What the engine says of an image.

    Args:
        run: Runs a command; returns its exit status, output and errors.
        docker: The engine's command line, if there is one.
        name: The image's reference.

    Returns:
        What ``docker image inspect`` shows, or nothing and why there is nothing.
    """
    if docker is None:
        return {}, "there is no program docker"
    code, out, err = run([docker, "image", "inspect", name])
    return (json.loads(out)[0], "") if code == 0 else ({}, err.strip())


def record(wanted: str, source: ImageSource, version: str, image: Mapping[str, Any]) -> ImageFile:
    """The content of ``image.json``.

    Args:
        wanted: What reference() gave.
        source: ``pull``, ``load`` or ``build``.
        version: What vllm_version() gave.
        image: What ask() gave: ``Id``, the engine's own identifier; ``RepoDigests``, its digests in registries, each
            ``repository@sha256:...``; and the labels in ``Config``. They tell what an image with extra packages was
            made of, also where it was loaded.

    Returns:
        The record. A pulled tag is recorded by the digest it had, so that a release keeps meaning one image; what was
        loaded or built has a digest in no registry.
    """
    digest = ""
    if source == "pull":
        repository, _, digest = wanted.partition("@")
        if not digest:
            repository = wanted.rpartition(":")[0]
            listed = (entry.partition("@") for entry in image.get("RepoDigests") or [])
            digest = next((value for name, _, value in listed if _same_repository(name, repository)), "")
        wanted = f"{repository}@{digest}" if digest else wanted
    labels = (image.get("Config") or {}).get("Labels") or {}
    made_of = {field: labels[label] for label, field in _LABELS.items() if label in labels}
    return ImageFile(
        reference=wanted,
        id=image.get("Id", ""),
        digest=digest,
        source=source,
        vllm_version=version,
        **made_of,
    )


def recorded(path: Path) -> ImageFile | None:
    """What ``image.json`` says; None where it is missing or cannot be read, and has to be written again."""
    try:
        return ImageFile.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError):
        return None


def in_use(home: Path) -> set[str]:
    """References of the images that ``image.json`` and the manifests of the releases under a home name."""
    found = set()
    for path in (home / "image.json", *home.glob("releases/*/manifest.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        image = content if path.name == "image.json" else content.get("image")
        found.add(str((image or {}).get("reference")))
    return found


def unused(listed: Collection[str], used: Collection[str]) -> list[str]:
    """Which of the listed names nothing uses, in alphabetical order; an image without a name has none to remove."""
    return sorted(name for name in set(listed) - set(used) if "<none>" not in name)


def _same_repository(listed: str, asked: str) -> bool:
    """Whether both name one repository: the engine leaves Docker Hub's name and its library folder out."""
    return listed in (asked, asked.removeprefix("docker.io/"), asked.removeprefix("docker.io/library/"))


def _pull_refusals(wanted: Wanted) -> Iterator[Refusal]:
    if not _REPOSITORY.fullmatch(wanted.repository):
        yield Refusal(
            "image_repository_malformed",
            f"engine_image_repository is {wanted.repository!r}; allowed is registry/path in lower case, without tag.",
            "Write it as docker.io/vllm/vllm-openai; the tag goes into engine_image_tag.",
        )
    if not _TAG.fullmatch(wanted.tag):
        yield Refusal(
            "image_tag_malformed",
            f"engine_image_tag is {wanted.tag!r}; allowed are letters, digits, '_', '.' and '-', at most 128.",
            "Write it as v0.33.0; a digest goes into engine_image_digest.",
        )
    name = f"{wanted.repository}:{wanted.tag}"
    if wanted.digest:
        algorithm, _, value = wanted.digest.partition(":")
        if algorithm != "sha256" or not _SHA256.fullmatch(value):
            yield Refusal(
                "image_digest_malformed",
                f"engine_image_digest is {wanted.digest!r}; allowed is sha256: and 64 hexadecimal digits.",
                f"Copy the digest that `docker buildx imagetools inspect {name}` prints.",
            )
    elif not wanted.allow_tag_without_digest:
        yield Refusal(
            "image_without_digest",
            f"engine_image_digest is empty, so everyone with write access to the registry can replace {name}.",
            f"Find the digest with `docker buildx imagetools inspect {name}` (line Digest), or in the last lines of"
            f" `docker pull {name}`, and set engine_image_digest to it; or accept the risk with"
            " engine_image_allow_tag_without_digest: true.",
        )


def _load_refusals(wanted: Wanted) -> Iterator[Refusal]:
    if not wanted.archive.endswith(_ARCHIVE_SUFFIXES):
        yield Refusal(
            "image_archive_unknown",
            f"engine_image_archive is {wanted.archive!r}; allowed is a path that ends in .tar, .tar.gz or .tar.zst.",
            "Set it to the archive of `docker save`, or to what engine_image_save_archive wrote on another host.",
        )
    name, _, tag = wanted.archive_reference.rpartition(":")
    if not _REPOSITORY.fullmatch(name) or not _TAG.fullmatch(tag):
        yield Refusal(
            "image_archive_reference_malformed",
            f"engine_image_archive_reference is {wanted.archive_reference!r}; allowed is name:tag.",
            "Set it to the name and tag under which the image was saved.",
        )
    if wanted.archive_sha256 and not _SHA256.fullmatch(wanted.archive_sha256):
        yield Refusal(
            "image_archive_sha256_malformed",
            f"engine_image_archive_sha256 is {wanted.archive_sha256!r}; allowed are 64 hexadecimal digits.",
            "Copy what `sha256sum` printed where the archive was made.",
        )


def _build_refusals(wanted: Wanted) -> Iterator[Refusal]:
    if wanted.accelerator != "cpu":
        yield Refusal(
            "cpu_image_on_gpu_host",
            f"engine_image_source is 'build' and vllm_accelerator is {wanted.accelerator!r}; what is built has no code"
            " for GPUs.",
            "Set engine_image_source to pull or load, or vllm_accelerator to cpu.",
        )
    if wanted.machine != "x86_64":
        yield Refusal(
            "cpu_image_needs_x86_64",
            f"engine_image_source is 'build' and this host is {wanted.machine}; the pinned wheels are for x86_64.",
            "Use a host with x86_64, or engine_image_source: load with an image for this hardware.",
        )
    elif wanted.cpu_flags and "avx2" not in wanted.cpu_flags:
        yield Refusal(
            "cpu_image_needs_avx2",
            "engine_image_source is 'build' and this host's processor has no AVX2, which vLLM needs.",
            "Use a host with AVX2 (`grep -c avx2 /proc/cpuinfo`); in a virtual machine, pass the host's CPU model on.",
        )


def _save_refusals(wanted: Wanted) -> Iterator[Refusal]:
    if wanted.save_archive and not wanted.save_archive.endswith(_ARCHIVE_SUFFIXES):
        yield Refusal(
            "image_save_archive_unknown",
            f"engine_image_save_archive is {wanted.save_archive!r}; allowed is a path that ends in .tar, .tar.gz or"
            " .tar.zst.",
            "Name it like vllm-cpu.tar.zst.",
        )


def unknown_version(wanted: Wanted) -> Refusal | None:
    """Why vLLM's version in the image is not known, or None where it is."""
    if wanted.vllm_version and not versions.plain(wanted.vllm_version):
        return Refusal(
            "vllm_version_malformed",
            f"engine_image_vllm_version is {wanted.vllm_version!r}; allowed is major.minor.patch.",
            f"Write it as {versions.DEPLOYED}.",
        )
    if not vllm_version(wanted):
        loads = wanted.source == "load"
        setting = f"archive_reference is {wanted.archive_reference!r}" if loads else f"tag is {wanted.tag!r}"
        return Refusal(
            "vllm_version_unknown",
            f"engine_image_{setting}, which does not contain vLLM's version, and engine_image_vllm_version is empty.",
            f"Set engine_image_vllm_version to the version inside the image, for example {versions.DEPLOYED}.",
        )
    return None


def _version_refusals(wanted: Wanted) -> Iterator[Refusal]:
    if unknown := unknown_version(wanted):
        yield unknown
        return
    version, floor = vllm_version(wanted), versions.SECURITY_FLOOR
    if versions.parse(version) < versions.parse(floor) and not wanted.unsafe_allow_old_version:
        yield Refusal(
            "vllm_version_below_floor",
            f"the image has vLLM {version}; below {floor} a request can reach known holes (remote code, bypass of the"
            " API key).",
            f"Choose {floor} or newer; or accept the vulnerabilities with vllm_unsafe_allow_old_engine: true.",
        )
