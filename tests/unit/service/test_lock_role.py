"""Role deploy_lock in a run: a fresh lock is not renewed, and one that was given back is taken again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_it_is_taken_once_and_again_after_its_release(tmp_path: Path) -> None:
    play, noted = tmp_path / "play.yml", tmp_path / "noted"
    play.write_text(PLAY, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(play), "-i", "localhost,", "-c", "local"]
    command += ["-e", f"vllm_lock_file={tmp_path}/lock", "-e", f"noted={noted}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    first, next_play, kept, released, again = noted.read_text(encoding="utf-8").splitlines()
    assert first == next_play == kept
    assert '"renewed"' in first
    assert released == ""
    assert '"renewed"' in again
    assert again != first
