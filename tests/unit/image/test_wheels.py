"""Where torch for the CPU image comes from: real pip, before indexes on loopback whose wheels are made here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils.image.recipe import pinned_version
from ansible_collections.inference.vllm.plugins.module_utils.image.wheels import (
    CPU,
    PYPI,
    Offer,
    Torch,
    ask_pip,
    choose,
    find,
    read_offer,
    wheel_sources,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.modules import engine_image_torch
from support.make_wheel import make_wheel
from support.modules import run_module
from support.package_index import dropped_index, package_index, silent_index
from support.paths import ROLES

RECIPE = ROLES / "engine_image/files/cpu"
TARGET = yaml.safe_load((ROLES / "engine_image/vars/main.yml").read_text())["__engine_image_wheel_target"]
VERSION = {"cpu": "9.1.0+cpu", "pypi": "9.1.0"}
LIBRARY = "torch-library"


class Place:
    """A recipe, wheels that only some indexes have, and pip set up to use one of them."""

    def __init__(self, folder: Path) -> None:
        self.recipe, self.pip, self.torch, self.dest = (folder / name for name in ("recipe", "pip", "torch", "dest"))
        for path in (self.recipe, self.pip, self.torch):
            path.mkdir()
        self.pins = {
            "cpu": make_wheel(folder / "cpu", "torch", VERSION["cpu"]),
            "pypi": make_wheel(folder / "pypi", "torch", VERSION["pypi"]),
        }
        # As PyPI's torch has: a build whose libraries are distributions of their own.
        library = make_wheel(folder / "pypi", LIBRARY, "1.0")
        (self.recipe / CPU).write_text(f"{self.pins['cpu']}\n")
        (self.recipe / PYPI).write_text(f"{self.pins['pypi']}\n{library}\n")
        self.made = folder

    def offer(self, where: Path, kind: str) -> None:
        """Let an index have what is torch for CPUs, or PyPI's with its library."""
        for wheel in (self.made / kind).glob("*.whl"):
            (where / wheel.name).write_bytes(wheel.read_bytes())

    def download(self, result: dict[str, Any]) -> list[str]:
        """Names of what pip brings with the arguments that the module gave, as the role runs it."""
        command = ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(self.dest), *TARGET]
        subprocess.run(
            [sys.executable, "-m", "pip", *command, *result["arguments"], "-r", self.recipe / result["requirements"]],
            check=True,
            timeout=120,
        )
        return sorted(path.name.partition("-py3")[0] for path in self.dest.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def asked_of_pip(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was asked of the index that pip is set up to use."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower() in ("http_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with package_index(place.pip) as (url, asked):
        monkeypatch.setenv("PIP_INDEX_URL", url)
        yield asked


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def module(**options: Any) -> dict[str, Any]:
        given = {"recipe": str(place.recipe), "executable": sys.executable, "target": TARGET, **options}
        return run_module(engine_image_torch, capsys, given, secret="hunter2")

    return module


def test_what_pip_is_set_up_to_use_comes_first(place: Place, asked_of_pip: list[str], run: Any) -> None:
    place.offer(place.pip, "cpu")
    place.offer(place.pip, "pypi")
    place.offer(place.torch, "cpu")
    with package_index(place.torch) as (index, asked):
        result = run(index=index)
        assert place.download(result) == [f"torch-{VERSION['cpu']}"]
    assert asked == []
    assert "/simple/torch/" in asked_of_pip
    assert (result["requirements"], result["arguments"], result["notice"]) == (CPU, [], "")


def test_the_index_for_cpus_comes_next(place: Place, asked_of_pip: list[str], run: Any) -> None:
    place.offer(place.pip, "pypi")
    place.offer(place.torch, "cpu")
    with package_index(place.torch) as (index, asked):
        result = run(index=index)
        # A question costs one page of an index, not a wheel.
        assert asked_of_pip == asked == ["/simple/torch/"]
        assert place.download(result) == [f"torch-{VERSION['cpu']}"]
    assert (result["requirements"], result["arguments"], result["notice"]) == (CPU, ["--index-url", index], "")


def test_pypis_own_is_the_last_and_an_index_that_does_not_answer_is_asked_once(
    place: Place, asked_of_pip: list[str], run: Any
) -> None:
    place.offer(place.pip, "pypi")
    with silent_index() as (index, connections):
        result = run(index=index)
        assert connections == ["connection"]
        assert asked_of_pip == ["/simple/torch/"]
        assert place.download(result) == [f"torch-{VERSION['pypi']}", f"{LIBRARY.replace('-', '_')}-1.0"]
        assert connections == ["connection"]
    assert (result["requirements"], result["arguments"]) == (PYPI, [])
    assert "2.5 GB" in result["notice"]
    assert f"pip says: Could not fetch URL {index}/torch/" in result["notice"]


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_pypis_own_is_used_where_the_index_for_cpus_answers_with_an_error(
    place: Place, asked_of_pip: list[str], run: Any, status: int
) -> None:
    place.offer(place.pip, "pypi")
    place.offer(place.torch, "cpu")
    with package_index(place.torch, {"/simple/": status}) as (index, asked):
        result = run(index=index)
    assert (result["requirements"], result["arguments"]) == (PYPI, [])
    assert str(status) in result["notice"]
    assert asked == ["/simple/torch/"]


def test_pypis_own_is_used_where_no_connection_to_the_index_for_cpus_is_made(
    place: Place, asked_of_pip: list[str], run: Any
) -> None:
    place.offer(place.pip, "pypi")
    with dropped_index() as index:
        result = run(index=index)
    assert result["requirements"] == PYPI
    assert re.search(r"connect timeout|while establishing a connection|no answer in 20 s", result["notice"])


def test_an_index_without_tls_is_named_as_pip_does(place: Place, asked_of_pip: list[str], run: Any) -> None:
    place.offer(place.pip, "pypi")
    result = run(index="http://index.invalid/simple")
    assert result["requirements"] == PYPI
    assert "index.invalid is not a trusted or secure host" in result["notice"]


def test_pypis_own_is_taken_in_its_exact_version(place: Place, asked_of_pip: list[str], run: Any) -> None:
    """For pip 9.1.0+cpu satisfies ==9.1.0: another wheel that pip may prefer does not take its place."""
    place.offer(place.pip, "pypi")
    result = run(index="")
    place.offer(place.pip, "cpu")
    assert place.download(result)[0] == f"torch-{VERSION['pypi']}"


def test_an_empty_index_is_not_asked(place: Place, asked_of_pip: list[str], run: Any) -> None:
    place.offer(place.pip, "pypi")
    assert run(index="")["requirements"] == PYPI
    assert run()["requirements"] == PYPI
    assert asked_of_pip == ["/simple/torch/"] * 2


def test_a_folder_of_wheels_is_asked_alone(place: Place, asked_of_pip: list[str], run: Any) -> None:
    place.offer(place.pip, "cpu")
    folder = place.made / "pypi"
    with silent_index() as (index, connections):
        result = run(index=index, wheels=str(folder))
        assert (result["requirements"], result["arguments"]) == (PYPI, ["--no-index", "--find-links", str(folder)])
        assert f"engine_image_cpu_wheels ({folder})" in result["notice"]
        assert "index" not in result["notice"]
        assert place.download(result)[0] == f"torch-{VERSION['pypi']}"
        assert run(index=index, wheels=str(place.made / "cpu"))["requirements"] == CPU
    assert connections == asked_of_pip == []


@pytest.mark.parametrize("port", [9, 0])
def test_a_missing_torch_is_refused_with_the_output_of_pip_and_no_password(
    place: Place, asked_of_pip: list[str], run: Any, port: int
) -> None:
    index = f"http://user:hunter2@127.0.0.1:{port}/simple"
    result = run(index=index)
    (refusal,) = result["refusals"]
    assert result["failed"]
    assert refusal["code"] == "wheels_missing"
    for part in (VERSION["cpu"], VERSION["pypi"], "engine_image_cpu_torch_index (http://****@127.0.0.1"):
        assert part in refusal["message"]
    assert "Could not fetch URL http://user:****@127.0.0.1" in refusal["message"]
    for part in ("PyPI", "engine_image_cpu_torch_index", "engine_image_cpu_wheels"):
        assert part in refusal["fix"]


def test_refused_without_an_index_or_with_a_folder_names_what_was_looked_at(
    place: Place, asked_of_pip: list[str], run: Any, tmp_path: Path
) -> None:
    (refusal,) = run(index="")["refusals"]
    assert "engine_image_cpu_torch_index is empty" in refusal["message"]
    (refusal,) = run(index="https://index.invalid", wheels=str(tmp_path))["refusals"]
    assert f"engine_image_cpu_wheels ({tmp_path})" in refusal["message"]
    assert "index.invalid" not in str(refusal)


def test_a_recipe_without_pins_and_a_python_that_is_not_there_are_errors(place: Place, run: Any) -> None:
    assert "/nonexistent/python" in run(executable="/nonexistent/python")["msg"]
    (place.recipe / PYPI).write_text("numpy==1\n")
    assert "torch is not pinned" in run()["msg"]


def test_a_python_without_pip_is_refused(place: Place, run: Any, tmp_path: Path) -> None:
    python = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python], check=True, timeout=120)
    assert "No module named pip" in run(executable=str(python / "bin/python"))["msg"]


