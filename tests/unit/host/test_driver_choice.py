"""Which driver a host gets: every rule of the table, every refusal, and what may never happen whatever comes in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.filter import driver as driver_filter
from ansible_collections.inference.vllm.plugins.module_utils.gpu_facts import read as gpu_facts
from ansible_collections.inference.vllm.plugins.module_utils.host import driver_choice
from ansible_collections.inference.vllm.plugins.module_utils.host.driver_choice import Choice, Host, Requirements
from ansible_collections.inference.vllm.plugins.module_utils.planner import gpus as gpu_table
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import ROOT

VARS = ROOT / "roles" / "nvidia_driver" / "vars" / "main" / "compatibility.yml"
TABLE = yaml.safe_load(VARS.read_text())["__nvidia_driver_compatibility"]
BASE = "https://mirror.example/repos"
KERNELS = {
    "Debian 12": "6.1.0-41-amd64",
    "Debian 13": "6.12.57+deb13-cloud-amd64",
    "Ubuntu 22": "5.15.0-161-generic",
    "Ubuntu 24": "6.14.0-36-generic",
    "RedHat 9": "5.14.0-611.5.1.el9_7.x86_64",
    "RedHat 10": "6.12.0-124.8.1.el10_1.x86_64",
}


def running(version: str = "", *, loaded: str | None = None, **host: Any) -> dict[str, Any]:
    """What gpu_facts returns on a host whose NVML reports `version`."""
    loaded = version if loaded is None else loaded
    facts = {
        "kernel_module": {"version": loaded or None, "kind": "open" if loaded else None},
        "userspace_version": version or None,
        "modules": {"nvidia": bool(loaded), "nvidia_uvm": False, "nouveau": False, "nova_core": False},
        "nvswitches": 0,
        "secure_boot": False,
    }
    gpus = [{"name": "NVIDIA H100 80GB HBM3", "driver_version": version}] if version else []
    return {"gpus": gpus, "host": facts | host}


def packages(version: str = "", *, managed: bool = False, held: bool = False, **more: Any) -> dict[str, Any]:
    """What driver_state returns on a Debian with NVIDIA's packages of `version`."""
    names = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"] if version else []
    return {
        "installed": dict.fromkeys(names, f"{version}-1"),
        "held": names if held else [],
        "managed_version": version if managed else "",
        "unfinished": [],
        "runfile": False,
        "gpu_containers": [],
    } | more


def choose(
    system: str = "Debian 12",
    gpus: Any = ({"name": "RTX 4090"},),
    installed: dict[str, Any] | None = None,
    runs: dict[str, Any] | None = None,
    **requirements: Any,
) -> Choice:
    host = Host(system, "x86_64", KERNELS.get(system, "6.1.0-1-amd64"), installed or packages(), runs or running())
    return driver_choice.choose(TABLE, host, list(gpus), Requirements(repository_base_url=BASE, **requirements))


def codes(choice: Choice) -> list[str]:
    return [refusal["code"] for refusal in choice.refusals]


def test_fresh_host_gets_the_default_branch_with_open_modules() -> None:
    choice = choose()
    assert (choice.action, choice.branch, choice.modules, choice.version) == ("install", 580, "open", "")
    assert choice.packages == ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"]
    assert choice.prerequisites == ["linux-headers-6.1.0-41-amd64", "linux-headers-amd64"]
    assert choice.repository == {"url": f"{BASE}/debian12/x86_64/", "key": f"{BASE}/debian12/x86_64/3bf863cc.pub"}
    assert choice.services == ["nvidia-persistenced"]
    assert not choice.refusals


@pytest.mark.parametrize(
    ("tag", "cuda"),
    [("", "13.0"), ("v0.33.0", "13.0"), ("v0.32.0-cu129", "12.9"), ("v0.20.1", "13.0"), ("0.19.0", "12.9")],
)
def test_cuda_version_of_the_engines_tag(tag: str, cuda: str) -> None:
    assert driver_choice.cuda_of_engine(TABLE, Requirements(engine_tag=tag)) == cuda


def test_a_tag_without_a_version_needs_the_variable() -> None:
    assert codes(choose(engine_tag="latest")) == ["unknown_cuda"]
    assert choose(engine_tag="latest", cuda_version="12.8").minimum_branch == 525
    assert codes(choose(cuda_version="99.0")) == ["unknown_cuda"]


