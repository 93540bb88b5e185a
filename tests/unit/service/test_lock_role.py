"""Role deploy_lock in a run: a fresh lock is not renewed, and one that was given back is taken again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.service.lock import hold, this_moment, this_run
from support.paths import ROOT

PLAY = """
- name: Lock
  hosts: localhost
  gather_facts: false
  tasks:
    - &acquire
      name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - &note
      name: Note
      ansible.builtin.shell: "cat '{{ vllm_lock_file }}' >>'{{ noted }}'; echo >>'{{ noted }}'"
- name: Next play
  hosts: localhost
  gather_facts: false
  tasks:
    - *acquire
    - *note
    - name: Keep
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock, tasks_from: release}
      vars: {deploy_lock_keep: "true"}
    - *note
    - name: Release
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock, tasks_from: release}
    - *note
    - *acquire
    - *note
"""


LONG_TASK = """
- name: Long task
  hosts: localhost
  gather_facts: false
  tasks:
    - &acquire
      name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - name: Wait until the lock was renewed twice
      ansible.builtin.shell: >-
        for number in 1 2; do old=$(cat '{{ vllm_lock_file }}');
        while [ "$old" = "$(cat '{{ vllm_lock_file }}')" ]; do sleep 0.1; done; done
"""

FAILS = """
- name: Fails
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - name: Note
      ansible.builtin.shell: "cat '{{ vllm_lock_file }}' >'{{ noted }}'"
    - name: Fail
      ansible.builtin.fail: {msg: broken}
"""

KILLED = """
- name: Killed
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - name: Kill the run
      ansible.builtin.shell: >-
        kill -9 $(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["owner"]["pid"])'
        '{{ vllm_lock_file }}'); sleep 1
"""

LOST = """
- name: Lost
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - name: Break the lock and wait until the run has noticed
      ansible.builtin.shell: >-
        rm '{{ vllm_lock_file }}';
        while ! flock --nonblock {{ noted | dirname }}/tmp/*/deploy-lock-* true; do sleep 0.1; done
    - name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - name: Note
      ansible.builtin.shell: "cat '{{ vllm_lock_file }}' >'{{ noted }}'"
"""

AGAIN = """
- name: Again
  hosts: localhost
  gather_facts: false
  tasks:
    - &again
      name: Acquire again, without having held it
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock, tasks_from: again}
    - &note
      name: Note
      ansible.builtin.shell: "cat '{{ vllm_lock_file }}' >>'{{ noted }}'; echo >>'{{ noted }}'"
    - name: Acquire
      ansible.builtin.include_role: {name: inference.vllm.deploy_lock}
    - name: Reboot
      ansible.builtin.file: {path: "{{ vllm_lock_file }}", state: absent}
    - *again
    - *note
"""


@dataclass
class Lock:
    """The lock of a host, and runs of Ansible on it."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "lock"

    @property
    def noted(self) -> Path:
        return self.folder / "noted"

    def run(self, text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        play = self.folder / "play.yml"
        play.write_text(text, encoding="utf-8")
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            str(play),
            "-i",
            "localhost,",
            "-c",
            "local",
        ]
        command += ["-e", f"vllm_lock_file={self.path}", "-e", f"noted={self.noted}", *options]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"), **environment},
        )  # fmt: skip

    def keepers(self) -> list[int]:
        """Processes that the runs left behind."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"ANSIBLE_LOCAL_TEMP={self.folder}/tmp".encode() in file.read_bytes():
                    found.append(int(file.parent.name))
        return found


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_is_taken_once_and_again_after_its_release(lock: Lock) -> None:
    result = lock.run(PLAY)
    assert result.returncode == 0, result.stdout + result.stderr
    first, next_play, kept, released, again = lock.noted.read_text(encoding="utf-8").splitlines()
    assert first == next_play == kept
    assert '"renewed"' in first
    assert released == ""
    assert '"renewed"' in again
    assert again != first


def test_it_is_renewed_during_a_long_task(lock: Lock) -> None:
    result = lock.run(LONG_TASK, "-e", "deploy_lock_max_age=5")
    assert result.returncode == 0, result.stdout + result.stderr


def test_failed_run_gives_it_back_before_it_ends(lock: Lock) -> None:
    result = lock.run(FAILS)
    assert result.returncode == 2, result.stdout + result.stderr
    assert '"renewed"' in lock.noted.read_text(encoding="utf-8")
    assert lock.path.read_text(encoding="utf-8") == ""


def test_failed_run_gives_it_back_without_the_callback(lock: Lock) -> None:
    result = lock.run(FAILS, ANSIBLE_CALLBACKS_ENABLED="inference.vllm.heartbeat")
    assert result.returncode == 2, result.stdout + result.stderr
    wait_until(lambda: lock.path.read_text(encoding="utf-8") == "")
    wait_until(lambda: not lock.keepers())
    assert not list((lock.folder / "tmp").iterdir())


def test_killed_run_leaves_it_and_the_next_one_takes_it_over(lock: Lock) -> None:
    assert lock.run(KILLED).returncode == -signal.SIGKILL
    wait_until(lambda: not lock.keepers())
    left = lock.path.read_text(encoding="utf-8")
    assert hold(lock.path, replace(this_run(os.getpid()), controller="another"), this_moment()) is None, left
    lock.path.write_text(left, encoding="utf-8")
    result = lock.run(FAILS, "-v")
    assert '"play": "Fails"' in lock.noted.read_text(encoding="utf-8"), result.stdout


def test_run_that_lost_it_is_warned_and_may_take_it_again(lock: Lock) -> None:
    result = lock.run(LOST, "-e", "deploy_lock_max_age=5")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[deploy_lock_lost]" in result.stderr
    assert '"renewed"' in lock.noted.read_text(encoding="utf-8")


def test_it_is_taken_again_after_a_reboot_of_the_run(lock: Lock) -> None:
    result = lock.run(AGAIN)
    assert result.returncode == 0, result.stdout + result.stderr
    before, after = lock.noted.read_text(encoding="utf-8").splitlines()
    assert before == ""
    assert '"renewed"' in after


def test_check_mode_takes_nothing_and_leaves_no_process(lock: Lock) -> None:
    result = lock.run(FAILS, "--check")
    assert result.returncode == 2
    assert not lock.path.exists()
    assert not lock.keepers()


def test_refusal_names_the_holder_and_since_when(lock: Lock) -> None:
    other = replace(this_run(os.getpid(), "Serve"), controller="laptop", user="ops")
    moment = this_moment()
    assert hold(lock.path, other, replace(moment, wall=60.0)) is None
    result = lock.run(FAILS)
    assert result.returncode == 2
    text = " ".join(result.stderr.split()) + " ".join(result.stdout.split())
    assert "[deploy_locked]" in text
    assert f"ops@laptop, process {os.getpid()}, Serve, since 1970-01-01 00:01 UTC, renewed " in text
    assert not lock.noted.exists()
    assert hold(lock.path, other, moment) is None
