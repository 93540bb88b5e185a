#!/usr/bin/python
"""Module: read a host's GPUs and their driver."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Read the NVIDIA GPUs of a host and their driver
version_added: 0.1.0
description:
  - Reads through NVML if the interpreter has nvidia-ml-py (module C(pynvml)), else through C(nvidia-smi), else from the
    PCI bus. The returned keys are the same for every source.
  - A value that cannot be read is null, and C(missing) has the reason by the value's path, for example C(ecc.mode) is
    C(not_supported).
  - C(host.problems) lists problems, each with C(code), C(message) and C(fix). The module does not fail for them.
  - Without root, the kernel log, and with it the Xid errors, may not be readable.
options:
  start_cuda:
    description:
      - Test whether CUDA starts, in a separate process. This detects errors 802 and 803 reliably, but may load the
        kernel module nvidia_uvm. Not done in check mode.
    type: bool
    default: false
attributes:
  check_mode:
    description: Changes nothing in any mode; in check mode O(start_cuda) is left out.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: GPUs | Read them
  inference.vllm.gpu_info:
  become: true
  register: found

- name: GPUs | Refuse a host with problems
  ansible.builtin.assert:
    that: found.host.problems | length == 0
    fail_msg: "{{ found.host.problems }}"
"""

RETURN = r"""
gpus:
  description: The GPUs, by the driver's numbers; after them those of the PCI bus that the driver does not list.
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: The driver's number; null for a GPU that only the PCI bus shows.
      type: int
    name:
      description: Name as the driver gives it.
      type: str
      sample: NVIDIA GeForce RTX 4090
    uuid:
      description: Stays the same over reboots and slots.
      type: str
    pci_bus_id:
      description: Address as the kernel writes it.
      type: str
      sample: "0000:01:00.0"
    pci_device:
      description: PCI device identifier, four hexadecimal digits.
      type: str
      sample: "2684"
    memory:
      description:
        - C(total_mib), C(reserved_mib) (held by the driver), C(used_mib) and C(free_mib) as reported, and each again in
          GiB (2^30 bytes) as C(total_gib) and so on.
      type: dict
    compute_capability:
      description: CUDA compute capability.
      type: float
      sample: 8.9
    driver_version:
      description: Version of the driver that answers.
      type: str
    cuda_version:
      description: Newest CUDA that this driver runs.
      type: str
      sample: "13.0"
    pcie:
      description:
        - C(generation) and C(width) (lanes) now, an idle GPU slows its link down; C(generation_max) and C(width_max)
          that card and slot allow together.
      type: dict
    nvlink:
      description: C(present), and C(links) that are up.
      type: dict
    peers:
      description:
        - The other GPUs by C(index). C(path) between the two is C(NV), C(PIX), C(PXB), C(PHB), C(NODE) or C(SYS), as in
          C(nvidia-smi topo). C(p2p) is C(ok) where this GPU may read the other's memory, else C(gpu_not_supported),
          C(chipset_not_supported), C(topology_not_supported), C(disabled_by_registry), C(not_supported) or C(unknown).
      type: list
      elements: dict
    ecc:
      description:
        - C(mode) (on or off), and uncorrected errors since the driver was loaded (C(uncorrected_volatile)) and over the
          GPU's life (C(uncorrected_aggregate)).
      type: dict
    mig:
      description: C(mode) (on or off) and number of C(instances).
      type: dict
    persistence_mode:
      description: Whether the driver stays loaded without a client.
      type: bool
    fabric_state:
      description: C(completed), C(in_progress) or C(not_started) on GPUs behind an NVSwitch.
      type: str
    processes:
      description: Processes that hold memory, each with C(pid), C(name) and C(mib); an unknown part is null.
      type: list
      elements: dict
    xids:
      description:
        - The last Xid errors of this boot, each with C(code), C(meaning) (null for a number that is not known here),
          C(time), C(pci_bus_id) and C(text).
      type: list
      elements: dict
    missing:
      description: Reason for each null, by the value's path.
      type: dict
host:
  description: The driver and the host.
  returned: always
  type: dict
  contains:
    source:
      description: Where the GPUs are from, C(nvml), C(nvidia_smi), C(pci) or C(none).
      type: str
    kernel_module:
      description: C(version) of the loaded module, and its C(kind), C(open) or C(proprietary).
      type: dict
    userspace_version:
      description: Version of libnvidia-ml.so.1.
      type: str
    versions_agree:
      description: Whether module and library are of one version.
      type: bool
    modules:
      description: Whether C(nvidia), C(nvidia_uvm), C(nouveau) and C(nova_core) are loaded.
      type: dict
    nvswitches:
      description: Number of NVSwitches on the PCI bus.
      type: int
    fabric_manager_running:
      description: Whether a process of nvidia-fabricmanager runs.
      type: bool
    secure_boot:
      description: Whether Secure Boot is on.
      type: bool
    cuda_init:
      description: What cuInit returned, 0 where CUDA starts; null unless O(start_cuda).
      type: int
    other_xids:
      description: Xid errors of this boot from addresses where no GPU is found any more.
      type: list
      elements: dict
    problems:
      description: Problems, each with C(code), C(message) and C(fix).
      type: list
      elements: dict
    missing:
      description: Reason for each null, by the value's path.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts.read import read, this_machine


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"start_cuda": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    start_cuda = module.params["start_cuda"] and not module.check_mode
    module.exit_json(changed=False, failed=False, **read(this_machine(), start_cuda))


if __name__ == "__main__":
    main()
