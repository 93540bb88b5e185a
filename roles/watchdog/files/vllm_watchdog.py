"""Watches the engine's container: restarts it when it hangs, and stops a crash loop with the reason.

Docker starts a container again that ended, never one that hangs; and it starts one that dies at once for ever. Run as
``vllm_watchdog.py CONFIG.json`` by systemd. Events go to standard output and, one JSON object a line, to a file.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import docker

#: Signs in an engine's log, the most telling first: code, pattern.
SIGNS = (
    ("out_of_gpu_memory", r"CUDA (error: )?out of memory|torch\.OutOfMemoryError"),
    ("gpu_error", r"\bXid\b|fallen off the bus|CUDA error: |CUDA_ERROR_\w+|Driver/library version mismatch"),
    ("communication_error", r"NCCL error|ProcessGroupNCCL.*(timeout|timed out)"),
    ("disk_full", r"No space left on device"),
    # Many warnings name an exception that was dealt with, and the last exceptions only point to one before them.
    ("engine_error", r"^(?!.*(\bWARNING\b|root cause|: cancelled$)).*\b(\w+Error|Exception): "),
    ("process_killed", r"\bdied unexpectedly\b"),
)
RUNBOOK = "crash_loop"
_LOG_LINES = 300
_LARGEST_LOG = 1 << 20
_OLD_LOCK_S = 3600
_DOCKERS_PATIENCE_S = 10


@dataclass(frozen=True)
class Limits:
    """When the watchdog acts, in seconds.

    Attributes:
        stall: No token although requests wait, for so long, is a hang.
        max_restarts: Restarts within ``window``, whoever made them, after which it gives up.
        window: What counts as recent.
        pause: Least time between two restarts of its own; doubled with each recent one.
    """

    stall: float = 30
    max_restarts: int = 5
    window: float = 3600
    pause: float = 30


@dataclass(frozen=True)
class Seen:
    """A container at one moment.

    Attributes:
        container: Its identifier.
        running: Whether it runs, or Docker is about to start it again.
        started_at: When it was started last, as Docker writes it.
        health: ``healthy``, ``unhealthy`` or ``starting``; empty without a health check.
        restarts: How often Docker has started it again by itself.
        tokens: Steps that the engine has computed; None where it does not tell.
        pending: Requests that it has not answered yet; None where it does not tell.
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
    """What the watchdog remembers of a container."""

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
    """What to do: ``nothing``, ``restart`` or ``stop``, and why."""

    memory: Memory
    action: str = "nothing"
    cause: str = ""


def judge(memory: Memory, seen: Seen, now: float, limits: Limits) -> Verdict:
    """Compare what is seen with what is remembered; pure."""
    memory, again = _noticed(memory, seen, now, limits)
    if not seen.running or memory.gave_up:
        return Verdict(memory)
    cause = _hang(memory, seen, now, limits)
    if again and len(memory.recent) > limits.max_restarts:
        return Verdict(replace(memory, gave_up=True), "stop", f"it ended {len(memory.recent)} times")
    if not cause or now < memory.quiet_until:
        return Verdict(memory)
    if len(memory.recent) >= limits.max_restarts:
        return Verdict(replace(memory, gave_up=True), "stop", f"{cause}, after {len(memory.recent)} restarts")
    pause = limits.pause * 2 ** len(memory.recent)
    restarted = replace(memory, recent=(*memory.recent, now), quiet_until=now + pause, stalled_since=None)
    return Verdict(restarted, "restart", cause)


