"""Callback: copy the host after each task that changed it."""

from __future__ import annotations

import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: snapshots
type: notification
short_description: Copy the host after each task that changed it
description:
  - For the tests of runs that are cut off.
"""


class CallbackModule(CallbackBase):
    """Copies ``$SANDBOX`` to ``$SNAPSHOTS/NNN task``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "snapshots"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, display: Any = None) -> None:
        super().__init__(display)
        self.host = Path(os.environ["SANDBOX"])
        self.target = Path(os.environ["SNAPSHOTS"])
        self.target.mkdir(parents=True, exist_ok=True)
        self.last = self.digest()

    def digest(self) -> str:
        paths = sorted(path for path in self.host.rglob("*") if path.is_file() or path.is_symlink())
        contents = (path.readlink() if path.is_symlink() else path.read_text(errors="replace") for path in paths)
        parts = [f"{path} {text}" for path, text in zip(paths, contents, strict=True) if path.name != "hosts.yml"]
        return sha256("\n".join(parts).encode()).hexdigest()

    def take(self, result: Any) -> None:
        now = self.digest()
        if now != self.last:
            self.last = now
            name = re.sub(r"[^A-Za-z0-9]+", "-", result._task.get_name().split(" : ")[-1])
            number = len(list(self.target.iterdir())) + 1
            shutil.copytree(
                self.host,
                self.target / f"{number:03d}-{name}",
                symlinks=True,
                ignore=shutil.ignore_patterns("admin.sock"),
            )

    v2_runner_on_ok = take

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.take(result)
