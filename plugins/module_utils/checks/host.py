"""Values of the host that the host checks compare with their limits: one function for each."""

from __future__ import annotations

import shutil
from pathlib import Path

GIB = 2**30


def disk_left(home: Path) -> float:
    """Free space of the file system with ``vllm_home``, in GiB, for users other than root.

    Raises:
        OSError: The folder does not exist or cannot be read.
    """
    return shutil.disk_usage(home).free / GIB
