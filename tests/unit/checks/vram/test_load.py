"""The shape of the heaviest load, and the pictures that it is made of."""

from __future__ import annotations

import base64
import io
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram import load as vram_load
from ansible_collections.inference.vllm.plugins.module_utils.checks.vram.load import Cost, Load, round_of

QWEN = Cost(base=12, word=1.0, pixel=1 / 1024)


def load(concurrency: int = 8, images: int = 4, max_pixels: int = 4194304, batch: int = 2048) -> Load:
    return Load(concurrency, 2, images, max_pixels, timeout=60, settle=1, batch=batch, capped=True)


@pytest.mark.parametrize(
    ("length", "cache", "sent", "wanted"),
    [
        # Two RTX 4090: one of the largest for each client, all of which the cache holds at once.
        (40528, 54624, load(), [1] * 8),
        # As many as the cache holds at once; the others have words.
        (40528, 40528, load(max_pixels=16777216), [1, 1, *[0] * 6]),
        # A large step computes many small images at once, and as many are kept.
        (131072, 400_000, load(max_pixels=1048576, batch=8192), [2] * 8),
        (131072, 400_000, load(max_pixels=1048576, batch=0), [4] * 8),
        (131072, 400_000, load(max_pixels=1048576, batch=2048), [1] * 8),
        # No more than a request may hold.
        (131072, 400_000, load(concurrency=2, images=1), [1, 1]),
        (40528, 54624, load(images=0), [0] * 8),
    ],
)
def test_each_client_has_a_largest_image_as_far_as_the_cache_holds_them(
    length: int, cache: int, sent: Load, wanted: list[int]
) -> None:
    shapes = round_of(QWEN, length, cache, sent).shapes
    assert [shape.images for shape in shapes] == wanted
    assert {shape.side for shape in shapes if shape.images} <= {math.isqrt(sent.max_pixels)}


def test_the_load_fills_the_cache_once_and_no_more_than_its_images_again() -> None:
    """What waits takes no memory: eight requests of the longest length would be eight times the cache."""
    first, later = (round_of(QWEN, 40528, 40528, load(), full=full) for full in (True, False))
    assert 1.0 < first.tokens / 40528 < 1.06
    assert later.images == first.images == 8
    assert later.tokens < 0.9 * 40528
    # A full step is there in either.
    assert min(shape.tokens for shape in later.shapes) > 2048
    # The first is not gone when the last comes.
    assert first.answer > first.tokens / 2048


def test_where_the_cache_is_not_known_it_holds_one_longest_request() -> None:
    assert round_of(QWEN, 40528, 0, load()) == round_of(QWEN, 40528, 40528, load())


def test_an_image_that_is_longer_than_a_request_is_made_to_fit() -> None:
    shapes = round_of(QWEN, 4096, 4096, load(max_pixels=16777216)).shapes
    assert (shapes[0].images, shapes[0].side) == (1, 1984)
    assert sum(shape.images for shape in shapes) == 1


@given(
    st.integers(64, 262144),
    st.floats(1, 20),
    st.floats(0.5, 5),
    st.booleans(),
    st.builds(
        load, st.integers(1, 16), st.integers(0, 8), st.integers(1024, 16777216), st.sampled_from([0, 512, 8192])
    ),
)
def test_no_request_exceeds_its_room_and_all_together_hardly_the_cache(
    length: int, holds: float, word: float, full: bool, sent: Load
) -> None:
    cache = int(length * holds)
    found = round_of(Cost(12, word, 1 / 1024), length, cache, sent, full)
    assert len(found.shapes) == sent.concurrency
    # Beside what fills the cache, each client has a few words.
    assert found.tokens <= 1.06 * cache + sent.concurrency * (13 + 65 * word)
    for shape in found.shapes:
        assert shape.tokens + found.answer <= length
        assert shape.side**2 <= sent.max_pixels
        assert shape.side % 32 == 0
        assert shape.images <= sent.images
        assert (shape.images == 0) == (shape.side == 0)


def test_a_server_whose_figures_leave_no_room_is_named() -> None:
    with pytest.raises(Failure, match="takes 600 of 512 tokens"):
        round_of(Cost(600, 1, 0.001), 512, 512, load())


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

    ended = threading.Event()

    def hang() -> None:
        ended.wait(60)

    # One second is enough for the others on a busy machine.
    outcomes = vram_load.together([lambda: None, fail, hang], 1.0)
    ended.set()
    assert outcomes[0] is None
    assert isinstance(outcomes[1], ValueError)
    assert isinstance(outcomes[2], TimeoutError)