@pytest.mark.parametrize(
    ("gpu", "generation", "modules"),
    [
        ({"name": "RTX 4090", "count": 2}, "Ada", "open"),
        ({"compute_capability": 7.5}, "Turing", "open"),
        ({"compute_capability": "12.0"}, "Blackwell", "open"),
        ({"name": "B200"}, "Blackwell", "open"),
        ({"name": None, "compute_capability": None, "pci_device": "2330"}, "Hopper", "open"),
        ({"pci_device": "20b2"}, "Ampere", "open"),
        ({"pci_device": "1db4"}, "Volta", "proprietary"),
        ({"pci_device": "1b06"}, "Pascal", "proprietary"),
        ({"pci_device": "17c2"}, "Maxwell", "proprietary"),
        ({"pci_device": "0x1eb8"}, "Turing", "open"),
    ],
)
def test_generation_decides_the_modules(gpu: dict[str, Any], generation: str, modules: str) -> None:
    choice = choose(gpus=[gpu], cuda_version="12.9")
    assert (choice.generations, choice.modules) == ([generation], modules)
    assert not choice.refusals


def test_planners_gpus_are_in_the_same_generation_by_name_and_by_pci() -> None:
    devices = [(gpu, int(text, 16)) for gpu in gpu_table.TABLE for text in gpu.pci_ids]
    assert devices
    for gpu, device in devices:
        by_name = driver_choice.generation_of(TABLE, {"compute_capability": gpu.compute_capability})
        inside = [r["name"] for r in TABLE["generations"] for a, b in r["pci"] if int(a, 16) <= device <= int(b, 16)]
        assert inside == [by_name["name"]], gpu.name


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ("no_gpu", {"gpus": []}),
        ("unknown_gpu", {"gpus": [{"name": "Voodoo 2"}]}),
        ("unknown_system", {"system": "Fedora 44"}),
        ("gpu_too_old", {"gpus": [{"pci_device": "1db4"}]}),
        ("mixed_generations", {"gpus": [{"pci_device": "1db4"}, {"name": "B200"}], "cuda_version": "12.9"}),
        ("modules_unsupported", {"gpus": [{"name": "B200"}], "modules": "proprietary"}),
        ("modules_unsupported", {"gpus": [{"pci_device": "1db4"}], "modules": "open", "cuda_version": "12.9"}),
        ("branch_too_old", {"branch": 570}),
        ("branch_too_old", {"version": "535.261.03"}),
        ("branch_too_old", {"gpus": [{"name": "B200"}], "branch": 550, "cuda_version": "12.9"}),
        ("branch_too_new", {"gpus": [{"pci_device": "1db4"}], "branch": 590, "cuda_version": "12.9"}),
        ("branch_too_old", {"source": "distribution"}),
        ("no_distribution_driver", {"system": "RedHat 9", "source": "distribution"}),
        ("secure_boot", {"runs": running(secure_boot=True)}),
        ("secure_boot", {"system": "RedHat 10", "runs": running(secure_boot=True)}),
        ("secure_boot", {"system": "Ubuntu 24", "source": "nvidia", "runs": running(secure_boot=True)}),
        ("held_packages", {"installed": packages("535.261.03", held=True)}),
        ("runfile_driver", {"installed": packages(runfile=True)}),
        ("kernel_headers_missing", {"installed": packages(offered={"linux-headers-6.1.0-1-amd64": False})}),
    ],
)
def test_refusals(expected: str, arguments: dict[str, Any]) -> None:
    choice = choose(**arguments)
    assert codes(choice) == [expected]
    assert all(choice.refusals[0].values())
    assert f"[{expected}]" in choice.as_dict()["refused"]


@pytest.mark.parametrize(
    ("installed", "runs"),
    [
        (packages(offered={"linux-headers-6.1.0-1-amd64": None}), running()),
        (packages("580.95.05", managed=True, offered={"linux-headers-6.1.0-1-amd64": False}), running()),
        (packages("580.95.05", offered={"linux-headers-6.1.0-1-amd64": False}), running("580.95.05")),
    ],
    ids=["no lists that could tell", "installed before", "not this role's"],
)
def test_headers_count_only_where_they_are_needed_and_known_to_be_missing(
    installed: dict[str, Any], runs: dict[str, Any]
) -> None:
    assert codes(choose(installed=installed, runs=runs)) == []


