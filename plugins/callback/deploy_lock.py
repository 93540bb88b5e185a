"""Release the deploy locks at the end of a run, also after a failure."""

from __future__ import annotations

DOCUMENTATION = r"""
name: deploy_lock
type: aggregate
short_description: Release the deploy locks of a run at its end
version_added: 0.1.0
description:
  - A run that fails does not reach the task that releases the deploy lock of a host. This callback releases it before
    C(ansible-playbook) ends.
  - Without this callback, a background process releases the lock about a second later. If C(ansible-playbook) runs in a
    container that ends with it, the process is killed before, and the lock expires instead.
requirements:
  - enable in configuration
"""

from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.plugins.callback import CallbackBase

from ansible_collections.inference.vllm.plugins.module_utils.service.keeper import release_all

#: Maximum wait in seconds. The lock of a host that does not answer expires.
WAIT_S = 15


class CallbackModule(CallbackBase):
    """Releases all locks of this run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "inference.vllm.deploy_lock"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Release the locks."""
        if not release_all(Path(C.DEFAULT_LOCAL_TMP), WAIT_S):
            self._display.warning("A deploy lock was not released because its host does not answer. It expires.")
