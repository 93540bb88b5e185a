"""Which NVIDIA driver a host gets: the branch, kernel modules, packages and repository, or the reasons why none.

Everything is read from one table, ``roles/nvidia_driver/vars/main/compatibility.yml``, whose comments say what its
columns mean. Nothing here touches a host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.planner import gpus as gpu_table
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError, join

Table = Mapping[str, Any]

# A driver's version in the version of a package: 580.126.20-1, 3:580.126.20-1.el9, 580.126.20-0ubuntu0.24.04.1.
_PACKAGED = re.compile(r"(?<![\d.])(?:\d+:)?(\d{3}\.\d{1,3}(?:\.\d{1,3})?)(?=[-~+\s]|$)")
# Kernel drivers that take the GPUs before NVIDIA's module can.
CONFLICTING_MODULES = ("nouveau", "nova_core")

_DRIVER = re.compile(r"\d{3}(?:\.\d{1,3}){1,2}")


@dataclass(frozen=True)
class Requirements:
    """Requirements from the role's variables; with an empty text and 0 the table decides.

    Attributes:
        engine_tag: Tag of the engine's image, such as ``v0.33.0`` or ``v0.32.0-cu129``.
        cuda_version: CUDA of the engine's image, if its tag does not contain it.
        branch: Driver branch, such as 580.
        version: Exact driver version, such as ``580.126.20``.
        modules: ``auto``, ``open`` or ``proprietary``.
        source: ``auto``, ``nvidia`` or ``distribution``.
        headless: Without the parts for a display.
        fabric_manager: ``auto`` (if there are NVSwitches), ``always`` or ``never``.
        replace_working_driver: Change a driver that already meets the engine's needs.
        owner_key_enrolled: A machine owner key is enrolled and DKMS signs with it.
        kernel_headers: Packages with the kernel's headers; None takes the table's.
        repository_base_url: Folder with one repository per system.
        repository_url: One repository; empty derives it from the folder.
        repository_key: URL, path or text of its key; empty derives it from the repository's URL.
    """

    engine_tag: str = ""
    cuda_version: str = ""
    branch: int = 0
    version: str = ""
    modules: str = "auto"
    source: str = "auto"
    headless: bool = True
    fabric_manager: str = "auto"
    replace_working_driver: bool = False
    owner_key_enrolled: bool = False
    kernel_headers: Sequence[str] | None = None
    repository_base_url: str = ""
    repository_url: str = ""
    repository_key: str = ""


@dataclass(frozen=True)
class Host:
    """Facts about the host before any change.

    Attributes:
        system: Distribution and major version, a key of the table's ``systems``.
        architecture: Output of ``uname -m``.
        kernel: Release of the running kernel.
        packages: Result of module ``driver_info``.
        running: Result of module ``gpu_info``.
    """

    system: str
    architecture: str
    kernel: str
    packages: Mapping[str, Any]
    running: Mapping[str, Any]

    @property
    def nvml_version(self) -> str:
        """Driver version that NVML reports; empty where it does not answer."""
        return reported_version(self.running)

    @property
    def secure_boot(self) -> bool:
        """Whether the firmware says that Secure Boot is on."""
        return bool(self.running["host"]["secure_boot"])


@dataclass
class Choice:
    """What to do to a host. ``action`` is leave, keep, install or change.

    leave: a driver that does what is needed, and that this role did not install. keep: one that it did install.
    ``version`` is empty where only the repository can tell it.
    """

    action: str = ""
    reason: str = ""
    cuda_version: str = ""
    minimum_branch: int = 0
    branch: int = 0
    version: str = ""
    modules: str = ""
    generations: list[str] = field(default_factory=list)
    source: str = ""
    manager: str = ""
    repository: dict[str, str] = field(default_factory=dict)
    module_stream: str = ""
    prerequisites: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    version_of: str = ""
    pinned: list[str] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    refusals: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the refusals once more as text for people."""
        return asdict(self) | {"refused": join(Refusal(**refusal) for refusal in self.refusals)}