def test_unknown_architecture() -> None:
    host = Host("Debian 12", "riscv64", "6.1.0-1-riscv64", packages(), running())
    assert codes(driver_choice.choose(TABLE, host, [{"name": "L4"}], Requirements())) == ["unknown_system"]


def test_enrolled_key_lifts_secure_boot() -> None:
    assert not choose(runs=running(secure_boot=True), owner_key_enrolled=True).refusals


def test_own_driver_that_runs_is_signed() -> None:
    own = packages("580.95.05", managed=True)
    assert choose(installed=own, runs=running("580.95.05", secure_boot=True)).action == "keep"
    assert codes(choose(installed=own, runs=running(secure_boot=True))) == ["secure_boot"]


def test_secure_boot_on_ubuntu_takes_the_signed_modules_of_the_kernel_kind() -> None:
    choice = choose("Ubuntu 24", runs=running(secure_boot=True))
    assert (choice.source, choice.refusals, choice.repository) == ("distribution", [], {})
    assert "linux-modules-nvidia-580-server-open-generic-hwe-24.04" in choice.packages
    older = choose("Ubuntu 22", runs=running(secure_boot=True))
    assert "linux-modules-nvidia-580-server-open-generic" in older.packages


#: Debian 12 with its security archive, which has newer libraries than modules.
DEBIAN_OWN = """\
nvidia-smi | 535.309.01-0+deb12u1 | http://mirror.example/debian-security bookworm-security/non-free amd64 Packages
nvidia-smi | 535.261.03-1 | http://mirror.example/debian bookworm/non-free amd64 Packages
  libcuda1 | 535.309.01-0+deb12u1 | http://mirror.example/debian-security bookworm-security/non-free amd64 Packages
  libcuda1 | 535.261.03-1 | http://mirror.example/debian bookworm/non-free amd64 Packages
nvidia-open-kernel-dkms | 535.261.03-1 | http://mirror.example/debian bookworm/contrib amd64 Packages
"""


def test_the_version_is_one_that_libraries_and_modules_have() -> None:
    assert driver_choice.pick_version(DEBIAN_OWN, 535) == "535.261.03"
    with pytest.raises(RefusalError, match=r"no driver 535\.309\.01; it has: 535\.261\.03"):
        driver_choice.pick_version(DEBIAN_OWN, 535, "535.309.01")


def test_what_debian_numbers_apart_is_installed_by_name_only() -> None:
    choice = choose(source="distribution", cuda_version="12.4")
    assert choice.packages == [
        "nvidia-smi", "libcuda1", "libnvidia-ml1", "nvidia-driver-bin", "nvidia-open-kernel-dkms",
    ]  # fmt: skip
    names = driver_choice.install_names(choice.as_dict(), "535.261.03")
    assert "nvidia-persistenced" in names
    assert "nvidia-smi=535.261.03*" in names
    assert choice.services == ["nvidia-persistenced"]


def test_ubuntus_names_lose_the_branch_from_590() -> None:
    assert "nvidia-dkms-580-open" in choose("Ubuntu 24").packages
    assert "nvidia-dkms-open" in choose("Ubuntu 24", branch=590).packages


def test_module_stream_only_where_there_are_streams() -> None:
    assert choose("RedHat 9").module_stream == "nvidia-driver:580-open"
    assert choose("RedHat 9", modules="proprietary").module_stream == "nvidia-driver:580-dkms"
    assert choose("RedHat 10").module_stream == ""


def test_fabric_manager_follows_the_switches_or_the_variable() -> None:
    assert "nvidia-fabricmanager" in choose(runs=running(nvswitches=4)).packages
    assert "nvidia-fabricmanager" in choose(fabric_manager="always").services
    assert choose(runs=running(nvswitches=4), fabric_manager="never").services == ["nvidia-persistenced"]
    assert choose(runs=running(nvswitches=None)).services == ["nvidia-persistenced"]


