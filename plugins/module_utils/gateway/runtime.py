"""What a running HAProxy is asked and told through its admin socket."""

from __future__ import annotations

import csv
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

#: Name of the group of servers in templates/haproxy.cfg.j2.
GROUP = "engines"
#: What a server can be told; HAProxy's own words.
STATES = ("ready", "drain", "maint")

# Bits of srv_admin_state, and the values of srv_op_state at which a server's health checks pass. 0x04 only remembers
# that the configuration has the server disabled; it stays when the server was told to serve.
_MAINT = 0x01 | 0x02 | 0x20
_DRAIN = 0x08 | 0x10
_UP = (1, 2)

_SERVERS_ONLY = 4
_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """One server of the group.

    Attributes:
        state: What it was told: one of :data:`STATES`.
        up: Whether its health checks pass.
        sessions: Requests that it works on.
        queued: Requests that wait for it alone.
    """

    name: str
    state: str
    up: bool
    sessions: int
    queued: int

    @property
    def takes_requests(self) -> bool:
        """Whether new requests go to it."""
        return self.up and self.state == "ready"


def parse(states: str, statistics: str) -> dict[str, Server]:
    """Read the answers to ``show servers state`` and ``show stat``.

    The second alone does not do: of a server that is down it does not say whether it was told to drain.

    Raises:
        RefusalError: They are no such answers.
    """
    header, *lines = [line for line in states.splitlines() if line and line != "1"] or [""]
    columns = header.removeprefix("# ").split()
    rows = csv.DictReader(statistics.strip().removeprefix("# ").splitlines())
    try:
        told = {row["srv_name"]: row for row in (dict(zip(columns, line.split(), strict=True)) for line in lines)}
        return {row["svname"]: _server(told[row["svname"]], row) for row in rows if row["svname"] in told}
    except (KeyError, TypeError, ValueError) as error:
        message = f"The gateway's admin socket answers {states[:80]!r}."
        raise RefusalError(Refusal("gateway_unreadable", message, "See that HAProxy is 2.6 or newer.")) from error


def _server(told: Mapping[str, str], counted: Mapping[str, str]) -> Server:
    admin = int(told["srv_admin_state"])
    state = "maint" if admin & _MAINT else "drain" if admin & _DRAIN else "ready"
    up = int(told["srv_op_state"]) in _UP
    return Server(told["srv_name"], state, up, int(counted["scur"] or 0), int(counted["qcur"] or 0))


class Runtime:
    """The admin socket of a HAProxy that runs."""

    def __init__(self, path: Path, group: str = GROUP) -> None:
        """Name the socket; it is opened for each command."""
        self.path = path
        self.group = group

    def ask(self, command: str) -> str:
        """Send one command and return the answer.

        Raises:
            RefusalError: Nobody answers there.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(_SECONDS)
                client.connect(str(self.path))
                client.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: client.recv(65536), b"")).decode(errors="replace")
        except OSError as error:
            refusal = Refusal("gateway_not_running", f"{self.path}: {error}.", "Start the gateway: run role gateway.")
            raise RefusalError(refusal) from error

    def description(self) -> str | None:
        """What the configuration that it runs with says of itself, None where nobody answers."""
        try:
            lines = self.ask("show info").splitlines()
        except RefusalError:
            return None
        return next((line.partition(": ")[2] for line in lines if line.startswith("description: ")), "")

    def servers(self) -> dict[str, Server]:
        """All servers of the group by name."""
        states = self.ask(f"show servers state {self.group}")
        return parse(states, self.ask(f"show stat {self.group} {_SERVERS_ONLY} -1"))

    def server(self, name: str) -> Server:
        """One server.

        Raises:
            RefusalError: There is none of that name.
        """
        servers = self.servers()
        if name not in servers:
            message = f"The gateway has no backend {name!r}; it has {', '.join(sorted(servers)) or 'none'}."
            raise RefusalError(Refusal("unknown_backend", message, "Name one of gateway_backends."))
        return servers[name]

    def tell(self, name: str, state: str) -> None:
        """Tell a server to be ready, to take no new request, or to be left alone.

        HAProxy takes a server that was left alone for healthy until three checks say otherwise. So one that is to be
        ready counts as down until its first good check.

        Raises:
            RefusalError: HAProxy does not do it.
        """
        command = f"set server {self.group}/{name} state {state}"
        if state == "ready":
            command += f"; set server {self.group}/{name} health down"
        answer = self.ask(command).strip()
        if answer:
            raise RefusalError(Refusal("gateway_refuses", f"HAProxy says: {answer}.", "Look at the gateway's log."))

    def wait(
        self, name: str, done: Callable[[Server], bool], seconds: float, sleep: Callable[[float], None] = time.sleep
    ) -> Server | None:
        """Look at a server until it is as wanted; None if it is not in time."""
        end = time.monotonic() + seconds
        while True:
            server = self.server(name)
            if done(server):
                return server
            if time.monotonic() >= end:
                return None
            sleep(0.2)
