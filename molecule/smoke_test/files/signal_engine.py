"""Sends a signal to vLLM's engine processes, but not to its HTTP server: /health still answers while the engine hangs.

Runs in the engine container: ``python3 signal_engine.py STOP`` or ``CONT``.
"""

import os
import signal
import sys
from pathlib import Path

found = [
    int(process.name)
    for process in Path("/proc").iterdir()
    if process.name.isdigit() and (process / "cmdline").read_bytes().startswith(b"VLLM::")
]
for pid in found:
    os.kill(pid, getattr(signal, f"SIG{sys.argv[1]}"))
sys.exit(0 if found else "no engine process")