@pytest.mark.parametrize(
    ("system", "branch", "name"),
    [
        ("Debian 12", 575, "nvidia-fabricmanager-575"),
        ("Debian 13", 580, "nvidia-fabricmanager"),
        ("Debian 13", 590, "nvidia-fabricmanager"),
        ("Ubuntu 24", 570, "nvidia-fabricmanager-570"),
        ("Ubuntu 24", 580, "nvidia-fabricmanager"),
        ("RedHat 9", 575, "nvidia-fabric-manager"),
        ("RedHat 9", 580, "nvidia-fabricmanager"),
        ("RedHat 10", 590, "nvidia-fabricmanager"),
    ],
)
def test_fabric_manager_changed_its_name_with_580(system: str, branch: int, name: str) -> None:
    choice = choose(system, branch=branch, cuda_version="12.9", fabric_manager="always")
    assert [package for package in choice.packages if "fabric" in package] == [name]


def test_fabric_manager_of_ubuntus_own_archive_carries_the_branch() -> None:
    choice = choose("Ubuntu 24", runs=running(secure_boot=True, nvswitches=4))
    assert "nvidia-fabricmanager-580" in choice.packages


def test_display_software_only_when_asked_for() -> None:
    assert "nvidia-driver" not in choose().packages
    assert "nvidia-driver" in choose(headless=False).packages


def test_own_repository_and_key() -> None:
    url, key = "https://mirror.example/x/", "/etc/key.asc"
    assert choose(repository_url=url, repository_key=key).repository == {"url": url, "key": key}
    assert choose(repository_url=url).repository["key"] == f"{url}3bf863cc.pub"


def test_working_driver_of_someone_else_is_left_alone() -> None:
    choice = choose(installed=packages("590.48.01"), runs=running("590.48.01"))
    assert (choice.action, choice.packages) == ("leave", [])


def test_it_is_left_alone_even_with_secure_boot_and_holds() -> None:
    choice = choose(installed=packages("580.95.05", held=True), runs=running("580.95.05", secure_boot=True))
    assert (choice.action, choice.refusals) == ("leave", [])


@pytest.mark.parametrize(
    ("installed", "runs", "requirements"),
    [
        (packages("570.211.01"), running("570.211.01"), {}),
        (packages("580.95.05"), running("580.95.05", loaded="570.211.01"), {}),
        (packages("590.48.01"), running("590.48.01"), {"replace_working_driver": True}),
    ],
)
def test_driver_that_does_not_do_is_changed(installed: Any, runs: Any, requirements: Any) -> None:
    choice = choose(installed=installed, runs=runs, **requirements)
    assert (choice.action, choice.branch, choice.version, choice.refusals) == ("change", 580, "", [])


def test_own_driver_is_kept_in_its_version_although_it_waits_for_a_reboot() -> None:
    choice = choose(installed=packages("580.95.05", managed=True, held=True))
    assert (choice.action, choice.version, choice.refusals) == ("keep", "580.95.05", [])


def test_own_newer_branch_is_kept_when_no_branch_is_named() -> None:
    choice = choose(installed=packages("590.48.01", managed=True))
    assert (choice.action, choice.branch, choice.version) == ("keep", 590, "590.48.01")


def test_own_driver_is_changed_when_another_is_named_or_needed() -> None:
    own = packages("580.95.05", managed=True, held=True)
    named = choose(installed=own, version="580.126.20")
    assert (named.action, named.version) == ("change", "")
    assert choose(installed=own, branch=590).branch == 590
    assert choose(installed=own, replace_working_driver=True).version == ""
    old = packages("535.261.03", managed=True)
    assert (choose(installed=old).action, choose(installed=old).branch) == ("change", 580)


def test_missing_part_is_added_in_the_version_that_is_there() -> None:
    choice = choose(installed=packages("580.95.05", managed=True), fabric_manager="always")
    assert (choice.action, choice.version) == ("change", "580.95.05")
    assert "nvidia-fabricmanager" in choice.reason


