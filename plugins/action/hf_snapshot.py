"""Show the progress of module hf_snapshot while it runs on the host.

A module cannot print before it ends. This plugin starts it as an asynchronous job and reads its progress file every
few seconds. The job survives a broken connection, and a failed poll is repeated. A poll is one `cat`, which takes a
fiftieth of the time of a module. Ansible's own module fetches the result.
"""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash

from ansible_collections.inference.vllm.plugins.module_utils.weights.progress import FILE_NAME, describe

# The module ends without this limit if there is no progress; the limit removes orphaned jobs.
JOB_SECONDS = 7 * 24 * 3600
FIRST_PAUSE = 0.1  # doubled up to the interval, so that a run without downloads is not delayed
LOST_POLLS = 60
JOB_KEYS = ("ansible_job_id", "results_file", "started", "finished", "stdout", "stderr", "stdout_lines", "stderr_lines")

display = Display()


class ActionModule(ActionBase):
    """Runs the module and prints its progress."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; its result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            interval = float(self._task.args.get("progress_interval", 5))
        except (TypeError, ValueError):
            interval = 0.0  # the module reports the error
        silent = interval <= 0 or self._task.check_mode or self._task.args.get("lock_only", False)
        if silent or self._task.async_val:
            wrap = bool(self._task.async_val)
            return dict(merge_hash(result, self._execute_module(task_vars=variables, wrap_async=wrap)))
        return dict(merge_hash(result, self._watch(interval, variables)))

    def _watch(self, interval: float, variables: dict[str, Any]) -> dict[str, Any]:
        """Start the job, print its progress, and return its result."""
        self._task.async_val = JOB_SECONDS
        try:
            job = self._execute_module(task_vars=variables, wrap_async=True)
        finally:
            self._task.async_val = 0  # otherwise Ansible would also wait for it
        if "ansible_job_id" not in job:
            return dict(job)
        host, pause, lost, printed = variables.get("inventory_hostname", ""), FIRST_PAUSE, 0, time.monotonic()
        while True:
            time.sleep(pause)
            pause = min(2 * pause, interval)
            try:
                if self._ended(job["results_file"]):
                    state = self._result(job["ansible_job_id"], variables)
                    break
                if time.monotonic() - printed >= interval:
                    printed = time.monotonic()
                    self._print_progress(host)
                lost = 0
            except AnsibleConnectionFailure as error:
                lost += 1
                if lost > LOST_POLLS:
                    raise
                display.warning(f"{host}: {error}. The download continues on the host; polling again.")
        self._low_level_execute_command(f"rm -f {shlex.quote(job['results_file'])}")
        return {key: value for key, value in state.items() if key not in JOB_KEYS}

    def _ended(self, file: str) -> bool:
        """Whether the job's file has a result, or is missing, which Ansible reports."""
        read = self._low_level_execute_command(f"cat {shlex.quote(file)}")
        try:
            state = json.loads(read["stdout"])
        except ValueError:
            return bool(read["rc"] or read["stdout"].strip())
        return "started" not in state or bool(state.get("finished"))

    def _result(self, job: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The result of the job."""
        task = self._task.copy()
        task.args = {"jid": job, "mode": "status"}
        action = self._shared_loader_obj.action_loader.get(
            "ansible.builtin.async_status",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        return dict(action.run(task_vars=variables))

    def _print_progress(self, host: str) -> None:
        """Print the figures of the progress file, if it exists."""
        arguments = self._task.args
        file = f"{str(arguments['root']).rstrip('/')}/{arguments['repository']}/{FILE_NAME}"
        read = self._low_level_execute_command(f"cat {shlex.quote(file)}")
        try:
            text = describe(json.loads(read["stdout"]))
        except (KeyError, TypeError, ValueError):
            return  # not started yet, just ended, or waiting for another run
        display.display(f"  ... {host}: {arguments['repository']}  {text}", color="dark gray")