def branch_of(version: str) -> int:
    """Branch of a driver version: 580 for ``580.126.20``; 0 where it is none."""
    return int(version.split(".", maxsplit=1)[0]) if _DRIVER.fullmatch(version) else 0


def driver_version_of(packaged: str) -> str:
    """Driver version in a package's version, empty where there is none: ``3:580.126.20-1.el9`` is 580.126.20."""
    found = _PACKAGED.fullmatch(re.split("[-~+]", packaged)[0])
    return found[1] if found else ""


def newest(versions: Iterable[str]) -> str:
    """The highest of some driver versions, empty where there is none."""
    return max(versions, key=lambda version: tuple(map(int, version.split("."))), default="")


def cuda_of_engine(table: Table, requirements: Requirements) -> str:
    """CUDA version of the engine's image; raises RefusalError if the tag has no version."""
    if requirements.cuda_version:
        return requirements.cuda_version
    tag = requirements.engine_tag or versions.DEPLOYED
    named = re.search(r"-cu(\d{2})(\d)\b", tag)
    if named:
        return f"{named[1]}.{named[2]}"
    if not versions.plain(tag):
        raise RefusalError(
            Refusal(
                "unknown_cuda",
                f"engine_image_tag is {tag!r}, which does not contain the CUDA version of the image.",
                'Set nvidia_driver_cuda_version, for example to "13.0".',
            )
        )
    rows = [(versions.parse(row["vllm"]), row["cuda"]) for row in table["engine_cuda"]]
    return str(max(row for row in rows if row[0] <= versions.parse(tag))[1])