MADISON = """\
nvidia-driver-cuda | 590.48.01-1 | https://mirror.example/debian12/x86_64  Packages
nvidia-driver-cuda | 580.126.20-1 | https://mirror.example/debian12/x86_64  Packages
nvidia-driver-cuda | 580.95.05-1 | https://mirror.example/debian12/x86_64  Packages
"""
DNF = """\
Available Packages
nvidia-driver-cuda.x86_64      3:580.95.05-1.el9       nvidia-driver
nvidia-driver-cuda.x86_64      3:580.126.20-1.el9      nvidia-driver
"""
UBUNTU = " nvidia-utils-580-server | 580.126.20-0ubuntu0.24.04.1 | http://archive.example noble-updates/restricted\n"


@pytest.mark.parametrize("listing", [MADISON, DNF, UBUNTU])
def test_newest_version_of_the_branch(listing: str) -> None:
    assert driver_choice.pick_version(listing, 580) == "580.126.20"


def test_named_version_or_a_refusal_that_lists_what_there_is() -> None:
    assert driver_choice.pick_version(MADISON, 580, "580.95.05") == "580.95.05"
    with pytest.raises(RefusalError) as caught:
        driver_choice.pick_version(MADISON, 570)
    assert caught.value.refusals[0].code == "version_unavailable"
    assert "580.126.20" in str(caught.value)


#: From what apt printed of Debian's own open module with a kernel of the security archive.
NOT_BUILT = """\
Loading new nvidia-current-open-535.261.03 DKMS files...
Building for 6.1.0-56-cloud-amd64
Building initial module for 6.1.0-56-cloud-amd64
Error! Bad return status for module build on kernel: 6.1.0-56-cloud-amd64 (x86_64)
Consult /var/lib/dkms/nvidia-current-open/535.261.03/build/make.log for more information.
dpkg: error processing package nvidia-open-kernel-dkms (--configure):
 installed nvidia-open-kernel-dkms package post-installation script subprocess returned error exit status 10
"""


@pytest.mark.parametrize("part", ["stdout", "stderr"])
def test_module_that_does_not_build_is_refused_with_kernel_version_and_log(part: str) -> None:
    output = driver_filter.install_refused({part: NOT_BUILT, "msg": "'/usr/bin/apt-get -y' failed"})
    assert output.startswith(
        "[module_not_built] The kernel module of driver 535.261.03 does not build for kernel 6.1.0-56-"
    )
    assert "/var/lib/dkms/nvidia-current-open/535.261.03/build/make.log" in output


def test_module_that_does_not_build_is_refused_without_a_log_too() -> None:
    output = driver_filter.install_refused({"stdout": NOT_BUILT.replace("Consult", "").replace("make.log", "x")})
    assert "The kernel module of the driver does not build for kernel 6.1.0-56-cloud-amd64;" in output


def test_other_failures_have_the_message_of_apt() -> None:
    assert driver_filter.install_refused({"stdout": "Building for 6.1.0", "msg": "no space left"}) == "no space left"


@pytest.mark.parametrize(
    ("packaged", "version"),
    [
        ("580.126.20-1", "580.126.20"),
        ("3:580.126.20-1.el9", "580.126.20"),
        ("580.126.20-0ubuntu0.24.04.1", "580.126.20"),
        ("535.261.03-1~deb12u1", "535.261.03"),
        ("1.18.1-1", ""),
        ("6.8.0-45.45", ""),
    ],
)
def test_driver_version_in_a_packages_version(packaged: str, version: str) -> None:
    assert driver_choice.driver_version_of(packaged) == version


def test_parts_of_the_driver_are_asked_for_in_one_version() -> None:
    apt = driver_choice.install_names(choose("Ubuntu 24", runs=running(secure_boot=True)).as_dict(), "580.126.20")
    assert {"linux-headers-generic-hwe-24.04", "linux-modules-nvidia-580-server-open-generic-hwe-24.04"} < set(apt)
    assert "nvidia-utils-580-server=580.126.20*" in apt
    dnf = driver_choice.install_names(choose("RedHat 10").as_dict(), "580.126.20")
    assert {"kernel-devel-matched", "kmod-nvidia-open-dkms-580.126.20"} < set(dnf)


