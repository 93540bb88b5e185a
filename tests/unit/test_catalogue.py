"""The catalogue: every entry is whole, says nothing false, and a wrong name or file is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import ROOT

NAMES = catalogue.names()


@pytest.fixture
def entry() -> dict[str, Any]:
    return catalogue.load("qwen3-vl-32b-instruct-fp8").as_dict()


def test_every_variant_of_the_study_has_an_entry() -> None:
    assert set(NAMES) == {
        "qwen3-32b-awq",
        "qwen3-vl-235b-a22b-instruct-fp8",
        "qwen3-vl-2b-instruct-fp8",
        "qwen3-vl-30b-a3b-instruct-fp8",
        "qwen3-vl-32b-instruct-awq",
        "qwen3-vl-32b-instruct-bf16",
        "qwen3-vl-32b-instruct-fp8",
        "qwen3-vl-32b-instruct-gguf",
        "qwen3-vl-32b-instruct-nvfp4",
        "qwen3-vl-32b-instruct-w4a16",
        "qwen3-vl-32b-thinking-fp8",
        "qwen3-vl-4b-instruct-fp8",
        "qwen3-vl-8b-instruct-fp8",
        "tiny-qwen3-vl",
    }


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_whole(name: str) -> None:
    loaded = catalogue.load(name)
    assert loaded.name == name
    assert (loaded.reasoning_parser == "qwen3") == ("thinking" in name)
    assert (loaded.images_per_prompt == 0) == (loaded.variant == "text")
    assert set(loaded.alternatives) <= set(NAMES) - {name}
    version = tuple(map(int, loaded.min_engine_version.split(".")))
    assert version >= (0, 32, 0)
    assert (loaded.refused is not None) == (loaded.quantization.method == "gguf")


@pytest.mark.parametrize("name", NAMES)
def test_entry_survives_the_way_to_a_host_and_back(name: str) -> None:
    loaded = catalogue.load(name)
    assert catalogue.Entry.from_dict(json.loads(json.dumps(loaded.as_dict()))) == loaded


def test_no_two_entries_name_one_repository() -> None:
    repositories = [catalogue.load(name).repository for name in NAMES]
    assert len(set(repositories)) == len(repositories)


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("qwen3-vl-32b-instruct-fp", "qwen3-vl-32b-instruct-fp8"),
        ("Qwen/Qwen3-VL-8B-Instruct-FP8", "qwen3-vl-8b-instruct-fp8"),
        ("tiny", "tiny-qwen3-vl"),
        ("qwen3-vl-32", "Set it to qwen3-vl-32b-"),
    ],
)
def test_unknown_name_brings_the_nearest(asked: str, offered: str) -> None:
    with pytest.raises(RefusalError) as caught:
        catalogue.load(asked)
    assert caught.value.refusals[0].code == "unknown_model"
    assert offered in caught.value.refusals[0].fix


def test_a_name_is_no_path() -> None:
    with pytest.raises(RefusalError, match="not in the catalogue"):
        catalogue.load("shapes/qwen3-vl-32b")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"reasoning_parser": "qwen3"}, "reasoning_parser"),
        ({"variant": "thinking"}, "reasoning_parser"),
        ({"variant": "chat"}, "variant is 'chat'"),
        ({"images_per_prompt": 0}, "images_per_prompt"),
        ({"repository": "no-owner"}, "repository"),
        ({"min_engine_version": "0.32"}, "min_engine_version"),
        ({"accelerators": ["tpu"]}, "accelerators"),
        ({"tool_call_parser": "hermess"}, "tool_call_parser"),
        ({"quantization": {"method": "int3"}}, "quantization"),
        ({"shapes": {"text": {}}}, "shapes"),
        ({"surprise": 1}, "unknown keys ['surprise']"),
    ],
)
def test_invalid_entry_is_refused(entry: dict[str, Any], change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RefusalError) as caught:
        catalogue.Entry.from_dict(entry | change)
    assert caught.value.refusals[0].code == "invalid_catalogue_entry"
    assert complaint in caught.value.refusals[0].message


def test_missing_key_is_refused(entry: dict[str, Any]) -> None:
    del entry["repository"]
    with pytest.raises(RefusalError, match="missing keys \\['repository'\\]"):
        catalogue.Entry.from_dict(entry)


def test_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("{")
    with pytest.raises(RefusalError, match="cannot be read"):
        catalogue.load("broken", tmp_path)


def test_file_under_another_name_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(entry))))
    with pytest.raises(RefusalError, match=r"its name is 'qwen3-vl-32b-instruct-fp8', its file other\.yaml"):
        catalogue.load("other", tmp_path)


def template(expression: str) -> subprocess.CompletedProcess[str]:
    """What Ansible makes of an expression."""
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-i", "localhost,", "-m", "debug", "-a"]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    return subprocess.run(
        [*command, f"msg={{{{ {expression} }}}}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_lookup_reads_entries_of_this_and_of_another_folder(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(entry | {"name": "mine"}))))
    ours = "query('inference.vllm.model', 'tiny-qwen3-vl', 'qwen3-32b-awq')"
    done = template(f"{ours} + [lookup('inference.vllm.model', 'mine', folder='{tmp_path}')]")
    assert done.returncode == 0, done.stdout + done.stderr
    tiny, text, mine = json.loads(done.stdout.partition("=>")[2])["msg"]
    assert tiny["repository"] == "demo/tiny-qwen3-vl"
    assert tiny["shapes"]["text"]["hidden_size"] == 128
    assert text["variant"] == "text"
    assert mine["name"] == "mine"


def test_lookup_of_an_unknown_name_fails_with_the_nearest() -> None:
    done = template("lookup('inference.vllm.model', 'tiny-qwen3')")
    assert done.returncode != 0
    assert "tiny-qwen3-vl" in done.stdout
