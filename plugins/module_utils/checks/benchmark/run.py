"""The benchmark: runs a tool for each point and collects the results.

The tool is `vllm bench serve` or another of ``drivers``. It runs in a separate container next to the engine's: from
the same image unless another one is set, as the same user, with the same model folder for its tokenizer. It gets the
API key as a file inside that container, so that the key is in no list of processes and in no environment that Docker
shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import shlex
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.checks import verdict
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import drivers as benchmark_drivers
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark import figures as benchmark_figures
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import Call, Driver
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Goals, Point, Workload
from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Session, Target
from ansible_collections.inference.vllm.plugins.module_utils.checks.failures import Failure, failed
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import (
    BenchmarkComparison,
    BenchmarkPoint,
    BenchmarkResult,
    ComparedFigure,
    ServiceLevel,
)
from ansible_collections.inference.vllm.plugins.module_utils.checks.steps import (
    Seen,
    Step,
    endpoint_step,
    engine_of,
    run_steps,
)
from ansible_collections.inference.vllm.plugins.module_utils.contracts import Check, Severity, Verdict
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

_FOLDER = "/tmp"  # noqa: S108 - inside the tool's own container
_RESULT = "vllm-bench.json"
_KEY = "vllm-bench-key"
# Name of the variable for the key, one more folder to look in, and the command.
_SCRIPT = f'[ ! -s {_FOLDER}/{_KEY} ] || export "$1=$(cat {_FOLDER}/{_KEY})"; PATH="$PATH:$2"; shift 2; exec "$@"'
_DOCKER_SECONDS = 60
_NOT_FOUND = (126, 127)
_SEEDS = 2**31 - 1000
_LINE = 300


@dataclass(frozen=True)
class Comparison:
    """One comparison with a former result.

    Attributes:
        name: Name of its check, after ``benchmark_``.
        path: File that holds the other result; a file that is not there is no failure.
        workloads: Only these; empty for all.
    """

    name: str
    path: Path
    workloads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        driver: The tool.
        workloads: What is sent.
        goals: What a good request is.
        again: Whether each workload is also sent a second time, so that the prefix cache knows it.
        seed: Seed of the first point; None takes a new one.
        container: Name of the engine's container, which names image, user and tokenizer; may be empty.
        image: Image to take in place of the container's.
        tokenizer: Folder with the tokenizer on the host of Docker, in place of the container's model.
        network: Docker network of the tool; ``host`` reaches what this host reaches.
        docker_host: Address of Docker.
        timeout: Longest time for one point, seconds.
        comparisons: Earlier results to compare with.
        tolerance: Share by which a figure may be worse.
        gate: Whether a result that is worse fails; else it is a warning.
        key: What makes two runs comparable.
    """

    driver: Driver
    workloads: tuple[Workload, ...]
    goals: Goals
    again: bool
    seed: int | None
    container: str
    image: str
    tokenizer: str
    network: str
    docker_host: str
    timeout: float
    comparisons: tuple[Comparison, ...]
    tolerance: float
    gate: bool
    key: Mapping[str, Any] = field(default_factory=dict)


# --- The tool -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """Where the tool comes from: an image, its user, and the folder that is mounted for the tokenizer."""

    image: str
    user: str
    source: str
    target: str
    tokenizer: str