def test_packages_of_one_version_leave_out_the_toolkit() -> None:
    installed = {"nvidia-smi": "580.95.05-1", "libcuda1": "580.95.05-1", "nvidia-container-toolkit": "1.18.1-1"}
    assert driver_choice.packages_of(installed, "580.95.05") == ["libcuda1", "nvidia-smi"]
    assert driver_choice.packages_of(installed | {"nvidia-modprobe": "570.1-1"}) == [
        "libcuda1",
        "nvidia-modprobe",
        "nvidia-smi",
    ]


def test_reasons_for_a_reboot() -> None:
    assert driver_choice.reboot_reasons(running("580.95.05"), "580.95.05") == []
    assert driver_choice.reboot_reasons(running("580.95.05", loaded="570.1"), "580.95.05") == [
        "the kernel runs driver 570.1, but 580.95.05 is installed"
    ]
    nouveau = running(modules={"nvidia": False, "nouveau": True, "nova_core": None})
    assert driver_choice.reboot_reasons(nouveau, "580.95.05") == [
        "nouveau holds the GPUs",
        "the kernel module of driver 580.95.05 is not loaded",
    ]


def test_host_that_nouveau_holds_gets_the_driver_and_then_a_reboot(tmp_path: Path) -> None:
    """From the files of such a host, through gpu_facts, to the decisions."""
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, text in {"vendor": "0x10de", "class": "0x030200", "device": "0x2330"}.items():
        (device / name).write_text(f"{text}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("nouveau 3096576 1 - Live 0x0000000000000000\n")
    found = gpu_facts.read(gpu_facts.Machine(lambda _: gpu_facts.Output(None, err="program_missing"), tmp_path))
    choice = choose(gpus=found["gpus"], runs=found)
    assert (choice.action, choice.generations, choice.refusals) == ("install", ["Hopper"], [])
    assert driver_choice.reboot_reasons(found, "580.95.05")[0] == "nouveau holds the GPUs"


@pytest.mark.parametrize(
    ("allowed", "pending", "local", "expected"),
    [
        (True, False, False, []),
        (True, False, True, ["reboot_of_controller"]),
        (False, False, False, ["reboot_needed"]),
        (False, True, True, []),
        (True, True, True, ["reboot_of_controller"]),
    ],
)
def test_who_may_reboot(allowed: bool, pending: bool, local: bool, expected: list[str]) -> None:
    refusals = driver_choice.reboot_refusals(["why"], allowed=allowed, pending_allowed=pending, local=local)
    assert [refusal.code for refusal in refusals] == expected
    assert driver_choice.reboot_refusals([], allowed=False, pending_allowed=False, local=True) == []


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        (running("580.95.05", loaded="570.1"), "kernel module: 570.1"),
        (running(loaded="580.95.05", userspace_version="580.95.05"), "NVML: no answer"),
        (running("580.95.05", userspace_version="580.1"), "libnvidia-ml: 580.1"),
        (running(), "kernel module: not loaded"),
    ],
)
def test_disagreement_names_who_disagrees(runs: dict[str, Any], named: str) -> None:
    (refusal,) = driver_choice.disagreements(runs, "580.95.05")
    assert (refusal.code, named in refusal.message) == ("driver_disagrees", True)


def test_one_version_everywhere_is_no_disagreement() -> None:
    assert driver_choice.disagreements(running("580.95.05"), "580.95.05") == []


NO_KEY = """\
Get:1 https://mirror.example/x  InRelease [1,581 B]
Err:1 https://mirror.example/x  InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY A4B469963BF863CC
E: The repository 'https://mirror.example/x  InRelease' is not signed.
"""
NO_KEY_SQV = (
    "W: OpenPGP signature verification failed: https://x InRelease: Sub-process /usr/bin/sqv returned an error code"
)
DOWN = """\
Err:1 https://mirror.example/x  InRelease
  Could not connect to mirror.example:443 (192.0.2.1). - connect (111: Connection refused)
E: Failed to fetch https://mirror.example/x/InRelease  Could not connect to mirror.example:443
"""
DNF_DOWN = "Error: Failed to download metadata for repo 'nvidia-driver': Cannot download repomd.xml"


