"""The shape of the heaviest load, and the pictures that it is made of."""

from __future__ import annotations

import base64
import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ansible_collections.inference.vllm.plugins.module_utils import vram_load
from ansible_collections.inference.vllm.plugins.module_utils.smoke_run import Failure
from ansible_collections.inference.vllm.plugins.module_utils.vram_load import Cost, shape_of

QWEN = Cost(base=12, word=1.0, pixel=1 / 1024)


@pytest.mark.parametrize(
    ("length", "images", "pixels", "wanted"),
    [
        # As many of the largest as the request may hold; the rest are words.
        (31840, 4, 1048576, (4, 1024)),
        # Room for one of the largest only.
        (31840, 4, 16777216, (1, 4096)),
        # The largest image is longer than a request: it is made to fit.
        (4096, 4, 16777216, (1, 1984)),
        (31840, 0, 16777216, (0, 0)),
    ],
)
def test_largest_images_come_first(length: int, images: int, pixels: int, wanted: tuple[int, int]) -> None:
    shape = shape_of(QWEN, length, images, pixels)
    assert (shape.images, shape.side) == wanted
    assert 0.93 * length < shape.tokens < length


@given(st.integers(64, 262144), st.integers(0, 8), st.integers(1024, 16777216), st.floats(0.5, 5))
def test_a_request_never_exceeds_its_room(length: int, images: int, pixels: int, word: float) -> None:
    shape = shape_of(Cost(12, word, 1 / 1024), length, images, pixels)
    assert shape.tokens + 4 <= length
    assert shape.side**2 <= pixels
    assert shape.side % 32 == 0
    assert shape.images <= images
    assert (shape.images == 0) == (shape.side == 0)


def test_a_server_whose_figures_leave_no_room_is_named() -> None:
    with pytest.raises(Failure, match="takes 600 of 512 tokens"):
        shape_of(Cost(600, 1, 0.001), 512, 1, 1024)


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_no_two_pictures_are_the_same_and_each_is_small() -> None:
    urls = {vram_load.picture(1024) for _ in range(20)}
    assert len(urls) == 20
    assert {decoded(url).size for url in urls} == {(1024, 1024)}
    assert max(map(len, urls)) < 30_000


def test_no_two_requests_begin_the_same() -> None:
    texts = {str(vram_load.request_of("m", 0, 0, 5)["messages"]) for _ in range(20)}
    assert len(texts) == 20


def test_calls_run_together_and_a_hung_one_does_not_hold_the_others() -> None:
    def fail() -> None:
        raise ValueError("broken")

    begin = time.monotonic()
    outcomes = vram_load.together([lambda: None, fail, lambda: time.sleep(20)], 0.3)
    assert time.monotonic() - begin < 10
    assert outcomes[0] is None
    assert isinstance(outcomes[1], ValueError)
    assert isinstance(outcomes[2], TimeoutError)
