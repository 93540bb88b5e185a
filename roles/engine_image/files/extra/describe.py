"""Print as JSON the Python environment of vLLM in this image, which packages must fit. Runs in a container."""

import json
import sys
from importlib.metadata import distribution

from packaging.tags import sys_tags

tags = list(sys_tags())
description = {
    "site": str(distribution("vllm").locate_file("")),
    "implementation": tags[0].interpreter[:2],
    "version": f"{sys.version_info.major}.{sys.version_info.minor}",
    "abi": tags[0].abi,
    "platforms": list(dict.fromkeys(tag.platform for tag in tags if tag.platform != "any")),
}
print(json.dumps(description))
