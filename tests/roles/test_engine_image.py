"""What a user of role engine_image would check on the host."""

from __future__ import annotations

import json
from typing import Any

import pytest

HOMES = {"pull": "/opt/vllm", "load": "/opt/loaded", "copied": "/opt/copied"}


def record(host: Any, home: str) -> Any:
    return json.loads(host.file(f"{home}/image.json").content_string)


def inspect(host: Any, reference: str) -> Any:
    return json.loads(host.check_output("docker image inspect %s", reference))[0]


@pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)
def test_record_names_an_image_that_the_engine_has(host, home):
    image = record(host, home)
    assert set(image) == {"reference", "id", "digest", "source", "vllm_version"}
    assert inspect(host, image["reference"])["Id"] == image["id"]


def test_pulled_image_is_recorded_by_its_digest(host):
    digest = host.file("/srv/image/digest").content_string.strip()
    image = record(host, HOMES["pull"])
    assert image["digest"] == digest
    assert image["reference"] == f"127.0.0.1:5000/test/vllm@{digest}"
    assert (image["source"], image["vllm_version"]) == ("pull", "0.33.0")


@pytest.mark.parametrize(("home", "tag"), [("load", "0.32.0-abc"), ("copied", "0.32.0-def")])
def test_loaded_image_is_recorded_by_its_tag(host, home, tag):
    image = record(host, HOMES[home])
    assert image["reference"] == f"localhost/test-engine:{tag}"
    assert (image["source"], image["digest"], image["vllm_version"]) == ("load", "", "0.32.0")
    assert inspect(host, image["reference"])["Config"]["Labels"]["made-for"] == image["reference"]


def test_saved_archive_holds_the_image_under_its_name(host):
    manifest = host.check_output("zstd -dc /srv/saved/again.tar.zst | tar -xO manifest.json")
    assert json.loads(manifest)[0]["RepoTags"] == ["localhost/test-engine:0.32.0-abc"]
    assert host.file("/srv/saved").listdir() == ["again.tar.zst"]


def test_refusal_changed_nothing(host):
    assert not host.file("/opt/refused").exists
