"""Samples memory in a separate thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# A reading that takes longer is a driver or a Docker engine that hangs.
_STUCK_SECONDS = 15.0
# Minimum number of readings in a moment, so that a single outlier does not decide.
_LEAST = 2


@dataclass(frozen=True)
class Sample:
    """One reading.

    Attributes:
        seconds: When, since the sampler's start.
        gib: Used memory in GiB by the name of what was read: ``GPU 0`` or the container's.
    """

    seconds: float
    gib: Mapping[str, float]


@dataclass(frozen=True)
class Window:
    """A span of time, in seconds since the sampler's start."""

    start: float
    end: float

    def of(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that were read in it."""
        return [sample for sample in samples if self.start <= sample.seconds <= self.end]


class Sampler:
    """Samples from `start` to `stop`. The first reading that fails ends the series; `failure` is the reason."""

    def __init__(self, read: Callable[[], Mapping[str, float]], interval: float) -> None:
        """Keep the function and the seconds between two calls; nothing is called yet."""
        self.samples: list[Sample] = []
        self.failure = ""
        self.cpu_seconds = 0.0
        self._read = read
        self._interval = interval
        self._end = threading.Event()
        self._begin = time.monotonic()
        self._alive = self._begin
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._begin = self._alive = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; a reading that hangs is abandoned and reported in `failure`."""
        self._end.set()
        self._thread.join(max(self._alive + _STUCK_SECONDS - time.monotonic(), 0.1))
        if self._thread.is_alive() and not self.failure:
            self.failure = f"a reading did not return for {time.monotonic() - self._alive:.0f} s"

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begin

    def rest(self, seconds: float) -> Window:
        """Wait, at least until there are enough readings, unless the sampler has failed or hangs."""
        start = self.now()
        time.sleep(seconds)
        while len(Window(start, self.now()).of(self.samples)) < _LEAST and not self.failure:
            if time.monotonic() - self._alive > _STUCK_SECONDS:
                break
            time.sleep(self._interval / 4)
        return Window(start, self.now())

    def _run(self) -> None:
        while not self._end.is_set():
            self._alive = time.monotonic()
            try:
                gib = dict(self._read())
            except Exception as error:  # any error of a driver or daemon ends the series, not the check
                self.failure = f"{error}" or type(error).__name__
                break
            # The figure is of a moment between call and return.
            self.samples.append(Sample((self._alive + time.monotonic()) / 2 - self._begin, gib))
            self._end.wait(max(self._alive + self._interval - time.monotonic(), 0.0))
        self.cpu_seconds = time.thread_time()
