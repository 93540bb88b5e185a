"""release.py FILE [TOKENS]: print a file of a release of the tiny model on a CPU, made by the code of the collection.

FILE is manifest, plan or image. TOKENS is the number of tokens that the plan expects of the KV cache.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))

from support.plans import built_image, cpu_plan, manifest

name, *tokens = sys.argv[1:]
plan = replace(cpu_plan(), kv_cache_tokens=int(tokens[0])) if tokens else cpu_plan()
files = {"manifest": manifest(plan), "plan": plan, "image": built_image()}
sys.stdout.write(files[name].to_json())
