"""A container as Docker describes it: its memory, its limit, its GPUs, and whether it was restarted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

GIB = 2**30
_SECONDS = 10
_ALL = "all"


class ContainerError(Exception):
    """Docker does not answer, or does not have the container; the message gives the reason."""


@dataclass(frozen=True)
class State:
    """A container at one moment.

    Attributes:
        running: Whether it runs.
        restarts: How often Docker has started it again.
        started: When it was started last, as Docker writes it.
        limit_gib: Memory limit; 0 without one.
        devices: GPUs that were requested for it by UUID or number.
        device_count: Number of GPUs that were requested without naming them; Docker takes the first ones of the host.
        all_devices: Whether all GPUs of the host were requested.
    """

    running: bool
    restarts: int
    started: str
    limit_gib: float
    devices: tuple[str, ...] = ()
    device_count: int = 0
    all_devices: bool = False


def state_of(inspected: Mapping[str, Any]) -> State:
    """Read the output of ``docker inspect``."""
    config = inspected.get("HostConfig") or {}
    state = inspected.get("State") or {}
    requests = config.get("DeviceRequests") or ()
    # Names of the Container Device Interface end in the number or UUID: nvidia.com/gpu=0.
    devices = tuple(str(device).rpartition("=")[2] for request in requests for device in request.get("DeviceIDs") or ())
    counts = [int(request.get("Count") or 0) for request in requests]
    return State(
        running=bool(state.get("Running")),
        restarts=int(inspected.get("RestartCount") or 0),
        started=str(state.get("StartedAt") or ""),
        limit_gib=int(config.get("Memory") or 0) / GIB,
        devices=() if _ALL in devices else devices,
        device_count=sum(count for count in counts if count > 0),
        all_devices=_ALL in devices or any(count < 0 for count in counts),
    )


def used_gib(stats: Mapping[str, Any]) -> float:
    """Memory in use, from Docker's values: without the pages of files that the kernel may drop (inactive_file).

    Raises:
        ContainerError: There is no value, as for a container that does not run.
    """
    memory = stats.get("memory_stats") or {}
    if "usage" not in memory:
        raise ContainerError("Docker reports no memory of it, so it does not run")
    details = memory.get("stats") or {}
    # The key of control groups version 1 sums up the groups below, as the usage does.
    droppable = details.get("total_inactive_file", details.get("inactive_file", 0))
    return float(max(memory["usage"] - droppable, 0)) / GIB


def cgroup_of(processes_groups: str, container_id: str) -> tuple[str, str, str] | None:
    """Memory files of a control group, and the key of reclaimable memory in the second file.

    Docker reads its values from these files, but a request to Docker costs about a hundred times as
    much. None if the groups of the process are not those of the container: it then runs on another machine.
    """
    for line in processes_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if container_id not in path:
            continue
        # Version 1 comes before the line of version 2, which may also exist, without a controller.
        if "memory" in controllers.split(","):
            folder = f"/sys/fs/cgroup/memory{path}"
            return f"{folder}/memory.usage_in_bytes", f"{folder}/memory.stat", "total_inactive_file"
        if not controllers:
            folder = f"/sys/fs/cgroup{path}"
            return f"{folder}/memory.current", f"{folder}/memory.stat", "inactive_file"
    return None


def resident_gib(top: Mapping[str, Any]) -> float:
    """Resident memory of a container's processes, from ``docker top``; shared pages count once for each process.

    Raises:
        ContainerError: There is no process.
    """
    sizes = [int(row[-1]) for row in top.get("Processes") or ()]
    if not sizes:
        raise ContainerError("Docker reports no process of it, so it does not run")
    return float(sum(sizes)) / 2**20


def group_on_this_machine(inspected: Mapping[str, Any]) -> tuple[Path, Path, str] | None:
    """The files of :func:`cgroup_of` for a container that runs on this machine, if they can be read; else None."""
    pid, identifier = (inspected.get("State") or {}).get("Pid"), str(inspected.get("Id") or "")
    if not pid or not identifier:
        return None
    try:
        found = cgroup_of(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"), identifier)
        if not found:
            return None
        group = Path(found[0]), Path(found[1]), found[2]
        group_gib(*group)
    except (OSError, ValueError, ContainerError):
        return None
    return group


def group_gib(usage: Path, details: Path, droppable: str) -> float:
    """Memory in use of a control group in GiB, without reclaimable file pages.

    Raises:
        ContainerError: The group does not exist any more.
    """
    try:
        used = int(usage.read_text(encoding="ascii"))
        stats = dict(line.split() for line in details.read_text(encoding="ascii").splitlines())
    except OSError as error:
        raise ContainerError(f"its control group is gone, so it does not run: {error}") from error
    return max(used - int(stats.get(droppable, 0)), 0) / GIB


class Container:
    """One container, through Docker's SDK; every method may raise ContainerError."""

    def __init__(self, name: str, docker_host: str) -> None:
        """Keep the name and the address of Docker; nothing is sent."""
        self.name = name
        self.docker_host = docker_host
        self.by_processes = False
        self._group: tuple[Path, Path, str] | None = None
        self._client: Any = None

    def __enter__(self) -> Container:
        """Prepare the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()

    def state(self) -> State:
        """The container as it is now."""
        return state_of(self._ask("inspect_container"))

    def used_gib(self) -> float:
        """Memory in use now, in GiB, from the source that `choose_figure` chose."""
        try:
            if self._group:
                return group_gib(*self._group)
            if self.by_processes:
                return resident_gib(self._ask("top", ps_args="-eo pid,rss"))
            return used_gib(self._ask("stats", stream=False, one_shot=True))
        except ContainerError as error:
            raise ContainerError(f"container {self.name}: {error}") from error

    def choose_figure(self) -> None:
        """Choose the source: the control group if it is on this machine, else Docker.

        Without a memory controller Docker has no value for a running container; then the processes are read.
        """
        self._group = group_on_this_machine(self._ask("inspect_container"))
        try:
            self.used_gib()
        except ContainerError:
            if not self.state().running:
                raise
            self.by_processes = True
            self.used_gib()

    def _ask(self, function: str, **arguments: Any) -> Mapping[str, Any]:
        if not self.name:
            raise ContainerError("no container is named")
        import docker  # a library of the host's venv, not of the controller

        try:
            if self._client is None:
                self._client = docker.APIClient(base_url=self.docker_host, version="auto", timeout=_SECONDS)
            answer: Mapping[str, Any] = getattr(self._client, function)(self.name, **arguments)
        except docker.errors.NotFound as error:
            raise ContainerError(f"Docker has no container {self.name}") from error
        except (docker.errors.DockerException, OSError, ValueError) as error:
            raise ContainerError(f"Docker at {self.docker_host} does not answer: {error}") from error
        return answer
