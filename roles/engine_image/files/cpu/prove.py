"""Load what every start of the engine loads: a missing library shows in the build, not on the first start.

Run by install.sh with the Python of the environment, in the container that becomes the image.
"""

import torch
import torchvision
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    raise SystemExit(f"vLLM takes this environment for {type(current_platform).__name__}, not for the CPU")

# vLLM only warns where its kernels do not load (without libnuma, for example) and dies later of what is missing then.
current_platform.import_kernels()
if not hasattr(torch.ops._C, "init_cpu_memory_env"):
    raise SystemExit("vLLM's kernels do not load: see the warning above, and `ldd` of vllm/_C*.so")

print(f"torch {torch.__version__}, torchvision {torchvision.__version__} and vLLM's kernels load")
