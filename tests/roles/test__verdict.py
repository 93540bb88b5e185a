"""Role _verdict: the verdicts that it wrote about releases of which some checks failed or are missing."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

REPORTS = "/opt/vllm/reports"
# Of each release the checks that are not ok.
FAILED = {"good": [], "bad": ["colour"], "written": ["colour", "shape"], "missing": ["vram_missing"]}


@pytest.mark.parametrize("release", FAILED)
def test_verdict_has_every_check(host, release):
    verdict = json.loads(host.file(f"{REPORTS}/{release}/verdict.json").content_string)
    assert verdict["release"] == release
    assert verdict["ok"] is (not FAILED[release])
    assert [check["code"] for check in verdict["checks"]] == ["greeting", *FAILED[release]]
    assert [check["code"] for check in verdict["checks"] if not check["ok"]] == FAILED[release]


@pytest.mark.parametrize("release", FAILED)
def test_junit_counts_the_same(host, release):
    suite = ElementTree.fromstring(host.file(f"{REPORTS}/{release}/junit.xml").content_string)
    assert suite.get("tests") == str(1 + len(FAILED[release]))
    assert suite.get("failures") == str(len(suite.findall(".//failure"))) == str(len(FAILED[release]))


def test_folder_is_closed_to_others(host):
    folder = host.file(f"{REPORTS}/good")
    assert (folder.user, oct(folder.mode)) == ("root", "0o750")


@pytest.mark.parametrize("release", FAILED)
@pytest.mark.parametrize("name", ["verdict.json", "junit.xml"])
def test_files_are_closed_to_others(host, release, name):
    file = host.file(f"{REPORTS}/{release}/{name}")
    assert (file.user, oct(file.mode)) == ("root", "0o640")


def test_a_refused_release_leaves_nothing(host):
    assert sorted(host.file(REPORTS).listdir()) == sorted(FAILED)
