#!/usr/bin/python
"""Module: make Docker run with its daemon.json, or restore the former one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_apply
short_description: Make Docker run with its daemon.json, or restore the former one
description:
  - For a handler that M(inference.vllm.docker_daemon_config) notifies. It is one module, because Ansible runs no
    C(rescue) in handlers and because the restore must not depend on the connection to the host.
  - If Docker can reload all changed keys, the module reloads it and waits for the confirmation in its log. For other
    changes it reloads and then restarts Docker. So containers survive the restart that enables C(live-restore), and an
    unreadable file causes no restart.
  - If Docker refuses the file or does not answer in time, the module restores the former file, starts Docker with it,
    and fails with the reason from Docker's log.
  - Does nothing if no change is pending. In check mode it reports whether one is.
options:
  path:
    description: The file.
    type: path
    default: /etc/docker/daemon.json
  restart:
    description: Restart in any case, with the service manager's settings read again; for a changed unit of systemd.
    type: bool
    default: false
  environment:
    description:
      - Variables that Docker must have been started with; an empty one must not be set. If the running Docker differs,
        it is restarted, with the service manager's settings read again. Other variables are ignored.
    type: dict
    default: {}
  pidfile:
    description: File with the process id of the Docker that O(start) starts. Without it, systemd is queried.
    type: path
  service:
    description: Name of systemd's unit. Not used with O(start).
    type: str
    default: docker
  start:
    description: Command that starts Docker in the background, for hosts without systemd.
    type: list
    elements: str
    default: []
  stop:
    description: Command that stops the Docker that O(start) starts, and succeeds if it does not run.
    type: list
    elements: str
    default: []
  reload:
    description: Command that sends SIGHUP to the Docker that O(start) starts.
    type: list
    elements: str
    default: []
  status:
    description: Command that succeeds while the Docker that O(start) starts runs, to detect that it ended.
    type: list
    elements: str
    default: []
  logfile:
    description: Log of the Docker that O(start) starts.
    type: path
  timeout:
    description: Seconds to wait for Docker to answer.
    type: int
    default: 60
attributes:
  check_mode:
    description: Reports what would be done.
    support: full
  diff_mode:
    description: The files differ by what M(inference.vllm.docker_daemon_config) shows.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Apply Docker's configuration
  inference.vllm.docker_daemon_apply:
    timeout: 60
"""

RETURN = r"""
action:
  description: What was done, V(none), V(reload) or V(restart).
  returned: success
  type: str
changed_keys:
  description: Top-level keys with a new value in the running Docker.
  returned: success
  type: list
  elements: str
refusals:
  description: Why Docker does not run with the file, with C(code), C(message) and C(fix).
  returned: failure
  type: list
  elements: dict
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.host.docker_daemon import (
    NOTHING,
    RELOAD,
    RESTART,
    ConfigFile,
    action,
    changed_keys,
    reason_in,
    runs_otherwise,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

#: Seconds to wait until Docker logs that it has reloaded its file; this takes milliseconds.
RELOAD_TIMEOUT = 15
#: Seconds without a Docker that runs after which it counts as ended. It takes a moment to become one.
GONE = 3
PAUSE = 0.5


class Engine:
    """The Docker engine of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        """Read the commands to start and stop it from the parameters."""
        self.run = module.run_command
        self.given = module.params
        self.log_size = Path(self.given["logfile"]).stat().st_size if self._has_log() else 0
        self.since = time.time()
        self.stranger = False
        started = (self.given["environment"], self.given["pidfile"], self.given["service"])
        self.reread = self.given["restart"] or runs_otherwise(self.run, *started)

    def answers(self) -> bool:
        """Whether it answers now."""
        return self._ok(["docker", "version", "--format", "{{.Server.Version}}"])

    def reload(self) -> bool:
        """Reload its file; returns whether it confirmed this in its log."""
        since = time.time()
        if not self._ok(self.given["reload"] or ["systemctl", "reload", self.given["service"]]):
            self.stranger = bool(self.given["start"])
            return False
        while time.time() < since + RELOAD_TIMEOUT:
            period = [f"--since={since:.9f}", f"--until={time.time():.9f}"]
            code, out, _ = self.run(["docker", "events", *period, "--filter=type=daemon", "--filter=event=reload"])
            if code == 0 and out.strip():
                return True
            time.sleep(PAUSE)
        return False

    def restart(self) -> bool:
        """Stop and start it; returns whether it answers in time."""
        if self.given["start"]:
            commands = [self.given["start"]]
        else:
            unit = self.given["service"]
            # Failed starts of a moment ago count towards systemd's limit of starts.
            commands = [["systemctl", "daemon-reload"]] if self.reread else []
            commands += [["systemctl", "reset-failed", unit], ["systemctl", "restart", unit]]
        self.since = time.time()
        if self.given["start"] and self._ok(self.given["stop"]) and self.answers():
            self.stranger = True
            return False
        done = [self._ok(command) for command in commands]
        # Without systemd the start command does not report success.
        seen = time.time()
        end = seen + self.given["timeout"]
        while done[-1] and time.time() < min(end, seen + GONE):
            if self.answers():
                return True
            if not self.given["status"] or self._ok(self.given["status"]):
                seen = time.time()
            time.sleep(PAUSE)
        return False

    def reason(self) -> str:
        """Reason in its log since the last reload or restart."""
        if self.stranger:
            return "unknown: the Docker that answers is not the one that this host's settings start"
        if self._has_log():
            with Path(self.given["logfile"]).open(encoding="utf-8", errors="replace") as log:
                log.seek(self.log_size)
                return reason_in(log.read())
        unit = self.given["service"]
        journal = ["journalctl", f"--unit={unit}", f"--since=@{int(self.since)}", "--output=cat", "--no-pager"]
        return reason_in(self.run(journal)[1])

    def _has_log(self) -> bool:
        return bool(self.given["start"] and self.given["logfile"]) and Path(self.given["logfile"]).exists()

    def _ok(self, command: list[str]) -> bool:
        return bool(self.run(command)[0] == 0)


