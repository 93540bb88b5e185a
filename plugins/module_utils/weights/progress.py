"""How far a run has come: written to a small file while it lasts, read and put into words by who waits.

The module that fetches runs on another machine than the person who watches, and a module cannot print. So it leaves its
figures in a file; the action plugin of the same name reads that and says it.
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
RATE_SECONDS = 15  # the rate is that of the last so many seconds
MINUTE, HOUR = 60, 3600
KILO, WHOLE_FROM = 1000, 100
UNITS = ("B", "kB", "MB", "GB")
SECONDS_BETWEEN = 1.0


class Progress:
    """Counts bytes from any thread and writes the figures every second until the block ends."""

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing; without a file nothing is written."""
        self._file, self._clock = file, clock
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, args=(file,), daemon=True)
        self.begin("start", 0)

    def __enter__(self) -> Progress:
        """Start to write."""
        if self._file is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file: nothing is under way any more."""
        self._ended.set()
        if self._file is not None:
            self._thread.join()
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    def begin(self, phase: str, total: int) -> None:
        """A new phase (``check``, ``fetch``) with so many bytes to do."""
        with self._mutex:
            self._phase, self._total, self._done = phase, total, 0
            self._samples = deque([(self._clock(), 0)])

    def add(self, count: int) -> None:
        """So many more bytes are done."""
        with self._mutex:
            self._done += count

    def figures(self) -> dict[str, Any]:
        """Phase, bytes done and in all, bytes per second of late, and seconds left (None where nothing moves)."""
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
            # What cannot be written now is no reason to stop a download; the next second tries again.
            with contextlib.suppress(OSError):
                write_atomic(file, json.dumps(figures), 0o644, durable=False)


class Pace:
    """Holds all threads together to a number of bytes per second."""

    def __init__(self, bytes_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """No limit where that is 0."""
        self._rate, self._clock = bytes_per_second, clock
        self._mutex = threading.Lock()
        self._free_at = clock()

    def wait(self, count: int) -> float:
        """Seconds to wait before the next bytes, now that so many came."""
        if self._rate <= 0:
            return 0.0
        with self._mutex:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now


def describe(figures: Mapping[str, Any]) -> str:
    """Figures in words, e.g. ``fetch: 12.3 of 35.0 GB (35%), 110 MB/s, 3 min 26 s left``; GB is 10^9 bytes."""
    done, total = int(figures["done"]), int(figures["total"])
    if not total:
        return str(figures["phase"])
    share = f"{done * 100 // total}%"
    left = figures["left"]
    when = "stalled" if left is None else f"{duration(float(left))} left"
    return f"{figures['phase']}: {size(done)} of {size(total)} ({share}), {size(figures['rate'])}/s, {when}"


def size(count: float) -> str:
    """Bytes in the decimal unit that fits."""
    unit = 0
    while count >= KILO and unit < len(UNITS) - 1:
        count, unit = count / KILO, unit + 1
    return f"{count:.{0 if unit == 0 or count >= WHOLE_FROM else 1}f} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
