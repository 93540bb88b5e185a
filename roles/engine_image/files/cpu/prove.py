"""Load the libraries that every start of the engine loads, so that a missing library fails the build.

install.sh runs it with the Python of the environment, in the container that becomes the image.
"""

import torch
import torchvision
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    raise SystemExit(f"vLLM detects the platform {type(current_platform).__name__} instead of the CPU")

# If its kernels do not load (for example without libnuma), vLLM only warns and fails later.
current_platform.import_kernels()
if not hasattr(torch.ops._C, "init_cpu_memory_env"):
    raise SystemExit("vLLM's kernels do not load: see the warning above, and run `ldd` on vllm/_C*.so")

print(f"torch {torch.__version__}, torchvision {torchvision.__version__} and vLLM's kernels load")
