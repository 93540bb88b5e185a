"""The state of the service on one host: reads what is there, keeps ``state.json``, and carries out repairs.

Docker is asked by its client, so that this also works where its Python library is not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ansible_collections.inference.vllm.plugins.module_utils.checks.verdict import now
from ansible_collections.inference.vllm.plugins.module_utils.contracts import StateFile, Trial
from ansible_collections.inference.vllm.plugins.module_utils.files import write_atomic
from ansible_collections.inference.vllm.plugins.module_utils.gateway.runtime import Runtime
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import lock
from ansible_collections.inference.vllm.plugins.module_utils.service.api_keys import CURRENT, FORMER
from ansible_collections.inference.vllm.plugins.module_utils.service.history import PROOF, STATE
from ansible_collections.inference.vllm.plugins.module_utils.service.releases import Store, problems_of
from ansible_collections.inference.vllm.plugins.module_utils.state.judge import (
    ENGINE,
    SERVING_POLICY,
    SPARE,
    Action,
    Backend,
    Container,
    Seen,
)

RELEASE_LABEL = "inference.vllm.release"
#: Releases that are remembered as former current ones.
_REMEMBERED = 20
_PROJECT_LABEL = "com.docker.compose.project"
_FOLDER_LABEL = f"{_PROJECT_LABEL}.working_dir"
_CLIENT_SECONDS = 60


class RepairError(Exception):
    """A repair failed; the message has the reason."""


@dataclass(frozen=True)
class Host:
    """Where the service of one project is on a host.

    Attributes:
        home: Folder of the deployment.
        project: Compose project of the engine.
        spare_project: Compose project of the spare engine.
        socket: Admin socket of the gateway; without one, no gateway is asked.
        lock_file: The deploy lock.
        start_timeout: Seconds that an engine may need for its first token.
        stop_timeout: Seconds that an engine may need to stop.
    """

    home: Path
    project: str
    spare_project: str
    socket: Path | None = None
    lock_file: Path | None = None
    start_timeout: int = 900
    stop_timeout: int = 60

    @property
    def store(self) -> Store:
        """The releases."""
        return Store(self.home)

    @property
    def state_file(self) -> Path:
        """``state.json``."""
        return self.home / STATE

    def read(self) -> StateFile:
        """The state on disk; a new one where no run has written it.

        Raises:
            RefusalError: The file cannot be read.
        """
        text = self.state_file.read_text(encoding="utf-8") if self.state_file.is_file() else None
        return StateFile(self.project) if text is None else StateFile.from_json(text, str(self.state_file))

    def write(self, state: StateFile) -> bool:
        """Keep the state; False if it is there already.

        Raises:
            OSError: The disk does not take it; the old state is kept.
        """
        if self.state_file.is_file() and self.read() == state:
            return False
        write_atomic(self.state_file, state.to_json(), 0o600, folder_mode=0o755)
        return True

    def begun(self, release: str, step: Literal["start", "verify", "restore"]) -> StateFile:
        """The state in which a release is on trial, at a step, in the hands of the run that holds the deploy lock."""
        state = self.read()
        owner = self._owner()
        same = state.trial and (state.trial.release, state.trial.run) == (release, owner[0])
        trial = Trial(release, owner[0], owner[1], state.trial.since if same and state.trial else now(), step)
        return replace(state, trial=trial)

    def promoted(self, release: str) -> StateFile:
        """The state in which a release is the current one and nothing is on trial."""
        state = self.read()
        names = [name for name in (self.store.current(), *state.former) if name and name != release]
        return replace(state, trial=None, former=tuple(dict.fromkeys(names))[:_REMEMBERED])

    def look(self) -> Seen:
        """What is there now."""
        current = self.store.current() or ""
        folder = self.store.path(current)
        problems = problems_of(folder) if current and folder.is_dir() else [f"{folder} is missing"] if current else []
        records = {path.parent.name: _json(path) for path in self.home.glob(f"reports/*/{PROOF}")}
        complaint, containers = self._containers()
        return Seen(
            docker=complaint,
            current=current,
            problems=tuple(problems),
            proofs={
                name: str(record.get("started") or "")
                for name, record in records.items()
                if record.get("release") == name
            },
            engines=tuple(c for c in containers if c.project == self.project),
            spares=tuple(c for c in containers if c.project == self.spare_project),
            strangers=tuple(filter(self._is_strange, containers)),
            backends=self._backends(),
            keys=self.keys_on_disk(),
            run=self._owner()[0],
        )

    def keys_on_disk(self) -> str:
        """Digest of the files that the engine reads its keys from; empty without any."""
        texts = [_text(path) for path in self._key_files]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest() if any(texts) else ""

    def other_keys(self, engine: Container) -> bool:
        """Whether the keys on disk are not those that an engine was started with."""
        recorded = self.read().keys
        if recorded:
            return recorded != self.keys_on_disk()
        # An engine that no run has recorded: keys that are newer than its start.
        begin = datetime.fromisoformat(f"{engine.started[:19]}+00:00").timestamp() if engine.started else 0.0
        return any(path.stat().st_mtime > begin for path in self._key_files if path.exists())

    @property
    def _key_files(self) -> tuple[Path, ...]:
        return tuple(self.home / "secrets" / name for name in (CURRENT, FORMER))

    def withdraw(self) -> None:
        """Take the engine out of the gateway, if one runs: clients get 503 instead of a release on trial."""
        if self.socket and ENGINE in (self._backends() or {}):
            Runtime(self.socket).set_state(ENGINE, "maint")

    def carry_out(self, action: Action, seen: Seen) -> None:
        """Do one repair.

        Raises:
            RepairError: It failed.
        """
        match action:
            case "finish_trial":
                trial = self.read().trial
                if trial:
                    state = self.promoted(trial.release)
                    self.store.point(trial.release)
                    self.write(state)
            case "start_current":
                options = ["--detach", "--no-build", "--pull=never", "--remove-orphans"]
                waits = ["--wait", f"--wait-timeout={self.start_timeout}"]
                folder = self.store.path(seen.current)
                place = [f"--project-directory={folder}", f"--file={folder}/compose.yaml"]
                self._compose(self.project, *place, "up", *options, *waits, seconds=self.start_timeout + 60)
            case "stop_engine":
                self._compose(self.project, "stop", f"--timeout={self.stop_timeout}", seconds=self.stop_timeout + 60)
            case "set_policy":
                for container in self._containers()[1]:
                    if container.project == self.project and container.running:
                        self._docker("update", f"--restart={SERVING_POLICY}", container.id)
            case "route_engine":
                self._route_to_engine()
            case "remove_spare":
                self._compose(
                    self.spare_project, "down", f"--timeout={self.stop_timeout}", seconds=self.stop_timeout + 60
                )
            case "forget_trial":
                self.write(replace(self.read(), trial=None))
            case "forget_target":
                self.write(replace(self.read(), target="engine"))

    def _route_to_engine(self) -> None:
        if self.socket is None or self._backends() is None:
            return
        try:
            runtime = Runtime(self.socket)
            runtime.set_state(ENGINE, "ready")
            # The spare engine stays in service until the engine takes requests.
            if not runtime.wait(ENGINE, lambda server: server.takes_requests, 60):
                raise RepairError("the gateway does not see the engine as healthy")
            if SPARE in runtime.servers():
                runtime.set_state(SPARE, "maint")
        except RefusalError as error:
            raise RepairError(str(error)) from error

    def _backends(self) -> Mapping[str, Backend] | None:
        if self.socket is None or not self.socket.exists():
            return None
        try:
            return {name: Backend(server.state, server.up) for name, server in Runtime(self.socket).servers().items()}
        except RefusalError:
            return None

    def _owner(self) -> tuple[str, str]:
        held = lock.holder(self.lock_file) if self.lock_file else None
        return (held.owner.key, str(held.owner)) if held else ("", "")

    def _containers(self) -> tuple[str, tuple[Container, ...]]:
        """Why Docker does not answer, and all containers of releases, also of other deployments."""
        try:
            ids = self._docker("ps", "--all", "--quiet", "--no-trunc", f"--filter=label={RELEASE_LABEL}").split()
            rows = json.loads(self._docker("container", "inspect", *ids)) if ids else []
        except RepairError as error:
            return str(error), ()
        return "", tuple(map(container_of, rows))

    def _is_strange(self, container: Container) -> bool:
        own = container.project in (self.project, self.spare_project)
        here = Path(container.folder).is_relative_to(self.home / "releases") if container.folder else own
        return own != here

    def _compose(self, project: str, *arguments: str, seconds: int) -> None:
        self._docker("compose", f"--project-name={project}", *arguments, seconds=seconds)

    def _docker(self, *arguments: str, seconds: int = _CLIENT_SECONDS) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - Docker's client, with arguments of this module
                ["docker", *arguments],  # noqa: S607 - where the host has it
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except FileNotFoundError:
            raise RepairError("Docker is not installed") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RepairError(f"docker {arguments[0]}: {error}") from error
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise RepairError(f"docker {arguments[0]}: {last}")
        return done.stdout


def container_of(row: Mapping[str, Any]) -> Container:
    """Read one entry of ``docker container inspect``."""
    state, config, host = (row.get(key) or {} for key in ("State", "Config", "HostConfig"))
    labels = config.get("Labels") or {}
    return Container(
        id=str(row.get("Id") or ""),
        name=str(row.get("Name") or "").removeprefix("/"),
        release=str(labels.get(RELEASE_LABEL) or ""),
        running=bool(state.get("Running")),
        health=str((state.get("Health") or {}).get("Status") or ""),
        started=str(state.get("StartedAt") or ""),
        policy=str((host.get("RestartPolicy") or {}).get("Name") or "no"),
        folder=str(labels.get(_FOLDER_LABEL) or ""),
        project=str(labels.get(_PROJECT_LABEL) or ""),
    )


def bring_back(host: Host, actions: Sequence[Action], seen: Seen) -> str:
    """Carry out repairs in order, until one fails; empty, or the reason of the failure.

    A trial is forgotten last, so that a run that is cut off here is continued by the next one.
    """
    try:
        for action in actions:
            host.carry_out(action, seen)
    except (RepairError, RefusalError) as error:
        return str(error)
    return ""


def _json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
