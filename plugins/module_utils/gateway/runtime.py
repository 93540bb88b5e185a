"""Client of the admin socket of a running HAProxy."""

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
#: Administrative states of a server, with HAProxy's names.
STATES = ("ready", "drain", "maint")

# Bits of srv_admin_state, and the values of srv_op_state at which a server's health checks pass. 0x04 means that the
# configuration disables the server; it remains set after the server is set to ready.
_MAINT = 0x01 | 0x02 | 0x20
_DRAIN = 0x08 | 0x10
_UP = (1, 2)

_SERVERS_ONLY = 4
_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """One server of the group.

    Attributes:
        state: Administrative state, one of :data:`STATES`.
        up: Whether its health checks pass.
        sessions: Number of its active requests.
        queued: Number of requests in its own queue.
    """

    name: str
    state: str
    up: bool
    sessions: int
    queued: int

    @property
    def takes_requests(self) -> bool:
        """Whether it receives new requests."""
        return self.up and self.state == "ready"


def parse(states: str, statistics: str) -> dict[str, Server]:
    """Parse the output of ``show servers state`` and ``show stat``.

    Both are needed: ``show stat`` does not report the administrative state of a server that is down.

    Raises:
        RefusalError: The output has another format.
    """
    header, *lines = [line for line in states.splitlines() if line and line != "1"] or [""]
    columns = header.removeprefix("# ").split()
    rows = csv.DictReader(statistics.strip().removeprefix("# ").splitlines())
    try:
        by_name = {row["srv_name"]: row for row in (dict(zip(columns, line.split(), strict=True)) for line in lines)}
        return {row["svname"]: _server(by_name[row["svname"]], row) for row in rows if row["svname"] in by_name}
    except (KeyError, TypeError, ValueError) as error:
        message = f"The gateway's admin socket returned {states[:80]!r}."
        raise RefusalError(Refusal("gateway_unreadable", message, "Use HAProxy 2.6 or newer.")) from error


def _server(row: Mapping[str, str], counted: Mapping[str, str]) -> Server:
    admin = int(row["srv_admin_state"])
    state = "maint" if admin & _MAINT else "drain" if admin & _DRAIN else "ready"
    up = int(row["srv_op_state"]) in _UP
    return Server(row["srv_name"], state, up, int(counted["scur"] or 0), int(counted["qcur"] or 0))


class Runtime:
    """The admin socket of a running HAProxy."""

    def __init__(self, path: Path, group: str = GROUP) -> None:
        """Store the path of the socket, which is opened for each command."""
        self.path = path
        self.group = group

    def ask(self, command: str) -> str:
        """Send one command and return the answer.

        Raises:
            RefusalError: HAProxy does not answer.
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
        """Description of the running configuration; None if HAProxy does not answer."""
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
            RefusalError: There is no server with that name.
        """
        servers = self.servers()
        if name not in servers:
            message = f"The gateway has no backend {name!r}; it has {', '.join(sorted(servers)) or 'none'}."
            raise RefusalError(Refusal("unknown_backend", message, "Name one of gateway_backends."))
        return servers[name]

    def set_state(self, name: str, state: str) -> None:
        """Set the administrative state of a server.

        HAProxy treats a server after maintenance as healthy until three checks fail. So a server that becomes ready is
        first marked as down until a check passes.

        Raises:
            RefusalError: HAProxy refuses the command.
        """
        command = f"set server {self.group}/{name} state {state}"
        if state == "ready":
            command += f"; set server {self.group}/{name} health down"
        answer = self.ask(command).strip()
        if answer:
            raise RefusalError(Refusal("gateway_refuses", f"HAProxy returned: {answer}.", "Check the gateway's log."))

    def wait(
        self, name: str, done: Callable[[Server], bool], seconds: float, sleep: Callable[[float], None] = time.sleep
    ) -> Server | None:
        """Poll a server until it has the wanted state; None after the timeout."""
        end = time.monotonic() + seconds
        while True:
            server = self.server(name)
            if done(server):
                return server
            if time.monotonic() >= end:
                return None
            sleep(0.2)
