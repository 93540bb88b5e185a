#!/usr/bin/python
"""Module: take an engine out of the gateway, and put it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_backend
short_description: Take an engine out of the gateway, and put it back
description:
  - Tells the running HAProxy whether an engine takes requests, and waits until that is true. No request is lost, an
    engine that drains finishes those that it has.
  - A reload of the gateway forgets it. A change that shall last belongs into C(gateway_backends).
  - Requests that came before the last reload are counted by the process before that reload, not by this one.
options:
  name:
    description: Name of the engine in C(gateway_backends).
    type: str
    required: true
  state:
    description:
      - V(ready) lets it take requests, and waits until its health check passes.
      - V(drain) lets it take no new ones, and waits until the last one is answered.
      - V(maint) also stops its health checks.
    type: str
    choices: [ready, drain, maint]
    required: true
  timeout:
    description: Seconds to wait. V(0) does not wait.
    type: int
    default: 300
  socket:
    description: Admin socket of the gateway.
    type: path
    default: /run/vllm-gateway/admin.sock
  unsafe_allow_last:
    description: Take out the last engine that takes requests, too. Clients then get status 503.
    type: bool
    default: false
attributes:
  check_mode:
    description: Says what would change, and does not wait.
    support: full
  diff_mode:
    description: Shows the state before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Let the old engine finish
  inference.vllm.gateway_backend:
    name: blue
    state: drain

- name: Let it serve again
  inference.vllm.gateway_backend:
    name: blue
    state: ready
"""

RETURN = r"""
before:
  description: "The engine before: C(name), C(state), C(up), C(sessions) and C(queued)."
  returned: always
  type: dict
after:
  description: The engine at the end, with the same keys.
  returned: always
  type: dict
seconds:
  description: Seconds that it took.
  returned: always
  type: float
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.gateway.runtime import GROUP, STATES, Runtime, Server
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError


def reached(state: str, server: Server) -> bool:
    """Whether a server that was told a state has come to it."""
    if state == "ready":
        return server.takes_requests
    return server.state == state and server.sessions == 0 and server.queued == 0


def _refuse_last(servers: dict[str, Server], name: str) -> None:
    others = [server for server in servers.values() if server.name != name and server.takes_requests]
    if servers[name].takes_requests and not others:
        message = f"{name} is the only engine that takes requests: clients would get status 503."
        fix = "Bring another one up first, or set unsafe_allow_last."
        raise RefusalError(Refusal("last_backend", message, fix))


def _late(name: str, state: str, seconds: int, server: Server) -> RefusalError:
    if state == "ready":
        message = f"{name} did not pass a health check within {seconds} s."
        return RefusalError(Refusal("backend_not_up", message, "Look at that engine's log, or wait longer: timeout."))
    message = f"{name} still works on {server.sessions} requests after {seconds} s; it takes no new ones."
    return RefusalError(Refusal("backend_not_drained", message, "Wait longer: timeout."))


def change(module: AnsibleModule, runtime: Runtime) -> dict[str, Any]:
    """Bring the server into the state."""
    name, state, timeout = (module.params[key] for key in ("name", "state", "timeout"))
    before = runtime.server(name)
    changed = before.state != state
    if changed and state != "ready" and not module.params["unsafe_allow_last"]:
        _refuse_last(runtime.servers(), name)
    after = before
    if not module.check_mode:
        if changed:
            runtime.tell(name, state)
        found = runtime.wait(name, lambda server: reached(state, server), timeout) if timeout else runtime.server(name)
        if found is None:
            raise _late(name, state, timeout, runtime.server(name))
        after = found
    result: dict[str, Any] = {"changed": changed, "before": asdict(before), "after": asdict(after)}
    if module._diff and changed:
        result["diff"] = [{"before": f"{name}: {before.state}\n", "after": f"{name}: {state}\n"}]
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "required": True},
            "timeout": {"type": "int", "default": 300},
            "socket": {"type": "path", "default": "/run/vllm-gateway/admin.sock"},
            "unsafe_allow_last": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    start = time.monotonic()
    try:
        result = change(module, Runtime(Path(module.params["socket"]), GROUP))
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), refusals=refusals, failed=True)
    module.exit_json(**{**result, "seconds": round(time.monotonic() - start, 1), "failed": False})


if __name__ == "__main__":
    main()
