"""Sends a signal to vLLM's engine processes, and not to its HTTP server: /health stays green while nothing is computed.

Runs in the engine's container: ``python3 signal_engine.py STOP`` or ``CONT``.
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
