"""How far a download is, in figures and words, and how it is slowed down: with a clock of the test's own."""

from __future__ import annotations

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.weights.progress import (
    Pace,
    Progress,
    describe,
    duration,
    size,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_are_those_of_late() -> None:
    clock = Clock()
    progress = Progress(None, clock)
    progress.begin("fetch", 10_000)
    assert progress.figures() == {"phase": "fetch", "done": 0, "total": 10_000, "rate": 0.0, "left": None}
    for _ in range(10):
        clock.now += 1
        progress.add(100)
        progress.figures()
    for _ in range(20):
        clock.now += 1
        progress.add(200)
        figures = progress.figures()
    assert (figures["done"], figures["rate"], figures["left"]) == (5000, 200.0, 25.0)
    for _ in range(20):
        clock.now += 1
        figures = progress.figures()
    assert (figures["rate"], figures["left"]) == (0.0, None)


def test_a_new_phase_begins_at_nothing() -> None:
    progress = Progress(None, Clock())
    progress.begin("check", 5)
    progress.add(5)
    progress.begin("fetch", 7)
    assert (progress.figures()["phase"], progress.figures()["done"]) == ("fetch", 0)


def test_a_pace_is_shared_and_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(1000, clock)
    assert [pace.wait(500), pace.wait(500)] == [0.5, 1.0]
    clock.now += 100
    assert pace.wait(500) == 0.5
    assert Pace(0, clock).wait(10**12) == 0.0


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (
            {"phase": "fetch", "done": 12.3e9, "total": 35e9, "rate": 110e6, "left": 206.4},
            "fetch: 12.3 GB of 35.0 GB (35%), 110 MB/s, 3 min 26 s left",
        ),
        ({"phase": "fetch", "done": 1, "total": 9, "rate": 0, "left": None}, "fetch: 1 B of 9 B (11%), 0 B/s, stalled"),
        ({"phase": "start", "done": 0, "total": 0, "rate": 0, "left": None}, "start"),
    ],
)
def test_words(figures: dict[str, object], text: str) -> None:
    assert describe(figures) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (250_400, "250 kB"), (3.5e12, "3500 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7322, "2 h 2 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
