"""Give the locks of the hosts back at the end of a run, whatever its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.callback import CallbackBase

from ansible_collections.inference.vllm.plugins.module_utils.service.keeper import release_all

DOCUMENTATION = r"""
name: deploy_lock
type: aggregate
short_description: Give the deploy locks of the hosts back at the end of a run
version_added: 0.1.0
description:
  - A run that fails does not reach the task that gives the deploy lock of a host back. This gives it back, before
    C(ansible-playbook) ends.
  - Without this callback the lock is given back a moment later, by a process that C(ansible-playbook) leaves behind. In
    a container that ends with C(ansible-playbook), that process ends too early, and others wait for the lease to end.
requirements:
  - enable in configuration
"""

#: A host that does not answer is not waited for any longer; its lease ends by itself.
WAIT_S = 15


class CallbackModule(CallbackBase):
    """Waits until the locks are given back."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "inference.vllm.deploy_lock"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Give the locks back, also after a failure."""
        if not release_all(Path(C.DEFAULT_LOCAL_TMP), WAIT_S):
            self._display.warning("A deploy lock was not given back: its host does not answer. The lease ends by itself.")