class Docker:
    """Runs the tool in containers, through Docker's SDK."""

    def __init__(self, settings: Settings) -> None:
        """Remember where Docker listens; nothing is sent."""
        self.settings = settings
        self._client: Any = None

    def client(self) -> Any:
        """The client.

        Raises:
            Failure: `bench_tool_missing` if Docker does not answer.
        """
        import docker  # a library of the host's venv, not of the controller

        if self._client is None:
            with self._named():
                self._client = docker.APIClient(
                    base_url=self.settings.docker_host, version="auto", timeout=_DOCKER_SECONDS
                )
        return self._client

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn what Docker raises into a named failure."""
        import docker

        try:
            yield
        except docker.errors.NotFound as error:
            raise Failure("bench_tool_missing", f"Docker does not have it: {error.explanation}") from error
        except (docker.errors.DockerException, OSError, ValueError) as error:
            raise Failure("bench_tool_missing", f"Docker at {self.settings.docker_host} fails: {error}") from error

    def tool(self, root: str) -> Tool:
        """What to run.

        Args:
            root: Folder of the model inside the engine's container, as the server reports it.

        Raises:
            Failure: `bench_tool_missing`, with what is missing.
        """
        settings, client = self.settings, self.client()
        image, user, mounts = settings.image, "", []
        with self._named():
            if settings.container:
                inspected = client.inspect_container(settings.container)
                image = image or str(inspected["Image"])
                user = str((inspected.get("Config") or {}).get("User") or "")
                mounts = list(inspected.get("Mounts") or ())
            if not image:
                raise Failure("bench_tool_missing", "neither a container nor an image is set")
            client.inspect_image(image)
        if settings.tokenizer:
            return Tool(image, user, settings.tokenizer, "/tokenizer", "/tokenizer")
        for mount in mounts:
            target = str(mount.get("Destination") or "").rstrip("/")
            if target and root and (root == target or root.startswith(f"{target}/")):
                return Tool(image, user, str(mount["Source"]), target, root)
        raise Failure("bench_tool_missing", f"no folder with a tokenizer: the container mounts none at {root or '?'!r}")

    def bench(self, tool: Tool, arguments: Sequence[str], key: str) -> Mapping[str, Any]:
        """Run the tool once; its own result.

        Raises:
            Failure: `bench_tool_missing`, `bench_failed` or `timeout`.
        """
        client, driver = self.client(), self.settings.driver
        with self._named():
            made = client.create_container(
                tool.image,
                command=list(arguments),
                entrypoint=["/bin/sh", "-c", _SCRIPT, "sh", driver.key_variable, driver.folder],
                user=tool.user or None,
                # The user is the engine's, which need not have a home in another image.
                environment={"HOME": _FOLDER, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
                host_config=client.create_host_config(
                    network_mode=self.settings.network,
                    binds={tool.source: {"bind": tool.target, "mode": "ro"}},
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges:true"],
                ),
                labels={"inference.vllm.benchmark": "tool"},
            )
        try:
            with self._named():
                client.put_archive(made["Id"], _FOLDER, _archive(_KEY, key))
                client.start(made["Id"])
            code = self._wait(made["Id"])
            with self._named():
                log = client.logs(made["Id"], tail=40).decode("utf-8", "replace")
            if code in _NOT_FOUND or driver.missing in log:
                raise Failure("bench_tool_missing", f"the image has no {driver.title}: {last_line(log)}")
            if code:
                raise Failure("bench_failed", f"{driver.title} ended with {code}: {last_line(log)}", code)
            return self._result(made["Id"], log)
        finally:
            with contextlib.suppress(Exception):
                client.remove_container(made["Id"], force=True, v=True)

    def _wait(self, identifier: str) -> int:
        """Wait for the end; the exit code.

        Raises:
            Failure: `timeout`.
        """
        end = time.monotonic() + self.settings.timeout
        while time.monotonic() < end:
            with self._named():
                state = self.client().inspect_container(identifier)["State"]
            if state.get("Status") in ("exited", "dead"):
                return int(state.get("ExitCode") or 0)
            time.sleep(0.2)
        raise Failure("timeout", f"{self.settings.driver.title} was not done after {self.settings.timeout:g} s")

    def _result(self, identifier: str, log: str) -> Mapping[str, Any]:
        import docker

        title = self.settings.driver.title
        try:
            stream, _ = self.client().get_archive(identifier, f"{_FOLDER}/{_RESULT}")
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                member = archive.extractfile(_RESULT)
                data = json.loads(member.read()) if member else None
        except (docker.errors.DockerException, OSError, tarfile.TarError, KeyError, ValueError) as error:
            raise Failure("bench_failed", f"{title} left no result: {last_line(log)}") from error
        if not isinstance(data, dict):
            raise Failure("bench_failed", f"the result of {title} is no JSON object")
        return data


def _archive(name: str, content: str) -> bytes:
    """A tar archive with one file that any user can read; the container has no other users than the tool's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        data = content.encode()
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), 0o444
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def last_line(log: str) -> str:
    """The last line of a log that is not a separator, shortened."""
    lines = [line.strip() for line in log.splitlines() if line.strip(" =-")]
    return lines[-1][:_LINE] if lines else "its log is empty"


# --- The run --------------------------------------------------------------------------------------------------------


def run(target: Target, release: str, settings: Settings) -> BenchmarkResult:
    """Measure a server; errors of the server, a tool or Docker become failed checks.

    Raises:
        ImportError: `openai` or `docker` is not installed.
    """
    started = verdict.now()
    session = Session(target)
    docker = Docker(settings)
    run = _Run(session, settings, docker)
    try:
        checks = run.checks()
    finally:
        docker.close()
    measured = run.result(Verdict(release, tuple(checks), engine_of(session), (), started, verdict.now()))
    return compared(measured, settings) if run.whole else measured