def generation_of(table: Table, gpu: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table's row for one GPU, given by compute capability, name or PCI identifier; raises RefusalError."""
    capability = gpu.get("compute_capability") or _capability_by_name(gpu)
    if capability:
        for row in table["generations"]:
            least, most = row["capability"]
            if least <= float(capability) <= most:
                return dict(row)
    device = _pci_device(gpu)
    if device is not None:
        for row in table["generations"]:
            if any(int(first, 16) <= device <= int(last, 16) for first, last in row["pci"]):
                return dict(row)
    raise RefusalError(
        Refusal(
            "unknown_gpu",
            f"nvidia_driver_gpus: {dict(gpu)!r} is unknown.",
            "Name it with its compute capability, for example [{name: RTX 4090, compute_capability: 8.9}].",
        )
    )


def _capability_by_name(gpu: Mapping[str, Any]) -> float:
    """Compute capability from the planner's table, 0 where the card is not in it."""
    known = gpu_table.find_pci(str(gpu.get("pci_device") or "").removeprefix("0x"))
    if known is None and gpu.get("name"):
        try:
            known = gpu_table.find(str(gpu["name"]))
        except RefusalError:
            return 0.0
    return known.compute_capability if known else 0.0


def _pci_device(gpu: Mapping[str, Any]) -> int | None:
    try:
        return int(str(gpu.get("pci_device") or ""), 16)
    except ValueError:
        return None


def _modules(rows: Sequence[Mapping[str, Any]], requested: str) -> str:
    """Kind of kernel modules that all GPUs work with; raises RefusalError."""
    common = [kind for kind in rows[0]["modules"] if all(kind in row["modules"] for row in rows)]
    names = ", ".join(sorted({row["name"] for row in rows}))
    if not common:
        raise RefusalError(
            Refusal(
                "mixed_generations",
                f"The host has GPUs of {names}; no one kind of kernel modules (open, proprietary) drives them all.",
                "Take the older or the newer GPUs out of the host.",
            )
        )
    if requested == "auto":
        return str(common[0])
    if requested not in common:
        raise RefusalError(
            Refusal(
                "modules_unsupported",
                f"nvidia_driver_modules is {requested}; {names} works with: {', '.join(common)}.",
                "Set nvidia_driver_modules to auto.",
            )
        )
    return requested


def _needed(table: Table, requirements: Requirements, rows: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    """CUDA version of the engine and the least branch that runs it; raises RefusalError."""
    cuda = cuda_of_engine(table, requirements)
    row = table["cuda"].get(cuda.split(".")[0])
    if row is None:
        raise RefusalError(
            Refusal(
                "unknown_cuda",
                f"The engine's image has CUDA {cuda}; known are the versions {', '.join(sorted(table['cuda']))}.",
                "Correct nvidia_driver_cuda_version.",
            )
        )
    old = sorted({g["name"] for g in rows if g["capability"][1] < row["lowest_capability"]})
    if old:
        raise RefusalError(
            Refusal(
                "gpu_too_old",
                f"The engine's image has CUDA {cuda}, which has no code for {', '.join(old)} "
                f"(compute capability below {row['lowest_capability']}).",
                "Use a newer GPU, or an engine image with an older CUDA.",
            )
        )
    return cuda, max(int(row["minimum_branch"]), *(int(g["first_branch"]) for g in rows))


def _branch_refusals(
    branch: int, minimum: int, rows: Sequence[Mapping[str, Any]], cuda: str, why: str
) -> list[Refusal]:
    refusals = []
    variable = why.partition(" ")[0]
    if branch < minimum:
        names = ", ".join(sorted({row["name"] for row in rows}))
        refusals.append(
            Refusal(
                "branch_too_old",
                f"{why} is {branch}; CUDA {cuda} on {names} needs {minimum} or newer.",
                f"Set {variable} to {minimum} or newer, or use an engine image with an older CUDA.",
            )
        )
    for row in rows:
        if row["last_branch"] and branch > row["last_branch"]:
            refusals.append(
                Refusal(
                    "branch_too_new",
                    f"{why} is {branch}; the last branch for {row['name']} is {row['last_branch']}.",
                    f"Set {variable} to {row['last_branch']}.",
                )
            )
            break
    return refusals


def package_set(table: Table, name: str) -> dict[str, Any]:
    """A set of package names with what it takes from the set that it is like; empty where there is none."""
    row = table["package_sets"].get(name, {})
    return {**table["package_sets"].get(row.get("like", ""), {}), **row}


def _source(own: Table, host: Host, requirements: Requirements) -> str:
    """Where the packages come from: NVIDIA, but the distribution where only its modules are signed."""
    if requirements.source != "auto":
        return requirements.source
    unsigned = host.secure_boot and not requirements.owner_key_enrolled
    return "distribution" if unsigned and own.get("signed") else "nvidia"


def _secure_boot_refusals(signed: bool, host: Host, requirements: Requirements, *, own_signed: bool) -> list[Refusal]:
    if signed or not host.secure_boot or requirements.owner_key_enrolled:
        return []
    fix = (
        "Set nvidia_driver_source: distribution, whose modules are signed; or enrol"
        if own_signed
        else "Switch Secure Boot off in the firmware; or enrol"
    )
    return [
        Refusal(
            "secure_boot",
            "Secure Boot is on, so the kernel loads signed modules only, and DKMS builds unsigned ones.",
            f"{fix} a machine owner key (mokutil --import KEY.der, reboot, confirm at the console), let DKMS sign with "
            "it, and set nvidia_driver_machine_owner_key_enrolled: true.",
        )
    ]


def _part(names: Table, part: str, branch: int) -> Sequence[str]:
    """Templates of the names of one part of the driver in a branch."""
    former = names.get(f"{part}_before")
    return list(former["names"] if former and branch < former["branch"] else names[part])


def _names(templates: Iterable[str], values: Mapping[str, str]) -> list[str]:
    return [template.format(**values) for template in templates]


def _flavour(system: Mapping[str, Any], kernel: str) -> str:
    """Kind of kernel: amd64, cloud-amd64, generic, or generic-hwe-24.04 for a newer one than the release came with."""
    flavour = re.sub(r"^[\d.]+(\+\w+)?(-\d+)?-", "", kernel)
    first = system.get("first_kernel")
    if first and flavour == "generic" and not kernel.startswith(f"{first}."):
        return f"{flavour}-{system['enablement']}"
    return flavour


def _installed_version(host: Host, version_of: str) -> str:
    return driver_version_of(str(host.packages.get("installed", {}).get(version_of, "")))


def _works(host: Host, minimum: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a driver answers, agrees with itself, and is new enough for the engine and the GPUs."""
    version = host.nvml_version
    return bool(version) and version == loaded_version(host.running) and _serves(branch_of(version), minimum, rows)


def _serves(branch: int, minimum: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a branch is new enough for the engine and still knows all GPUs."""
    return branch >= minimum and all(not row["last_branch"] or branch <= row["last_branch"] for row in rows)


def choose(table: Table, host: Host, gpus: Sequence[Mapping[str, Any]], requirements: Requirements) -> Choice:
    """What to do to the host; the choice has refusals where nothing may be done."""
    try:
        return _choose(table, host, gpus, requirements)
    except RefusalError as error:
        return Choice(refusals=[refusal.as_dict() for refusal in error.refusals])


def _choose(table: Table, host: Host, gpus: Sequence[Mapping[str, Any]], requirements: Requirements) -> Choice:
    system = _system(table, host)
    if not gpus:
        raise RefusalError(
            Refusal(
                "no_gpu",
                "No NVIDIA GPU is visible on the host.",
                "Check lspci, or set nvidia_driver_gpus, for example [{name: RTX 4090, count: 2}].",
            )
        )
    rows = [generation_of(table, gpu) for gpu in gpus]
    cuda, minimum = _needed(table, requirements, rows)
    choice = Choice(
        cuda_version=cuda,
        minimum_branch=minimum,
        generations=sorted({row["name"] for row in rows}),
        manager=system["manager"],
        modules=_modules(rows, requirements.modules),
    )
    managed = bool(host.packages.get("managed_version"))
    if _works(host, minimum, rows) and not managed and not requirements.replace_working_driver:
        choice.action, choice.version = "leave", host.nvml_version
        choice.reason = f"driver {host.nvml_version} answers and does what CUDA {cuda} needs"
        choice.branch = branch_of(host.nvml_version)
        return choice
    _fill(choice, table, host, requirements, rows)
    return choice


def _system(table: Table, host: Host) -> Mapping[str, Any]:
    system = table["systems"].get(host.system)
    if system is None:
        known = ", ".join(table["systems"])
        raise RefusalError(
            Refusal("unknown_system", f"The host runs {host.system}; known are: {known}.", "Use one of these systems.")
        )
    if host.architecture not in table["architectures"]:
        known = ", ".join(table["architectures"])
        raise RefusalError(
            Refusal("unknown_system", f"The host is a {host.architecture}; known are: {known}.", "Use one of these.")
        )
    return dict(system)


def _fill(
    choice: Choice, table: Table, host: Host, requirements: Requirements, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Complete a choice for a host whose packages this role has, or will have, in hand."""
    system = table["systems"][host.system]
    own = package_set(table, system.get("own_packages", ""))
    choice.source = _source(own, host, requirements)
    if choice.source == "distribution" and not own:
        raise RefusalError(
            Refusal(
                "no_distribution_driver",
                f"nvidia_driver_source is distribution, but {host.system} has no driver of its own.",
                "Set nvidia_driver_source to nvidia.",
            )
        )
    names = own if choice.source == "distribution" else package_set(table, system["packages"])
    kept = _kept_version(choice, host, requirements, names, rows)
    wanted, why = _wanted_branch(table, system, requirements, choice.source)
    choice.branch = branch_of(kept) or wanted
    refusals: list[Refusal] = (
        [] if kept else _branch_refusals(wanted, choice.minimum_branch, rows, choice.cuda_version, why)
    )
    # A module that runs with Secure Boot on is signed.
    if not (kept and _works(host, choice.minimum_branch, rows)):
        refusals += _secure_boot_refusals(bool(names["signed"]), host, requirements, own_signed=bool(own.get("signed")))
    suffix = "" if choice.branch >= names["plain_names_from"] else f"-{choice.branch}"
    values = {
        "suffix": suffix,
        "branch": str(choice.branch),
        "kernel": host.kernel,
        "flavour": _flavour(system, host.kernel),
    }
    fabric = requirements.fabric_manager == "always" or (
        requirements.fabric_manager == "auto" and int(host.running["host"]["nvswitches"] or 0) > 0
    )
    parts = ["compute", choice.modules, "persistence", *(["fabric"] if fabric else [])]
    parts += [] if requirements.headless else ["desktop"]
    parts_of = [name for part in parts for name in _names(_part(names, part, choice.branch), values)]
    apart = [name for name in parts_of if name in names.get("own_version", [])]
    choice.packages = [name for name in parts_of if name not in apart]
    choice.version_of = names["version_of"].format(**values)
    choice.pinned = list(names["pinned"])
    headers = system["headers"] if requirements.kernel_headers is None else requirements.kernel_headers
    choice.prerequisites = [*_names(headers, values), *apart]
    choice.services = ["nvidia-persistenced", *(["nvidia-fabricmanager"] if fabric else [])]
    choice.module_stream = system.get("module_streams", {}).get(choice.modules, "").format(**values)
    if choice.source == "nvidia":
        choice.repository = _repository(table, system, host, requirements)
    _decide(choice, host, kept)
    if choice.action != "keep":
        refusals += _in_the_way(host)
    choice.refusals = [refusal.as_dict() for refusal in refusals]


def _wanted_branch(table: Table, system: Mapping[str, Any], requirements: Requirements, source: str) -> tuple[int, str]:
    """The branch to install, and the variable that says so, for messages."""
    if requirements.version:
        return branch_of(requirements.version), f"nvidia_driver_version ({requirements.version})"
    if requirements.branch:
        return requirements.branch, "nvidia_driver_branch"
    if source == "distribution":
        return int(system["own_branch"]), "nvidia_driver_source (distribution), whose branch"
    return int(table["default_branch"]), "nvidia_driver_branch (default)"


def _kept_version(
    choice: Choice, host: Host, requirements: Requirements, names: Table, rows: Sequence[Mapping[str, Any]]
) -> str:
    """The version that this role installed before, where it still does what is needed; else empty."""
    managed = str(host.packages.get("managed_version", ""))
    branch = branch_of(managed)
    suffix = "" if branch >= names["plain_names_from"] else f"-{branch}"
    installed = _installed_version(host, names["version_of"].format(suffix=suffix, branch=branch))
    asked_for = (not requirements.version or requirements.version == managed) and (
        not requirements.branch or requirements.branch == branch
    )
    usable = _serves(branch, choice.minimum_branch, rows) and installed == managed and asked_for
    return managed if managed and usable and not requirements.replace_working_driver else ""


def _decide(choice: Choice, host: Host, kept: str) -> None:
    installed = host.packages.get("installed", {})
    present = _installed_version(host, choice.version_of) or host.nvml_version
    if kept and all(name in installed for name in choice.packages):
        choice.action, choice.version = "keep", kept
        choice.reason = f"driver {kept} is installed and pinned"
        return
    # A version that was asked for is one only when the repository has it.
    choice.version = kept
    choice.action = "change" if present else "install"
    if kept:
        missing = ", ".join(name for name in choice.packages if name not in installed)
        choice.reason = f"driver {kept} lacks {missing}"
    elif present:
        choice.reason = f"driver {present} is there, and another one is asked for or needed"
    else:
        choice.reason = f"CUDA {choice.cuda_version} needs a driver, and none is there"


def _in_the_way(host: Host) -> list[Refusal]:
    """Reasons on the host against a change of packages."""
    refusals = []
    installed = host.packages.get("installed", {})
    held = sorted(name for name in host.packages.get("held", []) if driver_version_of(installed.get(name, "")))
    if held and not host.packages.get("managed_version"):
        refusals.append(
            Refusal(
                "held_packages",
                f"Packages of the driver are on hold, and not by this role: {', '.join(held)}.",
                f"Find the reason; then: apt-mark unhold {' '.join(held)}",
            )
        )
    if host.packages.get("runfile"):
        refusals.append(
            Refusal(
                "runfile_driver",
                "A driver from NVIDIA's .run file is installed, which packages would overwrite in part.",
                "Remove it with nvidia-uninstall.",
            )
        )
    missing = [name for name, there in host.packages.get("offered", {}).items() if there is False]
    if missing:
        refusals.append(
            Refusal(
                "kernel_headers_missing",
                f"The driver's module is built for kernel {host.kernel}, which runs, but {', '.join(missing)} is "
                "neither installed nor in a repository that this host knows.",
                "Update the kernel and boot it, or add a repository that has its headers; where they come from "
                "elsewhere, set nvidia_driver_kernel_headers: [].",
            )
        )
    return refusals


def _repository(table: Table, system: Mapping[str, Any], host: Host, requirements: Requirements) -> dict[str, str]:
    """URL and key of NVIDIA's repository or its mirror."""
    folder = table["architectures"][host.architecture]
    url = requirements.repository_url or f"{requirements.repository_base_url.rstrip('/')}/{system['path']}/{folder}/"
    return {"url": url, "key": requirements.repository_key or f"{url.rstrip('/')}/{system['key']}"}


def pick_version(listing: str, branch: int, wanted: str = "") -> str:
    """The version to install, from what ``apt-cache madison`` or ``dnf list --showduplicates`` printed.

    It is one that all packages of the driver in the listing have: an archive may carry newer libraries than modules.

    Args:
        listing: The command's output, a line for each version of each package, with its name first.
        branch: Branch to stay in.
        wanted: Exact version; empty takes the newest of the branch.

    Raises:
        RefusalError: the repository does not have it.
    """
    by_name: dict[str, set[str]] = {}
    for line in listing.splitlines():
        name = line.split(maxsplit=1)[0] if line.strip() else ""
        by_name.setdefault(name, set()).update(match[1] for match in _PACKAGED.finditer(line))
    found = set.intersection(*listed) if (listed := [known for known in by_name.values() if known]) else set()
    fitting = {version for version in found if version == wanted or (not wanted and branch_of(version) == branch)}
    if fitting:
        return newest(fitting)
    asked = f"driver {wanted}" if wanted else f"driver of branch {branch}"
    offered = ", ".join(sorted(found)) or "none"
    raise RefusalError(
        Refusal(
            "version_unavailable",
            f"The repository has no {asked}; it has: {offered}.",
            "Correct nvidia_driver_version or nvidia_driver_branch, or use another nvidia_driver_repository_url.",
        )
    )


def reported_version(running: Mapping[str, Any]) -> str:
    """Driver version that NVML reports for a GPU; empty where it does not answer."""
    return next((str(gpu["driver_version"]) for gpu in running["gpus"] if gpu.get("driver_version")), "")


def loaded_version(running: Mapping[str, Any]) -> str:
    """Version of the kernel module that is loaded; empty where none is."""
    return str((running["host"]["kernel_module"] or {}).get("version") or "")


def install_names(choice: Mapping[str, Any], version: str) -> list[str]:
    """What apt or dnf is asked to install: prerequisites by name, parts of the driver in this version.

    Without the version neither would change a package that is there in another one. Signed modules have the kernel's.
    """
    form = "{}={}*" if choice["manager"] == "apt" else "{}-{}"
    names = [name if name.startswith("linux-modules-") else form.format(name, version) for name in choice["packages"]]
    return [*choice["prerequisites"], *names]


def packages_of(installed: Mapping[str, str], version: str = "") -> list[str]:
    """Installed packages that carry this driver version, or any where it is empty; sorted."""
    carried = {name: driver_version_of(packaged) for name, packaged in installed.items()}
    return sorted(name for name, driver in carried.items() if driver and driver == (version or driver))


def reboot_reasons(running: Mapping[str, Any], version: str) -> list[str]:
    """Why the host runs another driver than the installed one; empty where it runs that one."""
    modules = running["host"]["modules"]
    reasons = [f"{module} holds the GPUs" for module in CONFLICTING_MODULES if modules.get(module)]
    loaded = loaded_version(running)
    if not loaded:
        reasons.append(f"the kernel module of driver {version} is not loaded")
    elif loaded != version:
        reasons.append(f"the kernel runs driver {loaded}, but {version} is installed")
    return reasons


def reboot_refusals(reasons: Sequence[str], *, allowed: bool, pending_allowed: bool, local: bool) -> list[Refusal]:
    """Why a host that needs a reboot may not have one."""
    if not reasons or (not allowed and pending_allowed):
        return []
    why = "; ".join(reasons)
    if not allowed:
        return [
            Refusal(
                "reboot_needed",
                f"The host needs a reboot ({why}), and nvidia_driver_reboot is false.",
                "Reboot it and run again; or set nvidia_driver_reboot: true; or set "
                "nvidia_driver_allow_pending_reboot: true, and nothing is checked before the reboot.",
            )
        ]
    if local:
        return [
            Refusal(
                "reboot_of_controller",
                f"The host needs a reboot ({why}), but Ansible runs on it (connection: local).",
                "Run Ansible from another machine, or reboot by hand and run again.",
            )
        ]
    return []


def disagreements(running: Mapping[str, Any], version: str) -> list[Refusal]:
    """Where kernel module, NVML and its library are not of one version; empty where they are."""
    seen = {
        "kernel module": loaded_version(running) or "not loaded",
        "NVML": reported_version(running) or "no answer",
        "libnvidia-ml": running["host"]["userspace_version"] or "not there",
    }
    wrong = [f"{what}: {value}" for what, value in seen.items() if value != version]
    if not wrong:
        return []
    return [
        Refusal(
            "driver_disagrees",
            f"Driver {version} was expected; {'; '.join(wrong)}.",
            "Reboot; if it remains, check dkms status, and dmesg for NVRM.",
        )
    ]


def build_refusal(output: str) -> Refusal | None:
    """The refusal for a kernel for which DKMS could not build the module, from the output of apt or dpkg, or None.

    DKMS names the kernel, and its log, whose path has the version.
    """
    kernel = re.search(r"Bad return status for module build on kernel: (\S+)", output)
    if not kernel:
        return None
    log = re.search(r"/var/lib/dkms/\S+/([\d.]+)/build/make\.log", output)
    driver, place = (f"driver {log[1]}", log[0]) if log else ("the driver", "a make.log below /var/lib/dkms")
    return Refusal(
        "module_not_built",
        f"The kernel module of {driver} does not build for kernel {kernel[1]}; {place} says why.",
        "Boot a kernel that this driver supports, or use a driver that supports this kernel: set nvidia_driver_version "
        "or nvidia_driver_branch, or nvidia_driver_source: nvidia.",
    )


_KEY_FAULTS = (
    "NO_PUBKEY",
    "EXPKEYSIG",
    "BADSIG",
    "REVKEYSIG",
    "is not signed",
    "not available",
    "Sub-process /usr/bin/sqv",
    "Missing key",
    "GPG check FAILED",
    "OpenPGP",
)


def repository_refusal(output: str, url: str, key: str, role: str = "nvidia_driver") -> Refusal:
    """The refusal for a repository whose lists could not be fetched, from the output of apt or dnf.

    `role` is the one whose variables name the repository and its key.
    """
    lines = [line.strip() for line in output.splitlines() if line.lstrip().startswith(("E:", "W:", "Error", "Err"))]
    detail = " ".join(lines or output.split())[:400]
    if any(fault in output for fault in _KEY_FAULTS) and "Could not connect" not in output:
        return Refusal(
            "repository_key",
            f"{role}_repository_key ({_short(key)}) does not verify {url}: {detail}",
            "Set it to the URL, path or text of the key that signs this repository.",
        )
    return Refusal(
        "repository_unreachable",
        f"The lists of {url} could not be fetched: {detail}",
        f"Check the network of the host, or set {role}_repository_url to a mirror.",
    )


def _short(key: str) -> str:
    return key if len(key) < 200 and "\n" not in key else "a key in the inventory"  # noqa: PLR2004
