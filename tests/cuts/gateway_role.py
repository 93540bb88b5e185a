"""gateway_role.py PORT HOME: what role gateway does to the gateway: port, key, and which engines are ready."""

import json
import os
import sys
from pathlib import Path

file = Path(os.environ["SANDBOX"], "gateway.json")
old = json.loads(file.read_text()) if file.exists() else {}
key = Path(sys.argv[2], "secrets", "api_key").read_text().strip()
new = {"port": sys.argv[1], "key": key}
servers = old.get("servers") if {k: old.get(k) for k in new} == new else {"engine": "ready", "spare": "maint"}
file.write_text(json.dumps({**new, "servers": servers}))