def test_a_question_ends_when_its_seconds_are_over(asked_of_pip: list[str]) -> None:
    with silent_index() as (index, _):
        offer = ask_pip(sys.executable, ["index", "versions", "torch", "--timeout=60", "--index-url", index], 2)
    assert offer == Offer(complaint="no answer in 2 s")


def test_questions_are_bounded_in_attempts_and_seconds() -> None:
    asked: list[tuple[list[str], int]] = []

    def ask(arguments: list[str], seconds: int) -> Offer:
        asked.append((arguments, seconds))
        return Offer(frozenset({"1.0"} if len(asked) == 1 else ()))

    assert find(ask, "1.0+cpu", "1.0", target=["--abi=cp311"], index="https://i", wheels="").requirements == PYPI
    (configured, at_first), (index, then) = asked
    assert {"--retries=1", "--timeout=10", "--no-input", "--abi=cp311"} <= set(configured)
    assert {"--retries=0", "--timeout=5", "--no-input", "--abi=cp311"} <= set(index)
    assert index[-2:] == ["--index-url", "https://i"]
    assert "--index-url" not in configured
    assert (at_first, then) == (60, 20)


OFFERS = {"": Offer(), "cpu": Offer(frozenset({"1.0+cpu"})), "pypi": Offer(frozenset({"1.0", "0.9"}))}
OFFERS["both"] = Offer(OFFERS["cpu"].versions | OFFERS["pypi"].versions)


