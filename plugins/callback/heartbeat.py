"""Print every few seconds which task is still running."""

from __future__ import annotations

DOCUMENTATION = r"""
name: heartbeat
type: aggregate
short_description: Print every few seconds which task is still running
version_added: 0.1.0
description:
  - Prints one line whenever a task has run for another O(interval) seconds.
  - This shows that a long download or build is still running.
requirements:
  - enable in configuration
options:
  interval:
    description: Seconds between two lines. V(0) prints none.
    type: float
    default: 10
    env:
      - name: VLLM_HEARTBEAT_INTERVAL
    ini:
      - section: callback_heartbeat
        key: interval
"""

import threading
import time
from typing import Any

from ansible.plugins.callback import CallbackBase


def line(task: str, hosts: list[str], seconds: float) -> str:
    """The line for a task that has run for ``seconds`` on these hosts."""
    where = ", ".join(sorted(hosts)) if hosts else "-"
    return f"  ... {seconds:.0f} s  {task}  ({where})"


class CallbackModule(CallbackBase):
    """Starts one thread, which ends with the run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "inference.vllm.heartbeat"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Begin with no task."""
        super().__init__()
        self._lock = threading.Lock()
        self._task = ""
        self._started = 0.0
        self._hosts: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _beat(self, interval: float) -> None:
        shown = 0.0
        while not self._stop.wait(min(1.0, interval)):
            with self._lock:
                task, hosts, seconds = self._task, list(self._hosts), time.monotonic() - self._started
            if not hosts or seconds < shown:
                shown = 0.0
            if hosts and seconds - shown >= interval:
                shown = seconds
                self._display.display(line(task, hosts, seconds), color="dark gray")

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Start the thread with the first play."""
        interval = float(self.get_option("interval"))
        if self._thread is None and interval > 0:
            self._thread = threading.Thread(target=self._beat, args=(interval,), daemon=True)
            self._thread.start()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A new task begins on no host yet."""
        with self._lock:
            self._task, self._started, self._hosts = task.get_name().strip(), time.monotonic(), set()

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """A handler counts as a task."""
        self.v2_playbook_on_task_start(task, is_conditional=False)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """A host begins with the current task."""
        with self._lock:
            self._hosts.add(host.get_name())

    def _done(self, result: Any) -> None:
        with self._lock:
            self._hosts.discard(result.host.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        """A host is done."""
        self._done(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A host is done."""
        self._done(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """A host is done."""
        self._done(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host is done."""
        self._done(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Stop the thread."""
        self._stop.set()
