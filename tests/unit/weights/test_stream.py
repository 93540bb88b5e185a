"""What arrives in small reads goes on in large pieces, and nothing that arrived is lost or held back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.weights import stream as weights_stream
from ansible_collections.inference.vllm.plugins.module_utils.weights.stream import (
    GATHER_SECONDS,
    PIECE_BYTES,
    RECORD_BYTES,
    BrokenStreamError,
)


class Source:
    """Gives bytes read by read, each a number of seconds after the one before; an exception is raised in its turn."""

    def __init__(self, reads: list[bytes | Exception], seconds: float = 0.0) -> None:
        self._reads, self._seconds, self._now = iter(reads), seconds, 0.0

    def read(self, most: int) -> bytes:
        self._now += self._seconds
        found = next(self._reads, b"")
        if isinstance(found, Exception):
            raise found
        assert len(found) <= most
        return found

    def pieces(self, most: int) -> Iterator[bytes]:
        return weights_stream._pieces(self.read, most, lambda: self._now)


RECORD = b"r" * RECORD_BYTES


def test_records_become_pieces() -> None:
    pieces = list(Source([RECORD] * 100).pieces(RECORD_BYTES))
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, 100 * RECORD_BYTES - PIECE_BYTES]
    assert b"".join(pieces) == RECORD * 100


def test_large_reads_go_on_as_they_come() -> None:
    reads: list[bytes | Exception] = [b"a" * PIECE_BYTES, b"b", b"c" * PIECE_BYTES]
    assert list(Source(reads).pieces(PIECE_BYTES)) == reads


def test_slow_records_are_not_held_back() -> None:
    assert list(Source([b"a", b"b", b"c"], seconds=2 * GATHER_SECONDS).pieces(RECORD_BYTES)) == [b"a", b"b", b"c"]


def test_what_came_before_the_break_is_kept() -> None:
    pieces = Source([RECORD, b"rest", ConnectionResetError("on purpose")]).pieces(RECORD_BYTES)
    assert next(pieces) == RECORD + b"rest"
    with pytest.raises(BrokenStreamError, match="on purpose"):
        next(pieces)
