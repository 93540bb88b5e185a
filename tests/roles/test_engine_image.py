"""State of a host after role engine_image."""

from __future__ import annotations

import json
from typing import Any

import pytest

HOMES = {"pull": "/opt/vllm", "load": "/opt/loaded"}
# vllm_home of the images with extra packages, by the source of their base image.
EXTRA = {"changed": "/opt/extra", "copied": "/opt/copied", "build": "/opt/engine"}
FIELDS = {"reference", "id", "digest", "source", "vllm_version"}


def record(host: Any, home: str) -> Any:
    return json.loads(host.file(f"{home}/image.json").content_string)


def inspect(host: Any, reference: str) -> Any:
    return json.loads(host.check_output("docker image inspect %s", reference))[0]


@pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)
def test_record_names_an_image_that_the_engine_has(host, home):
    image = record(host, home)
    assert set(image) == FIELDS
    assert inspect(host, image["reference"])["Id"] == image["id"]


def test_pulled_image_is_recorded_by_its_digest(host):
    digest = host.file("/srv/image/digest").content_string.strip()
    image = record(host, HOMES["pull"])
    assert image["digest"] == digest
    assert image["reference"] == f"127.0.0.1:5000/test/vllm@{digest}"
    assert (image["source"], image["vllm_version"]) == ("pull", "0.33.0")


def test_loaded_image_is_recorded_by_its_tag(host):
    image = record(host, HOMES["load"])
    assert image["reference"] == "localhost/test-engine:0.32.0-abc"
    assert (image["source"], image["digest"], image["vllm_version"]) == ("load", "", "0.32.0")
    assert inspect(host, image["reference"])["Config"]["Labels"]["made-for"] == image["reference"]


def test_saved_archive_holds_the_image_under_its_name(host):
    manifest = host.check_output("zstd -dc /srv/saved/again.tar.zst | tar -xO manifest.json")
    assert json.loads(manifest)[0]["RepoTags"] == ["localhost/test-engine:0.32.0-abc"]
    assert sorted(host.file("/srv/saved").listdir()) == ["again.tar.zst", "extra"]
    assert host.file("/srv/saved/extra").listdir() == ["image.tar.zst"]


def test_refusal_changed_nothing(host):
    assert not host.file("/opt/refused").exists


def test_signature_was_verified_on_the_host_with_cosign(host):
    seen = host.file("/opt/vllm/image-signature.json")
    assert seen.exists == host.exists("cosign")
    if seen.exists:
        content = json.loads(seen.content_string)
        assert content["reference"] == record(host, HOMES["pull"])["reference"]
        assert content["signer"].startswith("key sha256:")


@pytest.fixture(params=EXTRA)
def extra(host: Any, request: Any) -> Any:
    """Record of an image with packages; only one host has the real engine image."""
    home = EXTRA[request.param]
    if request.param == "build" and not host.file(home).exists:
        assert not host.exists("cosign")
        pytest.skip("the real engine image is on the other host")
    return record(host, home)


def test_packages_were_added_to_the_image_and_nothing_else_changed(host, extra):
    assert set(extra) == FIELDS | {"base", "base_id", "packages"}
    image, base = inspect(host, extra["reference"]), inspect(host, extra["base_id"])
    assert image["Id"] == extra["id"] != base["Id"]
    assert image["RootFS"]["Layers"][:-1] == base["RootFS"]["Layers"]
    for field in ("User", "Entrypoint", "Cmd", "Env", "WorkingDir"):
        assert image["Config"][field] == base["Config"][field]
    assert (base["Config"]["Labels"] or {}).items() <= image["Config"]["Labels"].items()
    assert image["Config"]["User"] == "2000:0"


def python(host: Any, reference: str, code: str) -> str:
    run = "docker run --rm --network none --read-only --tmpfs /tmp --user 12345:0 --entrypoint python3 %s -c %s"
    return str(host.check_output(run, reference, code)).strip()


def test_packages_are_compiled_and_readable_for_any_user(host, extra):
    for spec in extra["packages"].split():
        module = spec.split("==", maxsplit=1)[0].replace("-", "_")
        code = f"import os, {module} as m; print(os.access(m.__file__, os.R_OK), os.access(m.__cached__, os.R_OK))"
        assert python(host, extra["reference"], code).splitlines()[-1] == "True True"


def test_vllm_and_torch_have_the_version_of_the_base_image(host, extra):
    code = "from importlib.metadata import version as v; print(v('vllm'), v('torch'))"
    assert python(host, extra["reference"], code) == python(host, extra["base_id"], code)


@pytest.mark.parametrize("home", EXTRA.values(), ids=EXTRA)
def test_build_files_are_removed(host, home):
    assert not host.file(f"{home}/cache/engine-image/extra").exists


def test_a_changed_package_makes_a_new_image_and_unreleased_images_are_pruned(host):
    home = EXTRA["changed"]
    listed = host.check_output(
        "docker image ls --filter label=inference.vllm.home=%s --format '{{.Repository}}:{{.Tag}}'", home
    )
    released = json.loads(host.file(f"{home}/releases/before/manifest.json").content_string)["image"]
    pruned = json.loads(host.file(f"{home}/image-before.json").content_string)
    now = record(host, home)
    assert (released["source"], now["source"]) == ("pull", "load")
    assert released["base"] == record(host, HOMES["pull"])["reference"]
    assert len({image["reference"] for image in (released, pruned, now)}) == 3
    assert set(listed.split()) == {released["reference"], now["reference"]}


def test_loading_an_archive_of_an_image_with_packages_restores_the_whole_record(host):
    assert record(host, "/opt/bundled") == record(host, EXTRA["copied"])
