"""Where a container's memory is read: its control group where that is this machine's, else Docker's figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks import container as container_state
from ansible_collections.inference.vllm.plugins.module_utils.checks.container import (
    Container,
    ContainerError,
    cgroup_of,
    group_gib,
    group_on_this_machine,
)
from support.fake_docker import NAME, FakeContainer, fake_docker

ID = "4cc93b7e927e63eaa9695b502fc3a101872feac32b3471556bb1271c2297063a"
# As /proc/PID/cgroup has them: version 2 with systemd, version 1, and a process of another container.
SECOND = f"0::/system.slice/docker-{ID}.scope\n"
FIRST = (
    f"9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}\n4:memory:/docker/{ID}\n1:cpu:/docker/{ID}\n0::/docker/{ID}\n"
)


def test_the_files_of_either_version_are_found() -> None:
    assert cgroup_of(SECOND, ID) == (
        f"/sys/fs/cgroup/system.slice/docker-{ID}.scope/memory.current",
        f"/sys/fs/cgroup/system.slice/docker-{ID}.scope/memory.stat",
        "inactive_file",
    )
    assert cgroup_of(FIRST, ID) == (
        f"/sys/fs/cgroup/memory/docker/{ID}/memory.usage_in_bytes",
        f"/sys/fs/cgroup/memory/docker/{ID}/memory.stat",
        "total_inactive_file",
    )


@pytest.mark.parametrize("text", ["", "0::/init.scope\n", SECOND.replace("4cc9", "5cc9")])
def test_a_process_of_another_machine_with_the_same_number_is_not_taken(text: str) -> None:
    assert cgroup_of(text, ID) is None


@pytest.fixture
def group(tmp_path: Path) -> tuple[Path, Path, str]:
    usage, details = tmp_path / "memory.current", tmp_path / "memory.stat"
    usage.write_text(f"{4 * 2**30}\n")
    details.write_text(f"anon 1\ninactive_file {2**30}\nactive_file 7\n")
    return usage, details, "inactive_file"


def test_what_may_be_dropped_does_not_count(group: tuple[Path, Path, str]) -> None:
    assert group_gib(*group) == 3.0
    group[0].unlink()
    with pytest.raises(ContainerError, match="does not run"):
        group_gib(*group)


def test_a_container_that_ends_is_named(monkeypatch: pytest.MonkeyPatch, group: tuple[Path, Path, str]) -> None:
    monkeypatch.setattr(container_state, "group_on_this_machine", lambda inspected: group)
    fake = FakeContainer()
    with fake_docker(fake) as docker_host, Container(NAME, docker_host) as container:
        container.choose_figure()
        assert container.used_gib() == 3.0
        # Docker is asked once, for the group.
        assert fake.readings == 0
        group[0].unlink()
        with pytest.raises(ContainerError, match=f"container {NAME}: its control group is gone"):
            container.used_gib()


@pytest.mark.parametrize(
    "inspected", [{}, {"State": {"Pid": 0}, "Id": ID}, {"State": {"Pid": os.getpid()}, "Id": ID}, {"State": {"Pid": 1}}]
)
def test_without_the_group_docker_is_asked(inspected: dict[str, Any]) -> None:
    assert group_on_this_machine(inspected) is None
