"""What clients get, what ``current`` names and what was proven: are these the same, and what makes them the same again.

A release serves clients after its full proof only. Until then it is on trial: :class:`Trial` is on disk before its
container starts, and the container does not come back after a restart of Docker or of the host. A run that is cut off
leaves its trial behind; the next run undoes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ansible_collections.inference.vllm.plugins.module_utils.contracts import StateFile
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: Restart policy of a container that serves clients, and of one on trial.
SERVING_POLICY, TRIAL_POLICY = "unless-stopped", "no"
HEALTHY, UNHEALTHY = "healthy", "unhealthy"
ENGINE, SPARE = "engine", "spare"

Action = Literal[
    "finish_trial",
    "start_current",
    "stop_engine",
    "set_policy",
    "route_engine",
    "remove_spare",
    "forget_target",
    "forget_trial",
]


@dataclass(frozen=True)
class Container:
    """A container of the service, of the engine's project or of the spare engine's.

    Attributes:
        id: Docker's identifier.
        name: Its name.
        release: Release that it was made from, by its label; empty without one.
        running: Whether it runs.
        health: Docker's word for its health check: ``starting``, ``healthy``, ``unhealthy``; empty without one.
        started: When it was started last, as Docker writes it.
        policy: Its restart policy.
        folder: Folder of the release that Compose started it from.
        project: Its Compose project.
    """

    id: str
    name: str
    release: str
    running: bool
    health: str
    started: str
    policy: str
    folder: str = ""
    project: str = ""

    @property
    def serves(self) -> bool:
        """Whether it gives tokens."""
        return self.running and self.health == HEALTHY


@dataclass(frozen=True)
class Backend:
    """An engine as the gateway sees it: what the gateway was set to, and whether its health check passes."""

    state: str
    up: bool


@dataclass(frozen=True)
class Seen:
    """What is there at one moment.

    Attributes:
        docker: Empty if Docker answers, else why it does not.
        current: Release that ``current`` names; empty without such a link.
        problems: Why that release cannot be started: its folder is missing or was edited.
        proofs: Releases with a full proof on record, and the start of the container that the proof is of.
        engines: Containers of the engine's project.
        spares: Containers of the spare engine's project.
        backends: Engines of the gateway by name, None if no gateway runs.
        keys: Digest of the key files.
        run: Key of the run that holds the deploy lock; empty if none does.
        strangers: Containers of this project with another home, and of this home with another project.
    """

    docker: str = ""
    current: str = ""
    problems: tuple[str, ...] = ()
    proofs: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[Container, ...] = ()
    spares: tuple[Container, ...] = ()
    backends: Mapping[str, Backend] | None = None
    keys: str = ""
    run: str = ""
    strangers: tuple[Container, ...] = ()

    def proves(self, container: Container) -> bool:
        """Whether a full proof on record is of this start of the container."""
        return self.proofs.get(container.release) == container.started

    @property
    def running(self) -> tuple[Container, ...]:
        """Engine containers that run."""
        return tuple(container for container in self.engines if container.running)

    @property
    def startable(self) -> bool:
        """Whether there is a current release that can be started."""
        return bool(self.current) and not self.problems


@dataclass(frozen=True)
class Fact:
    """One part of the invariant: its name, whether it holds, and what was found."""

    name: str
    holds: bool
    found: str


def invariant(state: StateFile, seen: Seen) -> tuple[Fact, ...]:
    """The parts of "what clients get is what ``current`` names is what was proven", each true or false."""
    if seen.docker:
        return (Fact("docker", False, seen.docker),)
    engine = only(seen.running)
    serving = ", ".join(_described(container) for container in seen.running) or "no container runs"
    whole = seen.current if seen.startable else "; ".join(seen.problems) or "no release was proven"
    return (
        Fact("current", seen.startable, whole),
        Fact("proven", seen.current in seen.proofs, _proven_text(seen)),
        Fact("engine", engine is not None and engine.serves, serving),
        Fact("same", engine is not None and engine.release == seen.current, _same_text(seen)),
        Fact("restart", engine is not None and engine.policy == SERVING_POLICY, _policy_text(engine)),
        Fact("trial", state.trial is None, _trial_text(state)),
        Fact("gateway", _routes_to_engine(state, seen), _gateway_text(state, seen)),
        Fact("spare", not seen.spares, ", ".join(map(_described, seen.spares)) or "none"),
        Fact("keys", state.keys in ("", seen.keys), _keys_text(state, seen)),
    )


def repairs(state: StateFile, seen: Seen, *, keep: str = "") -> list[Action]:
    """What brings the proven release back to the clients, in order; empty if nothing has to be done.

    Args:
        state: What runs have written down.
        seen: What is there.
        keep: A release on trial that stays, because the caller goes on to verify it.
    """
    trial = state.trial
    if seen.docker or (trial and trial.run and trial.run == seen.run):
        return []
    kept = [container for container in seen.running if keep and container.release == keep and container.serves]
    if trial and kept and len(seen.running) == 1 and not seen.spares and state.target == ENGINE:
        return []
    actions: list[Action] = []
    engine = only(seen.running)
    # The run was cut off between the full proof and the promotion.
    finished = trial is not None and engine is not None and engine.release == trial.release and seen.proves(engine)
    if finished and engine is not None and engine.serves:
        actions.append("finish_trial")
    elif seen.startable and (engine is None or engine.release != seen.current):
        actions.append("start_current")
    elif not seen.startable and trial and any(container.release not in seen.proofs for container in seen.running):
        actions.append("stop_engine")
    serves = "stop_engine" not in actions and (seen.startable or finished)
    if serves and (actions or (engine is not None and engine.policy != SERVING_POLICY)):
        actions.append("set_policy")
    if not _routes_to_engine(state, seen):
        actions.append("route_engine")
    if seen.spares:
        actions.append("remove_spare")
    if state.target != ENGINE:
        actions.append("forget_target")
    if trial:
        actions.append("forget_trial")
    return actions


def stranger_refusal(home: str, project: str, seen: Seen) -> Refusal | None:
    """Why nothing may be changed while containers of another home or another project are there, or None."""
    if not seen.strangers:
        return None
    other = seen.strangers[0]
    if other.project == project:
        message = f"vllm_home is {home}, but container {other.name} was started from {other.folder}."
    else:
        message = f"vllm_project is {project}, but container {other.name} of {home} belongs to project {other.project}."
    fix = "Set the former value again, or remove that deployment first: playbooks/teardown.yml with the former value."
    return Refusal("other_deployment", message, fix)


def serving(seen: Seen) -> str:
    """Which releases give tokens, as a sentence."""
    if seen.docker:
        return f"What serves is not known: {seen.docker}."
    names = [container.release or container.name for container in seen.engines if container.serves]
    names += [f"{container.release} as a spare engine" for container in seen.spares if container.serves]
    return f"Release {', '.join(names)} serves now." if names else "Nothing serves now."


def after_failure(failed: str, seen: Seen, reason: str = "") -> str:
    """What serves after a release failed and the current one was started again, for the message of the failure.

    Args:
        failed: The release that failed.
        seen: What is there after the restore.
        reason: Why the restore failed; empty if it did not.
    """
    engine = only(seen.running)
    if engine and engine.serves and engine.release == seen.current != failed and not reason:
        return f"Release {seen.current} serves again."
    if not seen.current:
        return f"{serving(seen)} No release was proven before this one."
    if seen.current == failed and not reason:
        return f"{serving(seen)} The release that failed is the current one, so there is no other to restore."
    why = "; ".join(seen.problems) or reason or "its container gives no token"
    return (
        f"{serving(seen)} [restore_failed] Release {seen.current} did not start again: {why}\n"
        "Fix: correct the cause, then start a proven release: ansible-playbook playbooks/rollback.yml"
    )


def only(containers: Sequence[Container]) -> Container | None:
    """The container, if it is the only one."""
    return containers[0] if len(containers) == 1 else None


def _described(container: Container) -> str:
    how = container.health or ("running" if container.running else "stopped")
    return f"{container.release or container.name} ({how if container.running else 'stopped'})"


def _proven_text(seen: Seen) -> str:
    if seen.current not in seen.proofs:
        return "the current release has no full proof on record" if seen.current else "no release was proven"
    engine = only(seen.running)
    same = engine is not None and seen.proves(engine)
    return "in full, this start of its container" if same else "in full, an earlier start of its container"


def _same_text(seen: Seen) -> str:
    engine = only(seen.running)
    if engine is None:
        return f"{len(seen.running)} containers run"
    return "the engine runs the current release" if engine.release == seen.current else f"it runs {engine.release}"


def _policy_text(engine: Container | None) -> str:
    if engine is None:
        return "no single container runs"
    comes = "comes back" if engine.policy == SERVING_POLICY else "does not come back"
    return f"the engine {comes} after a restart of Docker ({engine.policy})"


def _trial_text(state: StateFile) -> str:
    if state.trial is None:
        return "none"
    trial = state.trial
    return f"{trial.release} since {trial.since}, by {trial.by or 'an unknown run'}, last step: {trial.step}"


def _routes_to_engine(state: StateFile, seen: Seen) -> bool:
    if seen.backends is None:
        return state.target == ENGINE
    engine, spare = seen.backends.get(ENGINE), seen.backends.get(SPARE)
    return (engine is None or engine.state == "ready") and not (spare and spare.state == "ready" and spare.up)


def _gateway_text(state: StateFile, seen: Seen) -> str:
    if seen.backends is None:
        return (
            "no gateway runs" if state.target == ENGINE else f"no gateway runs; it was set to route to {state.target}"
        )
    return ", ".join(f"{name} {b.state}{'' if b.up else ', down'}" for name, b in sorted(seen.backends.items()))


def _keys_text(state: StateFile, seen: Seen) -> str:
    if state.keys in ("", seen.keys):
        return "the engine has the keys on disk"
    return "the keys on disk are not those that the engine was started with"
