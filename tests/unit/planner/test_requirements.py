"""The table of requirements: role, module, command line, preflight and flags say what its rows say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import inventory
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import (
    REQUIREMENTS,
    VARIABLE_OF_FLAG,
    Requirement,
    Requirements,
    option_name,
    options,
    read,
    variable_name,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import flags
from support.paths import ROLES, ROOT
from support.plans import gpu_plan

ROLE = ROLES / "vram_plan"
SPEC = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())

each_row = pytest.mark.parametrize("row", REQUIREMENTS, ids=lambda row: row.name)


@each_row
def test_the_role_has_it_with_the_same_words(row: Requirement) -> None:
    variable = variable_name(row.name)
    assert SPEC[variable] == {"description": row.help, **row.option()}
    assert DEFAULTS[variable] == row.option()["default"]


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    program = str(Path(sys.executable).with_name("ansible-doc"))
    command = [program, "--json", "-t", "module", "inference.vllm.vram_plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    doc: dict[str, Any] = json.loads(done.stdout)["inference.vllm.vram_plan"]["doc"]["options"]["requirements"]
    return dict(doc["suboptions"])


@each_row
def test_the_module_has_and_documents_it(row: Requirement, documented: dict[str, Any]) -> None:
    assert options()[row.name] == row.option() | {"no_log": False}
    assert documented[row.name] == {"description": [row.help], **row.option()}
    assert set(documented) == set(options())


@pytest.fixture(scope="module")
def help_text() -> str:
    done = subprocess.run([ROOT / "bin" / "vram-plan", "--help"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


@each_row
def test_the_command_has_it(row: Requirement, help_text: str) -> None:
    words = re.sub(r"[A-Z]\((\w+)\)", r"\1", row.help)[1:].rstrip(".")
    assert f" {option_name(row.name)} " in help_text
    assert words in help_text


@each_row
def test_preflight_refuses_what_it_does_not_allow(row: Requirement) -> None:
    variable = variable_name(row.name)
    outside: list[Any] = ["no such value"]
    outside += [row.least - 1] if row.least is not None else []
    outside += [row.most + 1] if row.most is not None else []
    for value in outside:
        assert inventory.value_refusal(variable, value, SPEC[variable]) is not None, value
        with pytest.raises(RefusalError, match=rf"{variable}: {value} is not possible; allowed: "):
            row.read(value, variable)
    inside = [row.option()["default"], *(limit for limit in (row.least, row.most) if limit is not None), *row.choices]
    for value in inside:
        assert inventory.value_refusal(variable, value, SPEC[variable]) is None, value
        row.read(value, variable)


def test_text_and_typed_values_mean_the_same() -> None:
    typed = {row.name: row.option()["default"] for row in REQUIREMENTS}
    typed |= {"max_model_len": 4096, "gpu_memory_utilization": 0.9, "kv_cache_dtype": "fp8", "concurrent_requests": 3}
    text = {name: value if isinstance(value, bool) else str(value) for name, value in typed.items()}
    expected = Requirements(max_model_len=4096, gpu_memory_utilization=0.9, kv_cache_dtype="fp8", concurrent_requests=3)
    assert read(typed, str) == read(text, str) == expected


def test_all_invalid_values_are_reported_together() -> None:
    wrong = {row.name: row.option()["default"] for row in REQUIREMENTS}
    wrong |= {"max_model_len": "0", "gpu_memory_utilization": "nan", "max_num_seqs": "1.5", "mm_encoder_tp_mode": "all"}
    with pytest.raises(RefusalError) as caught:
        read(wrong, option_name)
    assert [str(refusal).split(":")[0] for refusal in caught.value.refusals] == [
        "[impossible_value] --max-model-len",
        "[impossible_value] --gpu-memory-utilization",
        "[impossible_value] --max-num-seqs",
        "[impossible_value] --mm-encoder-tp-mode",
    ]
    assert "allowed: auto or a number from 0.01 to 1." in caught.value.refusals[1].message


def test_each_flag_of_a_plan_has_a_variable_that_sets_it() -> None:
    plan = gpu_plan("2x RTX 4090", enforce_eager=True, mm_encoder_tp_mode="data")
    assert set(plan.flags) == set(VARIABLE_OF_FLAG)


@pytest.mark.parametrize("name", [name for name, row in flags.TABLE.items() if "plan" in row.owners])
def test_a_flag_of_the_plan_is_refused_with_the_variable_to_set(name: str) -> None:
    if "user" in flags.TABLE[name].owners:
        assert flags.merge([("user", {name: None})]) == ({}, [])
        return
    _, (refusal,) = flags.merge([("user", {name.replace("-", "_"): 1})])
    assert refusal.message.startswith(f"vllm_service_extra_flags: {name} ")
    if name in VARIABLE_OF_FLAG:
        assert VARIABLE_OF_FLAG[name] in SPEC
        assert (refusal.code, refusal.fix) == ("flag_of_plan", f"Remove it there. Set {VARIABLE_OF_FLAG[name]}.")
    elif flags.TABLE[name].owners == ("plan",):
        assert (refusal.code, refusal.fix) == ("flag_of_plan", "Remove it; no variable sets it.")
        assert "the planner does not account for it" in refusal.message
    else:
        assert refusal.code == "flag_of_catalogue"
        assert "vllm_catalogue_dirs" in refusal.fix


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("max-model-len", "vram_plan_max_model_len"),
        ("mm-processor-kwargs", "vram_plan_max_pixels"),
        ("limit-mm-per-prompt", "vram_plan_images_per_prompt"),
    ],
)
def test_flags_with_another_name_lead_to_their_variable(flag: str, variable: str) -> None:
    assert VARIABLE_OF_FLAG[flag] == variable


def ask(*variables: str) -> subprocess.CompletedProcess[str]:
    """What Ansible makes of the role's lookup with these variables."""
    program = str(Path(sys.executable).with_name("ansible"))
    command = [program, "localhost", "-i", "localhost,", "-m", "debug", "-a"]
    given = [word for variable in variables for word in ("-e", variable)]
    return subprocess.run(
        [*command, "msg={{ lookup('inference.vllm.requirements') }}", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_lookup_reads_variables_with_their_templates() -> None:
    done = ask("length=4096", "vram_plan_max_model_len={{ length | int * 2 }}", "vram_plan_enforce_eager=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(done.stdout.partition("=>")[2])["msg"] in (
        {"max_model_len": 8192, "enforce_eager": "true"},
        {"max_model_len": "8192", "enforce_eager": "true"},
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [("vram_plan_context", "vram_plan_max_model_len"), ("vram_plan_engine_version", "engine_image_vllm_version")],
)
def test_the_lookup_refuses_a_former_name(old: str, new: str) -> None:
    done = ask(f"{old}=1")
    assert done.returncode != 0
    assert f"[renamed_variable] {old} was renamed to {new}." in done.stdout + done.stderr
