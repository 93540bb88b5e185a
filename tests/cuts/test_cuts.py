"""What is left of a run that was cut off, and what the next one makes of it.

Each flow runs once, with the real playbooks, on a host in a folder (sandbox.py). For each task that changed the host,
the run is cut off behind it: the run is killed, Docker is restarted, or the host is booted. Then the next run
reconciles.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.service import lock
from ansible_collections.inference.vllm.plugins.module_utils.state import host as state_host
from ansible_collections.inference.vllm.plugins.module_utils.state import judge
from cuts.sandbox import SPARE_PORT, Host, Runs, admin_socket, deployed, new_host
from support.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "interruptions.md"
NEW: Mapping[str, object] = {"vllm_service_environment": {"FOO": "2"}}
SPARED: Mapping[str, object] = {**NEW, "vllm_spare_port": SPARE_PORT}
EVENTS = ("killed", "Docker restarted", "host booted")


@dataclass(frozen=True)
class Flow:
    """A run that is cut off.

    Attributes:
        name: What it does, for the table.
        play: Playbook.
        variables: Its variables.
        before: Runs before it, each a playbook and its variables; ``deploy`` is serve.yml and verify.yml.
        fails: Whether it is expected to fail.
        bad_start: Whether releases after the first one never become healthy.
    """

    name: str
    play: str
    variables: Mapping[str, object]
    before: Runs = (("serve", {}), ("verify", {}))
    fails: bool = False
    bad_start: bool = False


FLOWS = (
    Flow("first deploy: start", "serve", {}, before=()),
    Flow("first deploy: proof", "verify", {}, before=(("serve", {}),)),
    Flow("first deploy: bad proof", "verify", {"bad_checks": "vram"}, before=(("serve", {}),), fails=True),
    Flow("deploy without a change", "serve", {}),
    Flow("upgrade", "upgrade", NEW),
    Flow("upgrade, bad proof", "upgrade", {**NEW, "bad_checks": "vram"}, fails=True),
    Flow("upgrade, bad start", "upgrade", NEW, fails=True, bad_start=True),
    Flow("upgrade with a spare engine", "upgrade", SPARED),
    Flow("upgrade with a spare engine, bad proof", "upgrade", {**SPARED, "bad_checks": "stability"}, fails=True),
    Flow("rollback", "rollback", {}, before=(("serve", {}), ("verify", {}), ("upgrade", NEW))),
    Flow("restart", "restart", {}),
    Flow("change of the engine's key", "rotate_api_key", {"rotate_engine_key": True}),
    Flow("teardown", "teardown", {"teardown_stop_docker": False}),
)


@dataclass(frozen=True)
class Cut:
    """A host on which a run was cut off."""

    flow: str
    step: str
    host: Host
    snapshot: Path


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[Cut]:
    """Every cut of every flow."""
    found = []
    host = new_host(tmp_path_factory.mktemp("sandbox"))
    states: dict[str, Path] = {}
    for number, flow in enumerate(FLOWS):
        host.load(deployed(host, flow.before, states))
        if flow.bad_start:
            host.only(host.current)
        code = host.play(flow.play, host.folder.with_name(f"cuts{number}"), **flow.variables)
        assert (code != 0) == flow.fails, host.log
        found += [
            Cut(flow.name, f"{place + 1}. {snapshot.name[4:].replace('-', ' ')}", host, snapshot)
            for place, snapshot in enumerate(host.cuts)
        ]
    return found


def happen(event: str, host: Host) -> None:
    """What the event does to a host."""
    if event == "killed":
        return
    boots, docker = event == "host booted", host.docker
    for box in docker["containers"]:
        if box["running"]:
            comes_back = box["policy"] == "unless-stopped"
            box.update(running=comes_back, health="healthy" if comes_back else "", started="2030-01-01T00:00:00Z")
    host.set_docker(**docker)
    if boots:
        (host.folder / "run.lock").unlink(missing_ok=True)
        gateway = host.folder / "gateway.json"
        if gateway.exists():
            gateway.write_text(
                json.dumps(json.loads(gateway.read_text()) | {"servers": {"engine": "ready", "spare": "maint"}})
            )
        boot_unit(host)


def boot_unit(host: Host) -> None:
    """What templates/vllm.service.j2 does, once a release was proven."""
    if (host.home / "current" / "compose.yaml").exists():
        with client(host):
            service = state_host.Host(host.home, "vllm", "vllm-spare")
            seen = service.look()
            for action in ("start_current", "set_policy", "remove_spare"):
                service.carry_out(action, seen)


class client:
    """The stand-in for Docker's client, in this process."""

    def __init__(self, host: Host) -> None:
        self.values = {"PATH": f"{host.collections.parent / 'bin'}:{os.environ['PATH']}", "SANDBOX": str(host.folder)}
        self.former: dict[str, str | None] = {}

    def __enter__(self) -> None:
        self.former = {name: os.environ.get(name) for name in self.values}
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        for name, value in self.former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def reconciled(host: Host) -> tuple[judge.Seen, judge.Seen, list[judge.Action], set[str], str]:
    """What was there, what is there after the next run reconciled, what it did, what does not hold, what failed."""
    with client(host), admin_socket(host.folder):
        path = host.folder / "run.lock"
        next_run = lock.Owner("ops", "another", "boot", 1, "1", "next run")
        lock.hold(path, next_run, lock.this_moment(), instead_of="any")
        service = state_host.Host(host.home, "vllm", "vllm-spare", host.folder / "admin.sock", path, start_timeout=5)
        before = service.look()
        actions = judge.repairs(service.read(), before)
        failed = state_host.bring_back(service, actions, before)
        after, state = service.look(), service.read()
        return before, after, actions, {fact.name for fact in judge.invariant(state, after) if not fact.holds}, failed


