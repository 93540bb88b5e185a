"""Hold the memory of every visible GPU except CARD_GIB, until standard input ends.

Prints one JSON object when the memory is allocated: total and free memory of each GPU, in GiB (2**30 bytes).
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Run ``ballast.py CARD_GIB``; 0 allocates nothing and only reports."""
    import torch

    card = float(sys.argv[1])
    kept, report = [], []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            torch.cuda.init()
            free, total = torch.cuda.mem_get_info()
            if card:
                kept.append(torch.empty(int(free - card * 2**30), dtype=torch.uint8, device=f"cuda:{index}"))
                free, total = torch.cuda.mem_get_info()
            report.append({"free_gib": free / 2**30, "total_gib": total / 2**30})
    print(json.dumps(report), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