def apply(engine: Engine, todo: str) -> bool:
    """Reload or restart Docker; returns whether it runs with the new file."""
    if engine.answers():
        reloaded = engine.reload()
        # Docker would not start with a file that it cannot reload, except with a changed unit.
        if todo == RELOAD or not (reloaded or engine.reread):
            return reloaded
    return engine.restart()


def go_back(engine: Engine, file: ConfigFile, keys: list[str]) -> Refusal:
    """Restore the former file and start Docker with it; returns the reason."""
    reason = engine.reason()
    file.restore()
    if engine.answers():
        engine.reload()
        back = True
    else:
        back = engine.restart()
    return Refusal(
        "docker_refused_config",
        f"Docker does not run with the new {file.path} ({', '.join(keys) or 'no key'} changed): {reason or 'no log'}\n"
        + f"The former file is restored, {'and Docker answers' if back else 'but Docker does not run'}.",
        "Correct the variables that set these keys." if back else "See `journalctl -u docker`, or Docker's log file.",
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "restart": {"type": "bool", "default": False},
            # A proxy's URL may carry a password.
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "pidfile": {"type": "path"},
            "service": {"type": "str", "default": "docker"},
            "start": {"type": "list", "elements": "str", "default": []},
            "stop": {"type": "list", "elements": "str", "default": []},
            "reload": {"type": "list", "elements": "str", "default": []},
            "status": {"type": "list", "elements": "str", "default": []},
            "logfile": {"type": "path"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    file = ConfigFile(Path(module.params["path"]))
    result: dict[str, Any] = {}
    try:
        before, after = file.proven(), file.read()
        engine = Engine(module)
        todo = RESTART if engine.reread else action(before, after)
        keys = changed_keys(before, after)
        if not module.check_mode:
            if todo != NOTHING and not apply(engine, todo):
                raise RefusalError(go_back(engine, file, keys))
            file.accept()
        result = {"changed": todo != NOTHING, "action": todo, "changed_keys": keys}
    except RefusalError as error:
        refusals = [refusal.as_dict() for refusal in error.refusals]
        module.fail_json(msg=str(error), refusals=refusals, failed=True)
    except OSError as error:
        module.fail_json(msg=f"[daemon_json_not_applied] {file.path}: {error}.", failed=True)
    module.exit_json(failed=False, **result)


if __name__ == "__main__":
    main()
