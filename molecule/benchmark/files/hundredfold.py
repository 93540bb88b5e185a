"""hundredfold.py FROM TO: create the result of a machine that is a hundred times as fast."""

import json
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
data = json.loads(source.read_text())
data["release"] = "fast"
for point in data["points"]:
    point["output_tokens_per_s"] *= 100
target.write_text(json.dumps(data))