def unproven_clients(seen: judge.Seen) -> list[str]:
    """Releases that clients of the gateway get from the engine without a full proof.

    A spare engine is not counted: it serves during an upgrade after a smoke test.
    """
    if seen.backends is None or seen.backends["engine"].state != "ready":
        return []
    return [c.release for c in seen.engines if c.serves and c.release not in seen.proofs]


def rows(cuts: list[Cut]) -> Iterator[tuple[Cut, str, judge.Seen, judge.Seen, list[judge.Action], set[str], str]]:
    for cut in cuts:
        for event in EVENTS:
            cut.host.load(cut.snapshot)
            happen(event, cut.host)
            yield cut, event, *reconciled(cut.host)


def page(lines: list[tuple[str, ...]]) -> str:
    """The generated page: what each cut leaves, and what the next run makes of it."""
    parts = [
        "<!-- Generated by UPDATE_GOLDEN=1 pytest tests/cuts. Do not edit. -->",
        "# Interrupted runs",
        "What happens if a run is cut off behind a step: Ansible is killed or loses the connection, Docker is"
        " restarted, or the host is booted. R1 is the release that was proven before, R2 the new one. The next run of"
        " any playbook that changes the host first brings back what was proven. The playbooks are real; Docker's"
        " client, the gateway's admin socket and the checks are stand-ins (`tests/cuts`).",
    ]
    for flow in dict.fromkeys(line[0] for line in lines):
        parts.append(f"## {flow[0].upper()}{flow[1:]}")
        rows = [line[1:] for line in lines if line[0] == flow]
        steps = list(dict.fromkeys(row[0] for row in rows))
        head = ["cut off behind", *(f"{event}, then" for event in EVENTS), "after the next run"]
        table = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for step in steps:
            mine = [row for row in rows if row[0] == step]
            after = " / ".join(dict.fromkeys(row[3] for row in mine))
            table.append("| " + " | ".join([step, *(row[2] for row in mine), after]) + " |")
        parts.append("\n".join(table))
    return "\n\n".join(parts) + "\n"


def test_no_cut_leaves_clients_with_what_was_not_proven(cuts: list[Cut]) -> None:
    wrong: list[str] = []
    lines: list[tuple[str, ...]] = []
    names: dict[str, str] = {}
    for cut, event, before, after, actions, broken, failed in rows(cuts):
        where = f"{cut.flow} | {cut.step} | {event}"
        wrong += [f"{where}: clients get {name} before the next run" for name in unproven_clients(before)]
        wrong += [f"{where}: clients get {name} after the next run" for name in unproven_clients(after)]
        if failed:
            wrong.append(f"{where}: {failed}")
        if after.current and broken - {"keys"}:
            wrong.append(f"{where}: {sorted(broken)} after {actions}")
        if not after.current and after.running:
            wrong.append(f"{where}: {after.running[0].release} runs without a proof")
        if before.current and not after.startable:
            wrong.append(f"{where}: the way back is lost: {after.problems}")
        texts = [judge.serving(seen) for seen in (before, after)]
        for container in (*before.engines, *before.spares):
            names.setdefault(container.release, f"R{len(names) + 1}")
        for release, name in names.items():
            texts = [text.replace(f"Release {release}", name).replace(release, name) for text in texts]
        lines.append((cut.flow, cut.step, event, *(text.rstrip(".") for text in texts)))
    assert wrong == []
    assert len({(line[0], line[1]) for line in lines}) > 80
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(page(lines), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(lines), "UPDATE_GOLDEN=1 pytest tests/cuts writes it again"
