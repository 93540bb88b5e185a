"""Lookup that checks all variables of a host and returns the refusals."""

from __future__ import annotations

DOCUMENTATION = r"""
name: inventory
short_description: Refusals of the variables of the current host
version_added: 0.1.0
description:
  - Compares every variable that the inventory or the command line sets with the argument specs of all roles.
  - Names misspelt variables, wrong types, values that are not allowed, flags and environment that the service refuses,
    models that the catalogue does not have, and files that are named but missing on the machine where Ansible runs.
  - Warns of a variable that has the prefix of a role but is not one of its variables; it may belong to another project.
options:
  _terms:
    description: Folder that holds the roles.
    required: true
"""

EXAMPLES = r"""
- name: Inventory | Refuse what is not valid
  ansible.builtin.assert:
    that: lookup('inference.vllm.inventory', '/srv/deploy/roles') | length == 0
"""

RETURN = r"""
_list:
  description: One text for each refusal; empty when all is well.
  type: list
  elements: str
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, inventory
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import design, flags
from ansible_collections.inference.vllm.plugins.plugin_utils.catalogue_dirs import catalogue_dirs

#: Variables that name a file on the machine where Ansible runs.
CONTROLLER_FILES = ("vllm_service_api_key_file",)


def _flag_refusals(extra_flags: Mapping[str, Any]) -> list[Refusal]:
    merged, refused = flags.merge([("user", extra_flags)])
    return [*refused, *flags.value_refusals(merged)]


#: Mappings of role vllm_service, and what refuses their content.
CONTENT: Mapping[str, Callable[[Mapping[str, Any]], list[Refusal]]] = {
    "vllm_service_environment": design.environment_refusals,
    "vllm_service_extra_flags": _flag_refusals,
    "vllm_service_ulimits": design.ulimit_refusals,
}

display = Display()


def role_options(specs: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Every public variable of every role, with its entry in the argument spec."""
    options: dict[str, dict[str, Any]] = {}
    for path in specs:
        for entry in (yaml_load(path.read_text()) or {}).get("argument_specs", {}).values():
            for name, option in (entry.get("options") or {}).items():
                options.setdefault(name, option)
    return options


class LookupModule(LookupBase):
    """Reads the argument specs, resolves the variables, and checks them with `inventory`."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **_: Any) -> list[str]:
        """Return the refusals of the current host as text."""
        if variables is None or len(terms) != 1:
            msg = "inference.vllm.inventory takes the folder that holds the roles"
            raise AnsibleError(msg)
        specs = sorted(Path(terms[0]).glob("*/meta/argument_specs.yml"))
        options = role_options(specs)
        given = set(variables["hostvars"][variables["inventory_hostname"]])
        refusals, warnings = inventory.unknown_variables(given, options, [path.parents[1].name for path in specs])
        for warning in warnings:
            display.warning(warning)
        values = {name: self._templar.template(variables[name]) for name in sorted(given & set(options))}
        refusals += filter(None, (inventory.value_refusal(n, v, options[n]) for n, v in values.items()))
        for name, check in CONTENT.items():
            if isinstance(values.get(name), Mapping):
                refusals += check(values[name])
        shared = {n: self._templar.template(variables[n]) for n in ("vllm_model", "vllm_bind_address")}
        allow_public = bool(self._templar.template(variables["preflight_allow_public_address"]))
        refusals += self._model_refusals(str(shared["vllm_model"]), variables)
        address = inventory.address_refusal(str(shared["vllm_bind_address"]), allow_public=allow_public)
        files = {n: str(values[n]) for n in CONTROLLER_FILES if values.get(n)}
        refusals += [*filter(None, [address]), *inventory.missing_files(files, lambda p: Path(p).is_file())]
        return list(dict.fromkeys(map(str, refusals)))

    def _model_refusals(self, name: str, variables: dict[str, Any]) -> list[Refusal]:
        """Refusals of the model, of its alternatives, or of the folders of the catalogue."""
        try:
            own = catalogue_dirs(self, variables)
            entry = catalogue.load(name, own)
            from_entry(entry)
            for other in entry.alternatives:
                catalogue.load(other, own)
        except RefusalError as error:
            return list(error.refusals)
        return []
