"""What role engine_image brought to a host that has nothing, from the package indexes that each case has."""

from __future__ import annotations

import pytest

CPU = {"torch-9.1.0+cpu"}
PYPI = {"torch-9.1.0", "torch_library-1.0"}
TORCH = {"mirror": CPU, "pytorch": CPU, "pypi": PYPI, "default": PYPI}


def asked(host, index):
    return host.file(f"/srv/asked/{index}").content_string.splitlines()


@pytest.mark.parametrize("case", TORCH)
def test_torch_comes_from_the_first_index_that_has_it_with_all_the_others(host, case):
    files = host.file(f"/opt/{case}/wheels").listdir()
    wheels = {name.partition("-py3")[0] for name in files if name.endswith(".whl")}
    assert wheels == TORCH[case] | {"other-1.0", "tool-1.0"}


@pytest.mark.parametrize("case", TORCH)
def test_mark_of_a_complete_set_pins_its_torch(host, case):
    (mark,) = [name for name in host.file(f"/opt/{case}/wheels").listdir() if name.startswith("complete-")]
    lines = host.file(f"/opt/{case}/wheels/{mark}").content_string.splitlines()
    pinned = {line.split()[0].replace("===", "-").replace("torch-library", "torch_library") for line in lines}
    assert pinned == TORCH[case]


def test_an_index_that_does_not_answer_was_asked_once_and_only_where_it_was_needed(host):
    assert asked(host, "silent") == ["connection"]


def test_an_index_for_cpus_was_asked_for_torch_only(host):
    assert [path for path in asked(host, "pytorch") if "torch" not in path] == []
    assert "/files/torch-9.1.0+cpu-py3-none-any.whl" in asked(host, "pytorch")


@pytest.mark.parametrize("case", ["other", "forbidden"])
def test_what_was_refused_is_not_there(host, case):
    assert host.file(f"/opt/{case}/wheels").listdir() == []


def test_a_wheel_with_another_hash_was_downloaded_once(host):
    assert asked(host, "other").count("/files/torch-9.1.0+cpu-py3-none-any.whl") == 1
