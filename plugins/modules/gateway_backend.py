#!/usr/bin/python
"""Module: drain an engine of the gateway, and return it to service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_backend
short_description: Drain an engine of the gateway, and return it to service
description:
  - Sets in the running HAProxy whether an engine receives requests, and waits until the state is reached. No request is
    lost; a draining engine finishes its requests.
  - A reload of the gateway resets the state. To make a change permanent, set C(gateway_backends).
  - Requests from before the last reload are counted by the previous process, not by this one.
options:
  name:
    description: Name of the engine in C(gateway_backends).
    type: str
    required: true
  state:
    description:
      - V(ready) sends requests to it, and waits until its health check passes.
      - V(drain) sends no new requests to it, and waits until the last one is answered.
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
    description: Also drain the last engine that receives requests. Clients then get status 503.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports what would change, and does not wait.
    support: full
  diff_mode:
    description: Shows the state before and after.
    support: full
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Drain the old engine
  inference.vllm.gateway_backend:
    name: blue
    state: drain

- name: Return it to service
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
    """Whether a server has reached its administrative state."""
    if state == "ready":
        return server.takes_requests
    return server.state == state and server.sessions == 0 and server.queued == 0


def _refuse_last(servers: dict[str, Server], name: str) -> None:
    others = [server for server in servers.values() if server.name != name and server.takes_requests]
    if servers[name].takes_requests and not others:
        message = f"{name} is the only engine that receives requests: clients would get status 503."
        fix = "Set another one to ready first, or set unsafe_allow_last."
        raise RefusalError(Refusal("last_backend", message, fix))


def _late(name: str, state: str, seconds: int, server: Server) -> RefusalError:
    if state == "ready":
        message = f"{name} did not pass a health check within {seconds} s."
        return RefusalError(Refusal("backend_not_up", message, "Check that engine's log, or increase timeout."))
    message = f"{name} still has {server.sessions} requests after {seconds} s; it receives no new ones."
    return RefusalError(Refusal("backend_not_drained", message, "Increase timeout."))


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
            runtime.set_state(name, state)
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
