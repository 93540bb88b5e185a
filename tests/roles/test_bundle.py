"""The bundle that role bundle writes, and a host that was deployed from it without a network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "tiny_model" / "model"
BUNDLE = "/srv/bundle"


@pytest.fixture(scope="module")
def variables(host: Any) -> Any:
    return yaml.safe_load(host.file(f"{BUNDLE}/vars.yml").content_string)


@pytest.fixture(scope="module")
def lock(host: Any) -> Any:
    return json.loads(host.file(f"{BUNDLE}/lock.json").content_string)


def test_bundle_has_all_parts(host):
    assert set(host.file(BUNDLE).listdir()) == {
        "SHA256SUMS",
        "debs.txt",
        "image.tar.zst",
        "lock.json",
        "models",
        "vars.yml",
        "wheels",
    }


def test_hashes_are_right_and_cover_all_files_except_the_weights(host):
    assert host.run(f"cd {BUNDLE} && sha256sum --check --quiet SHA256SUMS").rc == 0
    named = {line.split("  ", 1)[1] for line in host.file(f"{BUNDLE}/SHA256SUMS").content_string.splitlines()}
    there = host.check_output(f"cd {BUNDLE} && find . -type f -not -path './models/*' -printf '%P\\n'").split()
    assert named == set(there) - {"SHA256SUMS"}


def test_the_weights_are_those_of_the_lock(host, lock):
    reviewed = json.loads((ROOT / "catalogue" / "locks" / "tiny-qwen3-vl.json").read_text())
    assert (lock["commit"], lock["files"]) == (reviewed["commit"], reviewed["files"])
    for row in lock["files"]:
        file = host.file(f"{BUNDLE}/models/{lock['repo']}/{lock['commit']}/{row['path']}")
        assert file.sha256sum == row["sha256"]


def test_a_reviewed_lock_stays_in_force(variables):
    assert "model_weights_lock" not in variables


def test_the_image_name_belongs_to_no_registry(host, variables):
    reference = variables["engine_image_archive_reference"]
    assert reference == "localhost/vllm:0.33.0"
    manifest = json.loads(host.check_output(f"zstd -dc {BUNDLE}/image.tar.zst | tar -xO manifest.json"))
    assert manifest[0]["RepoTags"] == [reference]


def test_packages_and_wheels_are_listed(host):
    packages = dict(line.split("=", 1) for line in host.file(f"{BUNDLE}/debs.txt").content_string.splitlines())
    assert {"python3-venv", "python3-packaging", "zstd", "docker.io"} <= set(packages)
    assert all(host.package(name).version == version for name, version in packages.items())
    wheels = host.file(f"{BUNDLE}/wheels").listdir()
    assert any(name.startswith("huggingface_hub-") for name in wheels)


# --- The host that was deployed from the bundle, with no network except loopback ---


def test_the_host_has_no_network(host):
    assert "state UP" not in host.check_output("ip link show eth0")


@pytest.mark.parametrize("name", sorted(path.name for path in MODEL.iterdir() if path.is_file()))
def test_the_weights_are_there(host, lock, name):
    content = host.file(f"/opt/vllm/models/{lock['repo']}/{lock['commit']}/{name}").content
    assert hashlib.sha256(content).digest() == hashlib.sha256((MODEL / name).read_bytes()).digest()


def test_the_image_is_there(host, variables):
    record = json.loads(host.file("/opt/vllm/image.json").content_string)
    assert (record["reference"], record["source"]) == (variables["engine_image_archive_reference"], "load")
    assert host.run("docker image inspect %s", record["reference"]).rc == 0


def test_the_modules_have_their_python(host):
    assert host.run("/opt/vllm/venv/bin/python -c 'import docker, huggingface_hub, openai'").rc == 0
