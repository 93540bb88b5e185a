"""What is accepted as the engine's image, and what is written down about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.contracts import ImageFile, ImageSource
from ansible_collections.inference.vllm.plugins.module_utils.image.settings import (
    Wanted,
    record,
    reference,
    refusals,
    vllm_version,
)
from support.paths import ROOT

DIGEST = "sha256:" + "0123456789abcdef" * 4
OTHER_DIGEST = "sha256:" + "f" * 64
PULL = Wanted(source="pull", repository="docker.io/vllm/vllm-openai", tag="v0.33.0", digest=DIGEST)
LOAD = Wanted(source="load", archive="/srv/a.tar.zst", archive_reference="localhost/vllm-cpu:0.32.0-0123456789ab")
BUILD = Wanted(
    source="build",
    accelerator="cpu",
    built_reference="localhost/vllm-cpu:0.32.0-0123456789ab",
    built_version="0.32.0",
    cpu_flags=frozenset({"sse2", "avx2"}),
)
MODULES = ROOT / "collections"


def codes(wanted: Wanted) -> list[str]:
    return [refusal.code for refusal in refusals(wanted)]


@pytest.mark.parametrize("wanted", [PULL, LOAD, BUILD], ids=lambda wanted: wanted.source)
def test_sound_settings_are_accepted(wanted: Wanted) -> None:
    assert codes(wanted) == []


@pytest.mark.parametrize(
    ("base", "change", "code"),
    [
        (PULL, {"source": "compile"}, "unknown_image_source"),
        (PULL, {"digest": ""}, "image_without_digest"),
        (PULL, {"digest": "sha256:0123"}, "image_digest_malformed"),
        (PULL, {"digest": DIGEST.removeprefix("sha256:")}, "image_digest_malformed"),
        (PULL, {"digest": DIGEST + "\n"}, "image_digest_malformed"),
        (PULL, {"repository": "docker.io/vllm/vllm-openai:v0.33.0"}, "image_repository_malformed"),
        (PULL, {"repository": ""}, "image_repository_malformed"),
        (PULL, {"repository": "Docker.io/vllm"}, "image_repository_malformed"),
        (PULL, {"tag": "v0.33.0@" + DIGEST, "vllm_version": "0.33.0"}, "image_tag_malformed"),
        (PULL, {"tag": "latest"}, "vllm_version_unknown"),
        (PULL, {"tag": "v0.33.0rc1"}, "vllm_version_unknown"),
        (PULL, {"tag": "v0.31.9"}, "vllm_version_below_floor"),
        (PULL, {"tag": "v0.9.2"}, "vllm_version_below_floor"),
        (PULL, {"vllm_version": "0.31.0"}, "vllm_version_below_floor"),
        (PULL, {"vllm_version": "newest"}, "vllm_version_malformed"),
        (PULL, {"save_archive": "/srv/a.zip"}, "image_save_archive_unknown"),
        (LOAD, {"archive": ""}, "image_archive_unknown"),
        (LOAD, {"archive": "/srv/a.zip"}, "image_archive_unknown"),
        (
            LOAD,
            {"archive_reference": "localhost/vllm-cpu", "vllm_version": "0.32.0"},
            "image_archive_reference_malformed",
        ),
        (LOAD, {"archive_sha256": "0123"}, "image_archive_sha256_malformed"),
        (LOAD, {"archive_reference": "localhost/vllm:0.11.0"}, "vllm_version_below_floor"),
        (BUILD, {"accelerator": "nvidia"}, "cpu_image_on_gpu_host"),
        (BUILD, {"machine": "aarch64"}, "cpu_image_needs_x86_64"),
        (BUILD, {"cpu_flags": frozenset({"sse2"})}, "cpu_image_needs_avx2"),
        (BUILD, {"built_version": "0.31.0"}, "vllm_version_below_floor"),
    ],
)
def test_refused(base: Wanted, change: dict[str, Any], code: str) -> None:
    assert codes(replace(base, **change)) == [code]


@pytest.mark.parametrize(
    ("change", "loosening"),
    [
        ({"digest": ""}, {"allow_tag_without_digest": True}),
        ({"tag": "v0.11.0"}, {"unsafe_allow_old_version": True}),
        ({"tag": "nightly"}, {"vllm_version": "0.33.0"}),
    ],
)
def test_loosening_accepts_exactly_what_it_names(change: dict[str, Any], loosening: dict[str, Any]) -> None:
    assert codes(replace(PULL, **change))
    assert codes(replace(PULL, **change, **loosening)) == []


def test_refusal_of_a_tag_has_the_command_for_the_digest() -> None:
    (refusal,) = refusals(replace(PULL, digest=""))
    assert "docker buildx imagetools inspect docker.io/vllm/vllm-openai:v0.33.0" in refusal.fix
    assert "engine_image_allow_tag_without_digest" in refusal.fix


def test_all_faults_are_reported_together() -> None:
    assert codes(replace(PULL, digest="", tag="v0.1.0")) == ["image_without_digest", "vllm_version_below_floor"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (PULL, f"docker.io/vllm/vllm-openai@{DIGEST}"),
        (replace(PULL, digest=""), "docker.io/vllm/vllm-openai:v0.33.0"),
        (LOAD, "localhost/vllm-cpu:0.32.0-0123456789ab"),
        (BUILD, "localhost/vllm-cpu:0.32.0-0123456789ab"),
    ],
)
def test_reference(wanted: Wanted, expected: str) -> None:
    assert reference(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (PULL, "0.33.0"),
        (replace(PULL, tag="v0.32.1-cu129"), "0.32.1"),
        (replace(PULL, tag="latest"), ""),
        (replace(PULL, tag="latest", vllm_version="0.34.2"), "0.34.2"),
        (LOAD, "0.32.0"),
        (replace(LOAD, archive_reference="registry:5000/vllm:v0.33.0"), "0.33.0"),
        (BUILD, "0.32.0"),
        (replace(BUILD, vllm_version="0.32.0+cpu"), "0.32.0"),
    ],
)
def test_version(wanted: Wanted, expected: str) -> None:
    assert vllm_version(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "listed", "name", "digest"),
    [
        (f"docker.io/vllm/vllm-openai@{DIGEST}", [], f"docker.io/vllm/vllm-openai@{DIGEST}", DIGEST),
        # The engine leaves Docker Hub's name out, and lists every repository that the image was ever pulled from.
        (
            "docker.io/vllm/vllm-openai:v0.33.0",
            [f"mirror:5000/vllm@{OTHER_DIGEST}", f"vllm/vllm-openai@{DIGEST}"],
            f"docker.io/vllm/vllm-openai@{DIGEST}",
            DIGEST,
        ),
        ("mirror:5000/vllm:v0.33.0", [f"mirror:5000/vllm@{DIGEST}"], f"mirror:5000/vllm@{DIGEST}", DIGEST),
        ("mirror:5000/vllm:v0.33.0", [], "mirror:5000/vllm:v0.33.0", ""),
    ],
)
def test_record_of_a_pulled_image(wanted: str, listed: list[str], name: str, digest: str) -> None:
    content = record(wanted, "pull", "0.33.0", {"Id": "sha256:1", "RepoDigests": listed, "Config": {"Labels": None}})
    assert content == ImageFile(name, "sha256:1", digest, "pull", "0.33.0")


@pytest.mark.parametrize("source", ["load", "build"])
def test_record_of_an_image_that_no_registry_has(source: ImageSource) -> None:
    image = {"Id": "sha256:1", "RepoDigests": [f"elsewhere@{DIGEST}"], "Config": {"Labels": {"made-for": "x"}}}
    content = record("localhost/vllm-cpu:0.32.0-ab", source, "0.32.0", image)
    assert (content.reference, content.digest) == ("localhost/vllm-cpu:0.32.0-ab", "")
    assert {"base", "base_id", "packages"}.isdisjoint(content.as_dict())


@pytest.mark.parametrize("source", ["pull", "load", "build"])
def test_record_of_an_image_with_extra_packages_has_its_base_and_packages(source: ImageSource) -> None:
    labels = {
        "inference.vllm.base": f"docker.io/vllm/vllm-openai@{DIGEST}",
        "inference.vllm.base-id": "sha256:0",
        "inference.vllm.packages": "av==16.0.1 qwen-vl-utils==0.0.14",
        "inference.vllm.home": "/opt/vllm",
    }
    image = {"Id": "sha256:1", "RepoDigests": [], "Config": {"Labels": labels}}
    content = record("localhost/vllm-extra:0.33.0-ab", source, "0.33.0", image)
    assert content.as_dict() == {
        "schema_version": 1,
        "reference": "localhost/vllm-extra:0.33.0-ab",
        "id": "sha256:1",
        "digest": "",
        "source": source,
        "vllm_version": "0.33.0",
        "base": f"docker.io/vllm/vllm-openai@{DIGEST}",
        "base_id": "sha256:0",
        "packages": "av==16.0.1 qwen-vl-utils==0.0.14",
    }


def run_module(name: str, arguments: Mapping[str, object]) -> dict[str, Any]:
    """A module as Ansible runs it: a process that is given JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.inference.vllm.plugins.modules.{name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        cwd=MODULES,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which each file is an image that the engine has, named after the last part of its reference."""
    programs, images = tmp_path / "bin", tmp_path / "images"
    programs.mkdir()
    images.mkdir()
    (programs / "docker").write_text(
        f"""#!/bin/sh
[ "$1 $2" = "image inspect" ] && [ -e "{images}/${{3##*/}}" ] && exec cat "{images}/${{3##*/}}"
echo "No such image: $3" >&2
exit 1
"""
    )
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return images


def has(engine: Path, reference: str, image_id: str) -> None:
    """Give the engine an image."""
    image = {"Id": image_id, "RepoDigests": [f"vllm/vllm-openai@{DIGEST}"], "Config": {"Labels": None}}
    (engine / reference.rpartition("/")[2]).write_text(json.dumps([image]))


TAGGED = "docker.io/vllm/vllm-openai:v0.33.0"
PULLED = {"source": "pull", "repository": "docker.io/vllm/vllm-openai", "tag": "v0.33.0"}


def test_module_writes_the_record_once(tmp_path: Path, engine: Path) -> None:
    path = tmp_path / "home" / "image.json"
    arguments = {"path": str(path), "reference": TAGGED, "source": "pull", "vllm_version": "0.33.0"}
    dry = run_module("engine_image_record", {**arguments, "_ansible_check_mode": True})
    assert dry["changed"] and not path.exists()
    missing = run_module("engine_image_record", arguments)
    assert missing["failed"] and f"No such image: {TAGGED}" in missing["msg"] and not path.exists()
    has(engine, TAGGED, "sha256:1")
    first = run_module("engine_image_record", arguments)
    assert first["changed"] and ImageFile.from_json(path.read_text(), "image.json").as_dict() == first["image"]
    assert first["image"]["reference"] == f"docker.io/vllm/vllm-openai@{DIGEST}"
    assert [file.name for file in path.parent.iterdir()] == ["image.json"]
    assert not run_module("engine_image_record", arguments)["changed"]
    has(engine, TAGGED, "sha256:2")
    other = run_module("engine_image_record", arguments)
    assert other["changed"] and json.loads(path.read_text())["id"] == "sha256:2"


def test_module_tells_whether_the_image_is_there_and_written_down(tmp_path: Path, engine: Path) -> None:
    path = tmp_path / "image.json"
    wanted = {**PULLED, "allow_tag_without_digest": True, "record": str(path)}

    def state_of(**more: str) -> tuple[bool, bool]:
        answer = run_module("engine_image_request", {**wanted, **more})
        return answer["present"], answer["recorded"]

    assert state_of() == (False, False)
    has(engine, TAGGED, "sha256:1")
    assert state_of() == (True, False)
    written = {"path": str(path), "reference": TAGGED, "source": "pull", "vllm_version": "0.33.0"}
    run_module("engine_image_record", written)
    assert state_of() == (True, True)
    # A record of an earlier version of this project, whose files had no schema version, needs no new one.
    path.write_text(json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key != "schema_version"}))
    assert state_of() == (True, True)
    path.write_text("{")
    assert state_of() == (True, False)
    run_module("engine_image_record", written)
    assert state_of(vllm_version="0.33.1") == (True, False)
    has(engine, TAGGED, "sha256:2")
    assert state_of() == (True, False)
    (engine / "vllm-openai:v0.33.0").unlink()
    assert state_of() == (False, False)


def test_module_refuses() -> None:
    answer = run_module("engine_image_request", {"source": "pull", "repository": "r", "tag": "v0.31.0"})
    assert answer["failed"]
    assert [item["code"] for item in answer["refusals"]] == ["image_without_digest", "vllm_version_below_floor"]
