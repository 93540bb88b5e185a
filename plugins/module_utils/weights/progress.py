"""Progress of a run: written to a small file during the run, and formatted for the play's output.

The module runs on the host and cannot print. It writes its figures to a file; action plugin hf_snapshot reads the file
and prints them.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic

FILE_NAME = ".progress.json"
RATE_SECONDS = 15  # window of the rate, in seconds
MINUTE, HOUR = 60, 3600
KILO, WHOLE_FROM = 1000, 100
UNITS = ("B", "kB", "MB", "GB")
SECONDS_BETWEEN = 1.0


class Progress:
    """Counts bytes from any thread and writes the figures every second until the block ends."""

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with zero bytes; without a file nothing is written."""
        self._file, self._clock = file, clock
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, args=(file,), daemon=True)
        self.begin("start", 0)

    def __enter__(self) -> Progress:
        """Start writing."""
        if self._file is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop writing and remove the file."""
        self._ended.set()
        if self._file is not None:
            self._thread.join()
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    def begin(self, phase: str, total: int) -> None:
        """Start a phase (``check``, ``fetch``) with ``total`` bytes."""
        with self._mutex:
            self._phase, self._total, self._done = phase, total, 0
            self._samples = deque([(self._clock(), 0)])

    def add(self, count: int) -> None:
        """Count ``count`` more bytes."""
        with self._mutex:
            self._done += count

    def figures(self) -> dict[str, Any]:
        """Phase, bytes done and total, recent bytes per second, and seconds left (None without progress)."""
        with self._mutex:
            now = self._clock()
            while len(self._samples) > 1 and now - self._samples[0][0] > RATE_SECONDS:
                self._samples.popleft()
            begin, done = self._samples[0]
            self._samples.append((now, self._done))
            rate = (self._done - done) / (now - begin) if now > begin else 0.0
            left = max(self._total - self._done, 0) / rate if rate > 0 else None
            return {"phase": self._phase, "done": self._done, "total": self._total, "rate": rate, "left": left}

    def _write_on(self, file: Path) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            figures = self.figures()
            # A failed write must not stop the download; the next one follows in a second.
            with contextlib.suppress(OSError):
                write_atomic(file, json.dumps(figures), 0o644, durable=False)


class Pace:
    """Limits the bytes per second of all threads together."""

    def __init__(self, bytes_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the limit; 0 for none."""
        self._rate, self._clock = bytes_per_second, clock
        self._mutex = threading.Lock()
        self._free_at = clock()

    def wait(self, count: int) -> float:
        """Seconds to wait before the next bytes, after ``count`` bytes."""
        if self._rate <= 0:
            return 0.0
        with self._mutex:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now


def describe(figures: Mapping[str, Any]) -> str:
    """The figures as text, e.g. ``fetch: 12.3 of 35.0 GB (35%), 110 MB/s, 3 min 26 s left``; GB is 10^9 bytes."""
    done, total = int(figures["done"]), int(figures["total"])
    if not total:
        return str(figures["phase"])
    share = f"{done * 100 // total}%"
    left = figures["left"]
    when = "stalled" if left is None else f"{duration(float(left))} left"
    return f"{figures['phase']}: {size(done)} of {size(total)} ({share}), {size(figures['rate'])}/s, {when}"


def size(count: float) -> str:
    """Bytes as text in the largest suitable decimal unit."""
    unit = 0
    while count >= KILO and unit < len(UNITS) - 1:
        count, unit = count / KILO, unit + 1
    return f"{count:.{0 if unit == 0 or count >= WHOLE_FROM else 1}f} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds as text in the two largest suitable units."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