@pytest.mark.parametrize(
    ("output", "code"),
    [
        (NO_KEY, "repository_key"),
        (NO_KEY_SQV, "repository_key"),
        (DOWN, "repository_unreachable"),
        (DNF_DOWN, "repository_unreachable"),
        ("", "repository_unreachable"),
    ],
)
def test_what_is_wrong_with_a_repository(output: str, code: str) -> None:
    refusal = driver_choice.repository_refusal(output, "https://mirror.example/x", "https://mirror.example/key")
    assert refusal.code == code
    assert "https://mirror.example/x" in refusal.message


def test_key_in_the_inventory_is_not_printed() -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nabc\n"
    assert "abc" not in driver_choice.repository_refusal(NO_KEY, "https://x", key).message


GPUS = st.lists(
    st.one_of(
        st.builds(lambda c: {"compute_capability": c}, st.floats(5.0, 12.9).map(lambda value: round(value, 1))),
        st.sampled_from([{"name": gpu.name} for gpu in gpu_table.TABLE]),
        st.builds(lambda n: {"pci_device": f"{n:04x}"}, st.integers(0, 0xFFFF)),
    ),
    max_size=4,
)
VERSIONS = st.one_of(
    st.just(""),
    st.builds(lambda a, b, c: f"{a}.{b}.{c:02d}", st.integers(400, 700), st.integers(1, 300), st.integers(1, 99)),
)


@given(
    system=st.sampled_from(sorted(TABLE["systems"])),
    gpus=GPUS,
    branch=st.sampled_from([0, 470, 525, 535, 570, 580, 590, 610]),
    version=VERSIONS,
    here=VERSIONS,
    loaded=VERSIONS,
    managed=st.booleans(),
    source=st.sampled_from(["auto", "nvidia", "distribution"]),
    modules=st.sampled_from(["auto", "open", "proprietary"]),
    cuda=st.sampled_from(["", "12.4", "12.9", "13.0", "13.1"]),
    secure_boot=st.booleans(),
    replace=st.booleans(),
)
def test_what_may_never_happen(
    *, system: str, gpus: list[dict[str, Any]], branch: int, version: str, here: str, loaded: str, managed: bool,
    source: str, modules: str, cuda: str, secure_boot: bool, replace: bool,
) -> None:  # fmt: skip
    choice = choose(
        system,
        gpus,
        packages(here, managed=managed),
        running(here, loaded=loaded, secure_boot=secure_boot),
        branch=branch,
        version=version,
        source=source,
        modules=modules,
        cuda_version=cuda,
        replace_working_driver=replace,
    )
    if choice.refusals:
        assert all(value for refusal in choice.refusals for value in refusal.values())
        return
    rows = [driver_choice.generation_of(TABLE, gpu) for gpu in gpus]
    assert choice.action in ("leave", "keep", "install", "change")
    assert choice.branch >= choice.minimum_branch >= max(row["first_branch"] for row in rows)
    assert all(not row["last_branch"] or choice.branch <= row["last_branch"] for row in rows)
    assert all(choice.modules in row["modules"] for row in rows)
    if choice.action in ("leave", "keep"):
        assert not replace
        assert choice.version == here
    else:
        assert choice.version_of and choice.packages and choice.pinned
        assert "{" not in " ".join([*choice.packages, *choice.prerequisites, choice.version_of, choice.module_stream])
        assert bool(choice.repository) == (choice.source == "nvidia")
        assert not secure_boot or choice.source == "distribution"
        assert set(choice.services) >= {"nvidia-persistenced"}
        assert choice.version in ("", here)


@given(st.text(max_size=300))
def test_listing_of_anything_gives_a_version_or_a_refusal(text: str) -> None:
    try:
        assert driver_choice.branch_of(driver_choice.pick_version(text, 580)) == 580
    except RefusalError as error:
        assert error.refusals[0].code == "version_unavailable"


def test_table_is_complete() -> None:
    for system in TABLE["systems"].values():
        assert system["evidence"] in ("container", "rendered")
        for key in ("packages", "own_packages"):
            names = driver_choice.package_set(TABLE, system.get(key, system["packages"]))
            assert {
                "compute",
                "open",
                "proprietary",
                "persistence",
                "fabric",
                "desktop",
                "version_of",
                "pinned",
            } <= set(names)
    devices = sorted((int(a, 16), int(b, 16)) for row in TABLE["generations"] for a, b in row["pci"])
    assert all(one[1] < two[0] for one, two in pairwise(devices))