def compared(result: BenchmarkResult, settings: Settings) -> BenchmarkResult:
    """The result with its comparisons and a check for each."""
    checks, comparisons = list(result.checks), {}
    for comparison in settings.comparisons:
        code = f"benchmark_{comparison.name}"
        try:
            before = BenchmarkResult.from_json(_text(comparison.path), str(comparison.path))
        except FileNotFoundError:
            continue
        except OSError as error:
            failure = Failure("result_unreadable", f"{comparison.path} cannot be read: {error.strerror}")
            checks.append(failed(code, failure, 0, "figures"))
            continue
        except RefusalError as error:
            failure = Failure("result_unreadable", " ".join(refusal.message for refusal in error.refusals))
            checks.append(failed(code, failure, 0, "figures"))
            continue
        rows = benchmark_figures.compare(before, result, settings.tolerance, comparison.workloads)
        if rows:
            comparisons[comparison.name] = BenchmarkComparison(before.release, settings.tolerance, rows)
            checks.append(_compared(code, rows, before.release, settings))
    return replace(result, checks=tuple(checks), comparisons=comparisons, finished=verdict.now())


def _text(path: Path) -> str:
    """Text of a file; bytes that are not UTF-8 make it unreadable as JSON or change a name, and raise nothing."""
    return path.read_text(encoding="utf-8", errors="replace")


def _compared(code: str, rows: Sequence[ComparedFigure], other: str, settings: Settings) -> Check:
    worse = [row for row in rows if row.judged == "worse"]
    better = sum(row.judged == "better" for row in rows)
    severity: Severity = "error" if settings.gate else "warning"
    about = f"{len(rows)} figures against release {other}: {better} better, {len(worse)} worse"
    if not worse:
        return Check(code, True, severity, about, 0, 0, "figures")
    most = max(worse, key=lambda row: abs(row.change or 0))
    message = f"{about} by more than {100 * settings.tolerance:g} %; most: {benchmark_figures.described(most)}"
    return failed(code, Failure("slower", message, len(worse)), 0, "figures", severity=severity)


class _Run:
    """One benchmark from its first point to its last."""

    def __init__(self, session: Session, settings: Settings, docker: Docker) -> None:
        self.session, self.settings, self.docker = session, settings, docker
        self.tool: Tool | None = None
        self.seed = secrets.randbelow(_SEEDS) if settings.seed is None else settings.seed
        self.measured: list[BenchmarkPoint] = []
        self.whole = False

    def checks(self) -> list[Check]:
        """Check the server and the tool, then measure each point."""
        points = benchmark_figures.points_of(self.settings.workloads, self.seed, self.settings.again)
        timeout = self.settings.timeout + 2 * _DOCKER_SECONDS
        checks = run_steps(
            self.session,
            [
                endpoint_step("benchmark_endpoint", self.session.model),
                Step("benchmark_tool", self._find, gate=True, timeout=2 * _DOCKER_SECONDS),
                *(Step(point.code, self._step(point), unit="tokens/s", timeout=timeout) for point in points),
            ],
        )
        self.whole = all(check.ok for check in checks)
        return checks

    def _find(self, session: Session) -> Seen:
        with contextlib.suppress(Exception):  # the smoke test is what judges that
            session.engine["version"] = session.version()
        self.tool = self.docker.tool(str(session.engine.get("root") or ""))
        return Seen(f"{self.settings.driver.title} of image {self.tool.image}", self.tool.image)

    def _step(self, point: Point) -> Any:
        def measure(session: Session) -> Seen:
            if self.tool is None:
                raise RuntimeError("the step that finds the tool comes first")
            driver = self.settings.driver
            call = Call(session.root, session.model, self.tool.tokenizer, _FOLDER, _RESULT)
            command = driver.command(point, self.settings.goals, call)
            raw = self.docker.bench(self.tool, command, session.target.api_key)
            try:
                seen = benchmark_drivers.normalised(driver, point, raw, shlex.join(command))
            except (KeyError, TypeError, ValueError) as error:
                raise Failure("bench_failed", f"the result of {driver.title} lacks a figure: {error}") from error
            if seen.failed or not seen.requests:
                message = f"{seen.failed} of {seen.requests} requests were not answered"
                raise Failure("bench_failed", message, seen.failed)
            self.measured.append(seen)
            first, further = seen.ttft_ms["median"], seen.tpot_ms["median"]
            message = f"{seen.requests} requests: first token after {first:.0f} ms, then {further:.1f} ms each"
            return Seen(message, seen.output_tokens_per_s)

        return measure

    def result(self, judged: Verdict) -> BenchmarkResult:
        """The content of ``benchmark.json``, without comparisons."""
        goals = self.settings.goals
        return BenchmarkResult(
            *(getattr(judged, each.name) for each in fields(judged)),
            key=dict(self.settings.key),
            driver=self.settings.driver.title,
            seed=self.seed,
            tool=self.tool.image if self.tool else None,
            goals=ServiceLevel(goals.ttft_ms, goals.tpot_ms),
            points=tuple(self.measured),
            comparisons={},
        )
