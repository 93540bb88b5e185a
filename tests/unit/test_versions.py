"""The owner of vLLM's versions: what counts as a release, and that defaults, docs and measurements agree with it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.versions import DEPLOYED, SECURITY_FLOOR, parse, plain
from support.paths import ROLES, ROOT


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.33.0", "0.33.0"),
        ("v0.33.0", "0.33.0"),
        ("v0.32.1-cu129", "0.32.1"),
        ("0.32.0+cpu", "0.32.0"),
        ("v0.8.5.post1", "0.8.5"),
        ("0.32.0-0123456789ab", "0.32.0"),
        # A pre-release may lack what closed a hole in the release.
        ("v0.33.0rc1", ""),
        ("0.33", ""),
        ("0.33.0.1", ""),
        ("nightly", ""),
        ("latest", ""),
        ("", ""),
        (None, ""),
        ("x0.33.0", ""),
        ("0.33.0\n", ""),
    ],
)
def test_a_release_is_found_in_versions_and_tags(text: object, release: str) -> None:
    assert plain(text) == release


def test_versions_are_compared_by_number_and_not_as_text() -> None:
    assert parse("v0.9.2") < parse("0.32.0") < parse("0.33.0+cpu") < parse("1.0.0")
    with pytest.raises(ValueError, match="'nightly' is not a version of vLLM"):
        parse("nightly")


@pytest.mark.parametrize(
    ("version", "nearest"),
    [("0.11.0", "0.26.0"), ("0.26.0", "0.26.0"), ("0.31.9", "0.26.0"), ("0.32.5", "0.32.0"), ("v0.40.0", "0.33.0")],
)
def test_a_version_whose_source_was_not_read_is_planned_as_the_one_before_it(version: str, nearest: str) -> None:
    assert versions.nearest_read(version) == nearest


def test_what_is_deployed_is_safe_and_the_default_of_the_image() -> None:
    defaults = yaml.safe_load((ROLES / "engine_image/defaults/main.yml").read_text())
    assert defaults["engine_image_tag"] == f"v{DEPLOYED}"
    assert parse(DEPLOYED) >= parse(SECURITY_FLOOR)


def test_no_model_has_a_minimum_engine_below_the_floor() -> None:
    assert {
        e.name for e in catalogue.load_all().values() if parse(e.min_engine_version) < parse(SECURITY_FLOOR)
    } == set()


def test_the_calibrated_version_is_the_newest_that_was_booted() -> None:
    boots = json.loads((ROOT / "catalogue/calibration.json").read_text())["boots"]
    assert max({boot["engine"] for boot in boots}, key=parse) == versions.CALIBRATED


@pytest.mark.parametrize(
    ("file", "pattern", "version"),
    [
        ("README.md", r"imagetools inspect vllm/vllm-openai:v([\d.]+\d)", DEPLOYED),
        ("roles/engine_image/README.md", r"imagetools inspect vllm/vllm-openai:v([\d.]+\d)", DEPLOYED),
        ("docs/deployment-vision.md", r"the security floor is ([\d.]+\d)", SECURITY_FLOOR),
        ("docs/deployment-vision.md", r"([\d.]+\d) is deployed", DEPLOYED),
        ("roles/vllm/defaults/main.yml", r"known vulnerabilities, below vLLM ([\d.]+\d)", SECURITY_FLOOR),
        ("roles/vllm/meta/argument_specs.yml", r"known vulnerabilities, below vLLM ([\d.]+\d)", SECURITY_FLOOR),
        ("docs/planning.md", r"Boots of ([\d.]+\d) have not been measured", DEPLOYED),
    ],
)
def test_what_people_read_names_the_same_version(file: str, pattern: str, version: str) -> None:
    assert set(re.findall(pattern, (ROOT / file).read_text())) == {version}
