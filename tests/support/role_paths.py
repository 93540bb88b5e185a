"""role_paths.py: print the modules and arguments that a role would run on systems without a test host.

Reads a JSON object of cases from standard input, each with `role`, `tasks` (a task file of the role) and `variables`
(facts, inventory variables, registered results). Prints an object with the same keys; each value is a list of [module,
arguments], or the message of a failed assertion. Uses Ansible's own loader and templates, and follows `when`, `loop`,
`vars`, `include_tasks` and `include_role` without running anything. A separate program, because Ansible's collection
loader must be initialized before anything imports a collection.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROOT = Path(__file__).parents[2]
LOADER = DataLoader()
ASSERT = "ansible.builtin.assert"


def paths(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Run this program on cases."""
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input=json.dumps(cases), check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return dict(json.loads(done.stdout))


def load(path: Path) -> Any:
    """Load a YAML file with strings that Ansible may template."""
    return LOADER.load_from_file(str(path), trusted_as_template=True)


def settings(role: Path) -> dict[str, Any]:
    """Defaults and variables of a role, and of role vllm, on which each depends."""
    found: dict[str, Any] = {"role_path": str(role)}
    for folder in (role.with_name("vllm"), role):
        for part in ("defaults", "vars"):
            for path in sorted((folder / part).rglob("*.yml")):
                found |= load(path)
    return found


class Step(NamedTuple):
    """A task that would run: its name, module, rendered arguments, and whether it passes.

    Only an assertion can fail here.
    """

    task: str
    module: str
    arguments: Any
    passed: bool


def walk(path: Path, variables: Mapping[str, Any]) -> Iterator[Step]:
    """The steps of a file of tasks, in order."""
    yield from walk_list(path, load(path), variables)


def walk_list(path: Path, tasks: Any, variables: Mapping[str, Any]) -> Iterator[Step]:
    """The same for a list of tasks of that file, including blocks; rescue sections are omitted."""
    for task in tasks:
        module = next((key for key in task if "." in key), "block")
        here = {**variables, **task.get("vars", {})}
        for item in Templar(LOADER, variables=here).template(task.get("loop", [None])):
            templar = Templar(LOADER, variables={**here, "item": item})
            conditions = task.get("when", [])
            conditions = conditions if isinstance(conditions, list) else [conditions]
            if not all(templar.evaluate_conditional(condition) for condition in conditions):
                continue
            if module == "block":
                yield from walk_list(path, task["block"] + task.get("always", []), here)
            elif module == "ansible.builtin.include_tasks":
                file = templar.template(task[module])
                yield from walk(path.parent / (file["file"] if isinstance(file, dict) else file), here)
            elif module == "ansible.builtin.include_role":
                role = ROOT / "roles" / templar.template(task[module]["name"]).removeprefix("inference.vllm.")
                yield from walk(role / "tasks" / "main.yml", {**settings(role), **here, "role_path": str(role)})
            else:
                passed = module != ASSERT or templar.evaluate_conditional(task[module]["that"])
                yield Step(task["name"], module, templar.template(task[module]), passed)


def answer(case: Mapping[str, Any]) -> Any:
    """Result of one case."""
    role = ROOT / "roles" / case["role"]
    variables = {**settings(role), **case["variables"]}
    found = []
    for step in walk(role / "tasks" / case["tasks"], {**variables, "ansible_check_mode": False}):
        if not step.passed:
            return " ".join(step.arguments["fail_msg"].split())
        if step.module != ASSERT:
            found.append([step.module, step.arguments])
    return found


if __name__ == "__main__":
    init_plugin_loader([str(ROOT / "collections")])
    print(json.dumps({name: answer(case) for name, case in json.load(sys.stdin).items()}))
