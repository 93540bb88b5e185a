"""The collection as its users have it: built, installed outside of the tree, and run from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import collection
from support.faulty_hub import running, write_model
from support.paths import ROOT

BIN = Path(sys.executable).parent
TINY = ROOT / "tests" / "tiny_model" / "model"
# Of a checkout; all else that git knows belongs into the tarball, and nothing that it does not know.
PARTS = ("catalogue", "docs", "meta", "playbooks", "plugins", "roles", "templates")
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]


@dataclass
class User:
    """A user with Ansible, this collection and a project folder.

    Attributes:
        tarball: What was built.
        collections: Where it is installed.
        folder: Where commands run; empty at first.
    """

    tarball: Path
    collections: Path
    folder: Path

    def run(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of Ansible, without any configuration but where the collection is."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return subprocess.run(
            [BIN / command, *arguments],
            cwd=self.folder,
            env=environment | {"ANSIBLE_COLLECTIONS_PATH": str(self.collections)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def play(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a playbook, which is expected to succeed."""
        result = self.run("ansible-playbook", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def write(self, name: str, data: object) -> None:
        """Write a file of YAML into the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(data), encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """The collection, built and installed; no test writes into it."""
    folder = tmp_path_factory.mktemp("installed")
    user = User(Path(), folder / "collections", folder / "empty")
    user.folder.mkdir()
    built = user.run("ansible-galaxy", "collection", "build", "--output-path", folder, ROOT)
    assert built.returncode == 0, built.stderr
    (user.tarball,) = folder.glob("*.tar.gz")
    # Its dependencies come with the package `ansible`.
    options = ("--offline", "--no-deps", "-p", user.collections)
    done = user.run("ansible-galaxy", "collection", "install", *options, user.tarball)
    assert done.returncode == 0, done.stderr
    yield user
    verified = user.run("ansible-galaxy", "collection", "verify", "--offline", "inference.vllm")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "internally consistent with its manifest" in verified.stdout


@pytest.fixture
def user(installed: User, tmp_path: Path) -> User:
    """The same with an empty folder."""
    return User(installed.tarball, installed.collections, tmp_path)


def inventory(user: User, **variables: object) -> None:
    """An inventory of two GPUs that do not exist."""
    gpus = {"vram_plan_gpus": [{"name": "RTX 4090", "count": 2}]}
    user.write(
        "mine/hosts.yml", {"vllm": {"hosts": {"gpu1": {"ansible_host": "192.0.2.10"}}, "vars": gpus | variables}}
    )


def files(user: User) -> set[str]:
    return {str(path.relative_to(user.folder)) for path in user.folder.rglob("*") if path.is_file()}


def test_the_tarball_has_what_git_knows_and_no_more(installed: User) -> None:
    with tarfile.open(installed.tarball) as tarball:
        names = {member.name for member in tarball.getmembers() if not member.isdir()} - {"MANIFEST.json", "FILES.json"}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    known = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())
    known = {name for name in known if (ROOT / name).is_file() and not name.startswith("docs/_generate/")}
    assert names <= known
    assert {name for name in known if name.split("/")[0] in PARTS} <= names
    tops = {name.split("/")[0] for name in names}
    assert {"README.md", "CHANGELOG.rst", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"} <= tops
    assert {"bindep.txt", "requirements.yml"} <= tops
    assert tops.isdisjoint({"ansible.cfg", "bench", "bin", "collections", "deploy.yml", "galaxy.yml", "inventories"})
    assert tops.isdisjoint({"execution-environment.yml", "Makefile", "molecule", "pyproject.toml", "tests"})


def test_it_knows_its_name_and_version(installed: User) -> None:
    there, here = collection.read(installed.collections / "ansible_collections/inference/vllm"), collection.read()
    assert there.installed
    assert (str(there), there.dependencies, there.requires_ansible) == (
        str(here),
        here.dependencies,
        here.requires_ansible,
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("role", "inference.vllm.nvidia_driver"),
        ("module", "inference.vllm.vram_plan"),
        ("lookup", "inference.vllm.hosts"),
        ("filter", "inference.vllm.service_design"),
        ("callback", "inference.vllm.heartbeat"),
        ("callback", "inference.vllm.deploy_lock"),
    ],
)
def test_it_is_documented(user: User, kind: str, name: str) -> None:
    shown = user.run("ansible-doc", "--json", "-t", kind, name)
    assert shown.returncode == 0, shown.stderr
    assert list(json.loads(shown.stdout)) == [name]
    assert "inference" not in shown.stderr


def test_a_plan_for_a_host_that_does_not_exist(user: User) -> None:
    inventory(user)
    assert "Survives yes" in user.play("inference.vllm.plan", "-i", "mine").stdout
    assert files(user) == {"mine/hosts.yml"}


def test_a_deploy_in_check_mode(user: User) -> None:
    home = user.folder / "home"
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    settings = {"vllm_accelerator": "cpu", "vllm_model": "tiny-qwen3-vl", "vllm_home": str(home), "vllm_port": 18999}
    settings |= {"vllm_project": "vllm-installed", "engine_image_source": "build"}
    settings |= {"preflight_min_free_gib": 1, "preflight_min_memory_gib": 1}
    user.write("mine/hosts.yml", {"vllm": {"hosts": {"here": host}, "vars": settings}})
    result = user.play("inference.vllm.deploy", "-i", "mine", "--check")
    plays = ("Preflight", "Plan", "Provision", "Weights", "Serve", "Verify")
    assert all(f"PLAY [{play}]" in result.stdout for play in plays)
    assert "failed=0" in result.stdout
    assert not home.exists()
    assert files(user) == {"mine/hosts.yml"}


def test_no_host_is_a_failure(user: User) -> None:
    result = user.run("ansible-playbook", "inference.vllm.deploy")
    assert result.returncode != 0
    assert "[no_hosts] The inventory has no host in group vllm." in result.stderr


def test_roles_in_a_playbook_of_ones_own(user: User) -> None:
    gpus = [{"name": "L40S", "count": 1}]
    driver = {"role": "inference.vllm.nvidia_driver", "nvidia_driver_gpus": gpus, "nvidia_driver_kernel_headers": []}
    plan = {"role": "inference.vllm.vram_plan", "vram_plan_gpus": gpus, "vram_plan_write": False}
    user.write("site.yml", [{"name": "Site", "hosts": "localhost", "become": True, "roles": [plan, driver]}])
    stdout = user.play("site.yml", "--check", "-e", "ansible_python_interpreter=/usr/bin/python3").stdout
    assert "1x L40S" in stdout
    assert "inference.vllm.nvidia_driver : Driver | Refuse an unsupported configuration" in stdout
    assert files(user) == {"site.yml"}


def test_playbooks_in_a_playbook_of_ones_own(user: User) -> None:
    gpus = {"vram_plan_gpus": [{"name": "H100", "count": 1}]}
    user.write("hosts.yml", {"gpu_servers": {"hosts": {"gpu1": gpus}}, "web": {"hosts": {"web1": None}}})
    ours = {"vars": {"vllm_group": "gpu_servers"}}
    plan = {"name": "Plan", "ansible.builtin.import_playbook": "inference.vllm.plan"} | ours
    web = {"name": "Web", "hosts": "web", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"msg": "hi"}}]}
    again = {"name": "Plan again", "hosts": "{{ lookup('inference.vllm.hosts') }}", "gather_facts": False}
    again |= ours | {"roles": [{"role": "inference.vllm.vram_plan", "vram_plan_write": False}]}
    user.write("site.yml", [plan, web, again])
    stdout = user.play("site.yml", "-i", "hosts.yml").stdout
    assert stdout.count("1x H100") == 2
    assert "web1" in stdout


def test_an_address_is_verified_into_the_current_folder(user: User) -> None:
    given = ("-e", "verify_url=http://127.0.0.1:9/v1", "-e", "verify_name=dead", "-e", "smoke_test_extent=short")
    result = user.run("ansible-playbook", "inference.vllm.verify", *given)
    assert result.returncode != 0
    assert "endpoint_unreachable" in result.stdout
    assert (user.folder / ".cache/verify/reports/dead/report.html").is_file()


def test_a_lock_of_weights_is_in_the_folder_of_the_inventory(user: User, tmp_path: Path) -> None:
    write_model(tmp_path / "hub", "demo/tiny-qwen3-vl", {path.name: path.read_bytes() for path in TINY.iterdir()})
    path = user.folder / "mine/.locks/tiny-qwen3-vl.json"
    with running(tmp_path / "hub") as hub:
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        settings = {"vllm_accelerator": "cpu", "vllm_model": "tiny-qwen3-vl", "vllm_python": sys.executable}
        settings |= {"vllm_home": str(tmp_path / "home"), "vllm_lock_file": str(tmp_path / "deploy-lock")}
        settings |= {"model_weights_endpoint": hub.url}
        user.write("mine/hosts.yml", {"vllm": {"hosts": {"here": host}, "vars": settings}})
        user.play("inference.vllm.lock_weights", "-i", "mine")
        lock = json.loads(path.read_text(encoding="utf-8"))
        reviewed = json.loads((ROOT / "catalogue/locks/tiny-qwen3-vl.json").read_text(encoding="utf-8"))
        assert lock["files"] == reviewed["files"]
        # From then on it counts, and that of the catalogue does not.
        lock["files"][0]["sha256"] = "0" * 64
        path.write_text(json.dumps(lock), encoding="utf-8")
        result = user.run("ansible-playbook", "inference.vllm.weights", "-i", "mine")
    assert result.returncode != 0
    assert "[lock_mismatch]" in result.stdout
    assert "WARNING" not in result.stderr


def test_requirements_for_galaxy_are_the_dependencies() -> None:
    listed = yaml.safe_load((ROOT / "requirements.yml").read_text(encoding="utf-8"))["collections"]
    assert {entry["name"]: entry["version"] for entry in listed} == collection.read().dependencies


def test_an_execution_environment_is_accepted(user: User) -> None:
    definition = ROOT / "execution-environment.yml"
    context = ("--context", user.folder, "--output-filename", "Containerfile")
    result = user.run("ansible-builder", "create", "--file", definition, *context)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ansible-core==" in (user.folder / "Containerfile").read_text(encoding="utf-8")
    dependencies = yaml.safe_load(definition.read_text(encoding="utf-8"))["dependencies"]
    assert {dependencies[name]["package_pip"] for name in ("ansible_core", "ansible_runner")} <= {
        entry for group in GROUPS.values() for entry in group if isinstance(entry, str)
    }


def test_an_execution_environment_with_the_collection_has_what_it_needs(user: User) -> None:
    result = user.run("ansible-builder", "introspect", user.collections)
    assert result.returncode == 0, result.stderr
    found = yaml.safe_load(result.stdout)
    # ansible-core brings Jinja and packaging, and an execution environment brings ansible-core and PyYAML.
    wanted = {entry for entry in GROUPS["deploy"] if not entry.startswith(("ansible", "jinja2", "packaging", "pyyaml"))}
    assert wanted <= {line.split("==")[0] for line in found["python"]}
    assert any(line.startswith("openssh-client ") for line in found["system"])
