"""keep_asking.py URL KEY: keep an engine busy for two minutes. Ends early if the engine stops to answer."""

import json
import sys
import threading
import time
import urllib.request

url, key = sys.argv[1:]
body = {"model": "tiny-qwen3-vl", "prompt": "red", "max_tokens": 4000, "ignore_eos": True}
end = time.monotonic() + 120


def ask() -> None:
    """Send one request after the other."""
    while time.monotonic() < end:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        urllib.request.urlopen(request, timeout=120).read()


threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
