"""Filters of the host roles."""

from __future__ import annotations

from ansible_collections.inference.vllm.plugins.callback.heartbeat import line
from ansible_collections.inference.vllm.plugins.filter.host import pip_arguments


def test_wheels_win_over_an_index() -> None:
    assert pip_arguments("-q", "https://index.example", "/wheels") == "-q --no-index --find-links=/wheels"


def test_own_index() -> None:
    assert pip_arguments("-q", "https://index.example", "") == "-q --index-url=https://index.example"


def test_pip_as_it_is_set_up() -> None:
    assert pip_arguments("-q", "", "") == "-q"


def test_heartbeat_names_task_hosts_and_time() -> None:
    assert line("Build | Image", ["b", "a"], 41.6) == "  ... 42 s  Build | Image  (a, b)"
