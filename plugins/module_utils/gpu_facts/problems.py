"""Problems of a host's GPUs or driver, in the form of a refusal: code, message, fix."""

from __future__ import annotations

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

# Message and fix by code. `{where}` is the GPU or the detail, if one is known.
_PROBLEMS = {
    "driver_not_installed": (
        "NVIDIA GPUs are in the host, but neither the NVML library nor nvidia-smi{where}.",
        "Install the NVIDIA driver.",
    ),
    "driver_not_loaded": (
        "The NVIDIA driver is installed, but its kernel module does not answer{where}.",
        "Load it with 'modprobe nvidia' and read 'dmesg'; after a kernel update rebuild it (dkms) or reboot; with "
        "Secure Boot on it must be signed.",
    ),
    "driver_library_mismatch": (
        "The loaded kernel module and the NVIDIA libraries are of different versions{where}.",
        "Reboot, so that the installed version is loaded; pin module and libraries to one version and hold both.",
    ),
    "foreign_driver_loaded": (
        "Another driver holds the NVIDIA GPUs{where}.",
        "Blacklist nouveau and nova_core, rebuild the initramfs and reboot.",
    ),
    "gpu_lost": (
        "A GPU has fallen off the PCI bus{where}.",
        "Stop what uses the GPUs and power the host off and on; if it comes back lost, check power, cooling and "
        "seating, then replace the card.",
    ),
    "gpu_unreachable": (
        "The driver cannot open a GPU{where}.",
        "Read 'dmesg' for NVRM and Xid lines, then reboot; if it stays, treat the card as faulty.",
    ),
    "gpu_needs_reset": (
        "A GPU waits for a reset{where}.",
        "Stop what uses it and run 'nvidia-smi --gpu-reset', or reboot.",
    ),
    "gpu_not_listed": (
        "The PCI bus has a GPU that the driver does not list{where}.",
        "Read 'dmesg' for its address: a GPU that is lost, too old for this driver, or held by another driver is not "
        "listed.",
    ),
    "no_devices_found": (
        "The driver answers, but finds no GPU{where}.",
        "Check 'lspci' and 'dmesg'; in a virtual machine check that the GPU is passed through.",
    ),
    "gpu_interrupt_fault": (
        "The driver gets no interrupts from a GPU{where}.",
        "Read 'dmesg'; check the BIOS, the IOMMU settings and the slot.",
    ),
    "gpu_corrupted_inforom": (
        "A GPU's infoROM is corrupted{where}.",
        "Reboot; if it stays, have the card serviced.",
    ),
    "gpu_no_permission": (
        "The user may not read the GPUs{where}.",
        "Run the task with become, or give the user access to /dev/nvidia*.",
    ),
    "driver_timeout": (
        "The driver does not answer in time{where}.",
        "Read 'dmesg' for Xid lines; a GPU that hangs needs a reset or a reboot.",
    ),
    "nvml_error": (
        "NVML fails{where}.",
        "Read 'dmesg' for NVRM lines and reboot; then report the code to the driver's vendor.",
    ),
    "unreadable_nvidia_smi": (
        "nvidia-smi gave no report that can be read{where}.",
        "Run 'nvidia-smi -q -x' on the host and read what it says.",
    ),
    "fabric_not_ready": (
        "The NVLink fabric is not ready, so CUDA refuses to start with error 802{where}.",
        "Install nvidia-fabricmanager of exactly the driver's version and start it; in a virtual machine start it on "
        "the host.",
    ),
    "cuda_not_ready": (
        "CUDA refuses to start with error 802, system not yet initialized{where}.",
        "Start nvidia-fabricmanager of exactly the driver's version and wait for the GPUs' fabric state completed.",
    ),
    "cuda_driver_mismatch": (
        "CUDA refuses to start with error 803: the libcuda that is found does not belong to the loaded driver{where}.",
        "Keep one libcuda, that of the loaded driver: remove CUDA compatibility libraries from the search path, and in "
        "a container use '--gpus all' or a CDI specification generated after the last driver change.",
    ),
    "cuda_no_device": (
        "CUDA finds no GPU{where}.",
        "Check CUDA_VISIBLE_DEVICES, the /dev/nvidia* nodes and that nvidia_uvm is loaded.",
    ),
    "cuda_compatibility_unsupported": (
        "CUDA compatibility libraries are in the way; this GPU does not allow them (error 804){where}.",
        "Install a driver that is new enough instead; forward compatibility is for data centre GPUs only.",
    ),
    "cuda_error": (
        "CUDA does not start{where}.",
        "Read 'dmesg' for NVRM lines; reload the driver or reboot.",
    ),
}

# Return codes of NVML (nvml.h, nvmlReturn_t).
_NVML = {
    4: "gpu_no_permission",
    9: "driver_not_loaded",
    10: "driver_timeout",
    11: "gpu_interrupt_fault",
    12: "driver_not_installed",
    14: "gpu_corrupted_inforom",
    15: "gpu_lost",
    16: "gpu_needs_reset",
    18: "driver_library_mismatch",
}

# Return codes of cuInit (cuda.h, CUresult).
_CUDA = {
    100: "cuda_no_device",
    802: "cuda_not_ready",
    803: "cuda_driver_mismatch",
    804: "cuda_compatibility_unsupported",
}

# Words of nvidia-smi and of the CUDA runtime, in lower case. The first that is found decides.
_WORDS = (
    ("version mismatch", "driver_library_mismatch"),
    ("gpu is lost", "gpu_lost"),
    ("fallen off the bus", "gpu_lost"),
    ("requires reset", "gpu_needs_reset"),
    ("gpu requires restart", "gpu_needs_reset"),
    ("unable to determine the device handle", "gpu_unreachable"),
    ("couldn't communicate with the nvidia driver", "driver_not_loaded"),
    ("driver not loaded", "driver_not_loaded"),
    ("couldn't find libnvidia-ml", "driver_not_installed"),
    ("nvml shared library", "driver_not_installed"),
    ("no devices were found", "no_devices_found"),
    ("insufficient permissions", "gpu_no_permission"),
    ("system not yet initialized", "cuda_not_ready"),
    ("unsupported display driver / cuda driver combination", "cuda_driver_mismatch"),
    ("forward compatibility was attempted on non supported hw", "cuda_compatibility_unsupported"),
    ("no cuda-capable device is detected", "cuda_no_device"),
)


def problem(code: str, where: str = "") -> Refusal:
    """The problem of that code; ``where`` names the GPU or the detail."""
    message, fix = _PROBLEMS[code]
    join = " answers" if code == "driver_not_installed" else ""
    return Refusal(code, message.format(where=join + (f": {where}" if where else "")), fix)


def of_nvml(code: int, where: str = "") -> Refusal:
    """The problem for a return code of NVML; ``nvml_error`` for an unknown one."""
    known = _NVML.get(code)
    return problem(known, where) if known else problem("nvml_error", ", ".join(filter(None, (where, f"code {code}"))))


def of_cuda(code: int) -> Refusal:
    """The problem for a return code of cuInit; ``cuda_error`` for an unknown one."""
    known = _CUDA.get(code)
    return problem(known) if known else problem("cuda_error", f"code {code}")


def of_text(text: str) -> Refusal | None:
    """The problem for the output of a program, or None."""
    for line in text.splitlines():
        for words, code in _WORDS:
            if words in line.lower():
                return problem(code, line.strip()[:_LONGEST])
    return None


_LONGEST = 200