def _noticed(memory: Memory, seen: Seen, now: float, limits: Limits) -> tuple[Memory, int]:
    """The memory with what is new, and how often Docker has started the container since.

    Another container, or one that somebody started again after the watchdog gave up, begins anew.
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


def _hang(memory: Memory, seen: Seen, now: float, limits: Limits) -> str:
    """Why the engine counts as hung; empty where it does not. One that still starts is left alone."""
    if seen.health == "starting":
        return ""
    if seen.health == "unhealthy":
        return "its health check got no token"
    if memory.stalled_since is not None and now - memory.stalled_since >= limits.stall:
        return f"no token for {now - memory.stalled_since:.0f} s while {seen.pending:.0f} requests wait"
    return ""


def reason(log: str, *, out_of_memory: bool = False) -> tuple[str, str]:
    """The most telling sign in a log: its code, and the last line that shows it."""
    if out_of_memory:
        return "out_of_host_memory", "the kernel killed it: the container is at its memory limit"
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in log.splitlines()]
    for code, pattern in SIGNS:
        for line in reversed(lines):
            if re.search(pattern, line):
                return code, line[-500:]
    return "unknown", lines[-1][-500:] if lines else ""


def metrics(text: str) -> tuple[float | None, float | None]:
    """Steps computed, and requests running or waiting, from the text of /metrics; None for what it does not tell."""
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^vllm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)
    pending = [sums[name] for name in ("num_requests_running", "num_requests_waiting") if name in sums]
    return sums.get("iteration_tokens_total_count"), sum(pending) if pending else None


@dataclass
class Watchdog:
    """The thin part: asks Docker and the engine, and does what :func:`judge` says."""

    config: Mapping[str, Any]
    limits: Limits
    client: Any
    memory: Memory = field(default_factory=Memory)

    def step(self, now: float) -> None:
        """Look once, and act."""
        if deploying(Path(self.config["lock_file"]), now):
            return
        container = self._container()
        if container is None:
            return
        verdict = judge(self.memory, self._seen(container), now, self.limits)
        if verdict.action != "nothing":
            self._tell(container, verdict, now)
        # Remembered before it acts: one that is killed in between does not act twice.
        self._remember(verdict.memory)
        if verdict.action == "restart":
            container.restart(timeout=patience(container))
        elif verdict.action == "stop":
            container.stop(timeout=patience(container))

    def recall(self) -> None:
        """Read what an earlier process remembered; a file that was cut off is nothing."""
        try:
            data = json.loads(self._file("memory.json").read_text(encoding="utf-8"))
            self.memory = Memory(**{**data, "recent": tuple(data["recent"])})
        except (OSError, ValueError, TypeError, KeyError):
            self.memory = Memory()

    def _remember(self, memory: Memory) -> None:
        if memory != self.memory:
            draft = self._file("memory.json.new")
            draft.write_text(json.dumps(asdict(memory)), encoding="utf-8")
            draft.replace(self._file("memory.json"))
        self.memory = memory

    def _container(self) -> Any | None:
        found = self.client.containers.list(all=True, filters={"label": self.config["label"]})
        return found[0] if found else None

    def _seen(self, container: Any) -> Seen:
        state = container.attrs["State"]
        tokens, pending = self._ask_engine() if state["Running"] else (None, None)
        return Seen(
            container=container.id,
            running=bool(state["Running"] or state["Restarting"]),
            started_at=state["StartedAt"],
            health=(state.get("Health") or {}).get("Status", ""),
            restarts=int(container.attrs["RestartCount"]),
            tokens=tokens,
            pending=pending,
        )

    def _ask_engine(self) -> tuple[float | None, float | None]:
        try:
            with urllib.request.urlopen(self.config["metrics_url"], timeout=5) as page:  # noqa: S310 - root wrote it
                return metrics(page.read().decode(errors="replace"))
        except OSError:
            return None, None

    def _tell(self, container: Any, verdict: Verdict, now: float) -> None:
        log = container.logs(tail=_LOG_LINES).decode(errors="replace")
        code, line = reason(log, out_of_memory=bool(container.attrs["State"].get("OOMKilled")))
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "event": RUNBOOK if verdict.action == "stop" else "engine_hung",
            "action": verdict.action,
            "cause": verdict.cause,
            "container": container.name,
            "restarts": len(verdict.memory.recent),
            "reason": code,
            "line": line,
        }
        text = json.dumps(event)
        print(
            f"[{event['event']}] {container.name}: {verdict.cause}; {verdict.action}. Last sign: {code}: {line}",
            flush=True,
        )
        file = self._file("events.jsonl")
        if file.exists() and file.stat().st_size > _LARGEST_LOG:
            file.replace(self._file("events.old.jsonl"))
        with file.open("a", encoding="utf-8") as events:
            events.write(text + "\n")

    def _file(self, name: str) -> Path:
        return Path(self.config["home"]) / name


def patience(container: Any) -> int:
    """Seconds that a container has between the request to stop and the kill: its own, else Docker's ten."""
    return int(container.attrs["Config"].get("StopTimeout") or _DOCKERS_PATIENCE_S)


def deploying(lock: Path, now: float) -> bool:
    """Whether a run of Ansible works on the host, by its lock: then the engine is its business."""
    try:
        return now - float(json.loads(lock.read_text(encoding="utf-8"))["renewed"]) < _OLD_LOCK_S
    except (OSError, ValueError, TypeError, KeyError):
        return False


def main() -> None:
    """Watch for ever; an error of Docker is told and tried again."""
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    client = docker.DockerClient(base_url=config["docker_host"], version="auto")
    watchdog = Watchdog(config, Limits(**config["limits"]), client)
    watchdog.recall()
    print(f"watching containers with {config['label']}", flush=True)
    while True:
        try:
            watchdog.step(time.time())
        except (docker.errors.DockerException, OSError) as error:
            print(f"cannot look: {error}", flush=True)
        time.sleep(config["interval"])


if __name__ == "__main__":
    main()
