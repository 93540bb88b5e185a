"""Watchdog of the engine container: restarts the container if the engine hangs, and stops a crash loop.

Docker restarts a container that exits, but not one that hangs, and it restarts a crashing container forever. systemd
runs ``vllm_watchdog.py CONFIG.json``. Events go to standard output and, as one JSON object per line, to a file.

All times are of the monotonic clock, which is never set and does not count the time in which the host is suspended. The
memory of an earlier process is valid within the same boot of the host only.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import deploy_lock
import docker
from deploy_lock import Moment

#: Code and pattern of the signs in an engine log, the most specific first.
SIGNS = (
    ("out_of_gpu_memory", r"CUDA (error: )?out of memory|torch\.OutOfMemoryError"),
    ("gpu_error", r"\bXid\b|fallen off the bus|CUDA error: |CUDA_ERROR_\w+|Driver/library version mismatch"),
    ("communication_error", r"NCCL error|ProcessGroupNCCL.*(timeout|timed out)"),
    ("disk_full", r"No space left on device"),
    # Skips warnings, which often name a handled exception, and exceptions that only refer to an earlier one.
    ("engine_error", r"^(?!.*(\bWARNING\b|root cause|: cancelled$)).*\b(\w+Error|Exception): "),
    ("process_killed", r"\bdied unexpectedly\b"),
)
RUNBOOK = "crash_loop"
_LOG_LINES = 300
_LARGEST_LOG = 1 << 20
_DEFAULT_STOP_TIMEOUT_S = 10

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """Limits of the watchdog; times in seconds.

    Attributes:
        stall: Time without a token while requests are pending, after which the engine counts as hung.
        max_restarts: Number of restarts within ``window``, by Docker or the watchdog, after which it gives up.
        window: Time in which restarts are counted.
        pause: Minimum time between two restarts by the watchdog. It doubles with each restart within ``window``.
    """

    stall: float = 30
    max_restarts: int = 5
    window: float = 3600
    pause: float = 30


@dataclass(frozen=True)
class Observation:
    """Observed state of a container.

    Attributes:
        container: Identifier of the container.
        running: Whether it runs or Docker is about to restart it.
        started_at: Time of the last start, in Docker's format.
        health: ``healthy``, ``unhealthy`` or ``starting``; empty if it has no health check.
        restarts: Number of restarts by Docker.
        tokens: Number of steps that the engine has computed; None if unknown.
        pending: Number of running and waiting requests; None if unknown.
    """

    container: str
    running: bool
    started_at: str
    health: str
    restarts: int
    tokens: float | None = None
    pending: float | None = None


@dataclass(frozen=True)
class Memory:
    """State that the watchdog keeps of a container; times in seconds since the boot of the host."""

    container: str = ""
    started_at: str = ""
    restarts: int = 0
    recent: tuple[float, ...] = ()
    tokens: float | None = None
    stalled_since: float | None = None
    quiet_until: float = 0.0
    gave_up: bool = False


@dataclass(frozen=True)
class Verdict:
    """Action to take, ``nothing``, ``restart`` or ``stop``, and its cause."""

    memory: Memory
    action: str = "nothing"
    cause: str = ""


def judge(memory: Memory, seen: Observation, now: float, limits: Limits) -> Verdict:
    """Decide on an action from the observed and the remembered state. Pure function."""
    memory, again = _update_memory(memory, seen, now, limits)
    if not seen.running or memory.gave_up:
        return Verdict(memory)
    cause = _hang(memory, seen, now, limits)
    if again and len(memory.recent) > limits.max_restarts:
        return Verdict(replace(memory, gave_up=True), "stop", f"the container exited {len(memory.recent)} times")
    if not cause or now < memory.quiet_until:
        return Verdict(memory)
    if len(memory.recent) >= limits.max_restarts:
        return Verdict(replace(memory, gave_up=True), "stop", f"{cause}, after {len(memory.recent)} restarts")
    pause = limits.pause * 2 ** len(memory.recent)
    restarted = replace(memory, recent=(*memory.recent, now), quiet_until=now + pause, stalled_since=None)
    return Verdict(restarted, "restart", cause)


def _update_memory(memory: Memory, seen: Observation, now: float, limits: Limits) -> tuple[Memory, int]:
    """Memory with the new observation, and the number of restarts by Docker since the previous one.

    The memory is reset for another container, and for one that was started after the watchdog gave up.
    """
    if memory.container != seen.container or (memory.gave_up and memory.started_at != seen.started_at):
        memory = Memory(container=seen.container, restarts=seen.restarts)
    again = max(seen.restarts - memory.restarts, 0)
    recent = tuple(at for at in (*memory.recent, *[now] * again) if now - at < limits.window)
    if memory.started_at != seen.started_at or seen.tokens is None or seen.tokens != memory.tokens or not seen.pending:
        stalled_since = None
    else:
        stalled_since = memory.stalled_since or now
    noticed = replace(
        memory,
        started_at=seen.started_at,
        restarts=seen.restarts,
        recent=recent,
        tokens=seen.tokens,
        stalled_since=stalled_since,
    )
    return noticed, again


def _hang(memory: Memory, seen: Observation, now: float, limits: Limits) -> str:
    """Reason why the engine counts as hung, or an empty string. An engine that is starting never counts as hung."""
    if seen.health == "starting":
        return ""
    if seen.health == "unhealthy":
        return "the health check got no token"
    if memory.stalled_since is not None and now - memory.stalled_since >= limits.stall:
        return f"no token for {now - memory.stalled_since:.0f} s while {seen.pending:.0f} requests are pending"
    return ""


def reason(log: str, *, out_of_memory: bool = False) -> tuple[str, str]:
    """Most specific sign in a log: its code and the last line that matches it."""
    if out_of_memory:
        return "out_of_host_memory", "the kernel killed a process: the container reached its memory limit"
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in log.splitlines()]
    for code, pattern in SIGNS:
        for line in reversed(lines):
            if re.search(pattern, line):
                return code, line[-500:]
    return "unknown", lines[-1][-500:] if lines else ""


def metrics(text: str) -> tuple[float | None, float | None]:
    """Computed steps and pending requests, from the text of /metrics; None for unknown values."""
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^vllm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)
    pending = [sums[name] for name in ("num_requests_running", "num_requests_waiting") if name in sums]
    return sums.get("iteration_tokens_total_count"), sum(pending) if pending else None


@dataclass
class Watchdog:
    """Reads the state from Docker and the engine, and takes the action that :func:`judge` decides on."""

    config: Mapping[str, Any]
    limits: Limits
    client: Any
    memory: Memory = field(default_factory=Memory)

    def step(self, now: Moment) -> None:
        """Check once and act. The watchdog does not act while an Ansible run holds the deploy lock."""
        if _unless_it_fails(lambda: self._lock(now, write=False)) is not None:
            # Observations from before the run do not describe the engine after it.
            self.memory = replace(self.memory, stalled_since=None)
            return
        container = self._container()
        if container is None:
            return
        verdict = judge(self.memory, self._observe(container), now.seconds, self.limits)
        if verdict.action == "nothing":
            self._save_memory(verdict.memory, now)
            return
        with self._acting(now) as may_act:
            if may_act:
                self._act(container, verdict, now)

    def _act(self, container: Any, verdict: Verdict, now: Moment) -> None:
        """Act, then report. A file or a stream that cannot be written does not prevent the action."""
        signs = _unless_it_fails(lambda: self._signs(container))  # before the new start adds to the log
        # Save the memory first, so that a watchdog that is killed during the action does not repeat it.
        self._save_memory(verdict.memory, now)
        try:
            if verdict.action == "restart":
                container.restart(timeout=stop_timeout(container))
            elif verdict.action == "stop":
                container.stop(timeout=stop_timeout(container))
        finally:
            _unless_it_fails(lambda: self._report(container, verdict, signs or ("unknown", ""), now))

    @contextmanager
    def _acting(self, now: Moment) -> Iterator[bool]:
        """Hold the deploy lock during an action; False where an Ansible run has it.

        A lock that cannot be written, for example on a full disk, does not prevent the action.
        """
        held = _unless_it_fails(lambda: self._lock(now, write=True))
        try:
            yield held is None
        finally:
            if held is None:
                _unless_it_fails(lambda: deploy_lock.release(Path(self.config["lock_file"]), _this_watchdog()))

    def _lock(self, now: Moment, *, write: bool) -> deploy_lock.Held | None:
        return deploy_lock.hold(Path(self.config["lock_file"]), _this_watchdog(), now, write=write)

    def load_memory(self, now: Moment) -> None:
        """Load the memory of an earlier process. A corrupt file is ignored, and one of an earlier boot of the host."""
        try:
            data = json.loads(self._file("memory.json").read_text(encoding="utf-8"))
            boot = data.pop("boot")
            self.memory = Memory(**{**data, "recent": tuple(data["recent"])}) if boot == now.boot else Memory()
        except (OSError, ValueError, TypeError, KeyError):
            self.memory = Memory()

    def _save_memory(self, memory: Memory, now: Moment) -> None:
        if memory != self.memory:
            _unless_it_fails(lambda: self._write_memory(memory, now))
        self.memory = memory

    def _write_memory(self, memory: Memory, now: Moment) -> None:
        draft = self._file("memory.json.new")
        draft.write_text(json.dumps({**asdict(memory), "boot": now.boot}), encoding="utf-8")
        draft.replace(self._file("memory.json"))

    def _container(self) -> Any | None:
        found = self.client.containers.list(all=True, filters={"label": self.config["label"]})
        return found[0] if found else None

    def _observe(self, container: Any) -> Observation:
        state = container.attrs["State"]
        tokens, pending = self._read_metrics() if state["Running"] else (None, None)
        return Observation(
            container=container.id,
            running=bool(state["Running"] or state["Restarting"]),
            started_at=state["StartedAt"],
            health=(state.get("Health") or {}).get("Status", ""),
            restarts=int(container.attrs["RestartCount"]),
            tokens=tokens,
            pending=pending,
        )

    def _read_metrics(self) -> tuple[float | None, float | None]:
        try:
            with urllib.request.urlopen(self.config["metrics_url"], timeout=5) as page:  # noqa: S310 - root wrote it
                return metrics(page.read().decode(errors="replace"))
        except OSError:
            return None, None

    def _signs(self, container: Any) -> tuple[str, str]:
        log = container.logs(tail=_LOG_LINES).decode(errors="replace")
        return reason(log, out_of_memory=bool(container.attrs["State"].get("OOMKilled")))

    def _report(self, container: Any, verdict: Verdict, signs: tuple[str, str], now: Moment) -> None:
        code, line = signs
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now.wall)),
            "event": RUNBOOK if verdict.action == "stop" else "engine_hung",
            "action": verdict.action,
            "cause": verdict.cause,
            "container": container.name,
            "restarts": len(verdict.memory.recent),
            "reason": code,
            "line": line,
        }
        _say(f"[{event['event']}] {container.name}: {verdict.cause}; {verdict.action}. Last sign: {code}: {line}")
        file = self._file("events.jsonl")
        if file.exists() and file.stat().st_size > _LARGEST_LOG:
            file.replace(self._file("events.old.jsonl"))
        with file.open("a", encoding="utf-8") as events:
            events.write(json.dumps(event) + "\n")

    def _file(self, name: str) -> Path:
        return Path(self.config["home"]) / name


def stop_timeout(container: Any) -> int:
    """Seconds between SIGTERM and SIGKILL: the setting of the container, or Docker's default."""
    return int(container.attrs["Config"].get("StopTimeout") or _DEFAULT_STOP_TIMEOUT_S)


def _this_watchdog() -> deploy_lock.Owner:
    return deploy_lock.this_run(os.getpid(), "Watchdog")


def _unless_it_fails(work: Callable[[], _Result]) -> _Result | None:
    """Result of work that is not essential; None if it failed."""
    try:
        return work()
    except (docker.errors.DockerException, OSError) as error:
        _say(f"not done: {error}")
        return None


def _say(text: str) -> None:
    """Print a message for the journal, if the stream is open."""
    with suppress(OSError):
        print(text, flush=True)


def main() -> None:
    """Watch until the process ends. Errors of Docker are printed, and the check is repeated."""
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    client = docker.DockerClient(base_url=config["docker_host"], version="auto")
    watchdog = Watchdog(config, Limits(**config["limits"]), client)
    watchdog.load_memory(deploy_lock.this_moment())
    _say(f"watching containers with {config['label']}")
    while True:
        try:
            watchdog.step(deploy_lock.this_moment())
        except (docker.errors.DockerException, OSError) as error:
            _say(f"check failed: {error}")
        time.sleep(config["interval"])


if __name__ == "__main__":
    main()