@pytest.mark.parametrize(
    ("configured", "asked", "wanted"),
    [
        ("cpu", "", Torch(CPU)),
        ("both", "both", Torch(CPU)),
        ("pypi", "cpu", Torch(CPU, ["--index-url", "https://i"])),
        ("", "both", Torch(CPU, ["--index-url", "https://i"])),
    ],
)
def test_choice_of_torch_for_cpus(configured: str, asked: str, wanted: Torch) -> None:
    given = {"index": "https://i", "wheels": ""}
    assert choose("1.0+cpu", "1.0", OFFERS[configured], OFFERS[asked], **given) == wanted


@pytest.mark.parametrize("asked", ["", "pypi"])
def test_torch_of_pypi_is_chosen_with_a_notice(asked: str) -> None:
    torch = choose("1.0+cpu", "1.0", OFFERS["pypi"], OFFERS[asked], index="https://i", wheels="")
    assert (torch.requirements, torch.arguments) == (PYPI, [])
    assert "1.0+cpu" in torch.notice
    assert "engine_image_cpu_torch_index" in torch.notice


@pytest.mark.parametrize("asked", ["", "pypi"])
def test_choice_of_nothing_is_a_refusal(asked: str) -> None:
    with pytest.raises(RefusalError, match="wheels_missing"):
        choose("1.0+cpu", "1.0", OFFERS[""], OFFERS[asked], index="https://i", wheels="")


def test_offer_is_read_from_the_output_of_pip() -> None:
    output = "torch (2.1)\nAvailable versions: 2.1, 2.0+cpu\n  INSTALLED: 2.0\n"
    assert read_offer("Could not fetch URL http://other/torch/: 404 - skipping\n" + output) == Offer(
        frozenset({"2.1", "2.0+cpu"})
    )
    assert read_offer("Looking up\n  Could not fetch URL http://i/: 404 - skipping\nERROR: No torch\n") == Offer(
        complaint="Could not fetch URL http://i/: 404 - skipping"
    )
    assert read_offer("Looking up\nERROR: No torch\n") == Offer(complaint="ERROR: No torch")
    assert read_offer("/usr/bin/python3: No module named pip\n") == Offer(
        complaint="/usr/bin/python3: No module named pip"
    )


def test_wheels_come_from_a_folder_or_from_an_index() -> None:
    assert wheel_sources("", "") == []
    assert wheel_sources("https://index", "") == ["--index-url", "https://index"]
    assert wheel_sources("https://index", "/srv/wheels") == ["--no-index", "--find-links", "/srv/wheels"]


def test_recipe_pins_one_version_of_torch_for_both_and_the_libraries_of_pypis() -> None:
    cpu, pypi = ((RECIPE / name).read_text() for name in (CPU, PYPI))
    assert pinned_version(cpu, "torch") == f"{pinned_version(pypi, 'torch')}+cpu"
    assert "torch===" in pypi
    assert pinned_version(pypi, "nvidia-nccl-cu13")
    assert "torch" not in [line.partition("=")[0] for line in (RECIPE / "requirements.txt").read_text().splitlines()]
