"""kill_under_load.py URL CONTAINER DOCKER: kill the engine container when it computes two requests concurrently."""

import re
import sys
import time
import urllib.request

import docker

url, container, docker_host = sys.argv[1:]
end = time.monotonic() + 300
while time.monotonic() < end:
    with urllib.request.urlopen(url, timeout=10) as page:
        running = re.search(r"^vllm:num_requests_running\{.*\} ([\d.]+)", page.read().decode(), re.MULTILINE)
    if running and float(running[1]) >= 2:
        docker.APIClient(base_url=docker_host, version="auto").kill(container)
        sys.exit(0)
    time.sleep(0.1)
sys.exit("there was no load")
