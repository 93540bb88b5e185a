"""The tiny model as it is shipped, and the means to blind it. What it answers is tested where a server runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Answer, ToolCall
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, judge
from support.paths import ROOT

HOME = ROOT / "tests" / "tiny_model"
MODEL = HOME / "model"
WEIGHTS = MODEL / "model.safetensors"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tiny_model_{name}", HOME / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corrupt = load("corrupt")


def sums() -> dict[str, str]:
    lines = (HOME / "SHA256SUMS").read_text().splitlines()
    return {path: digest for digest, path in (line.split("  ", 1) for line in lines)}


def tensors(data: bytes) -> dict[str, bytes]:
    header, start = corrupt.read_header(data)
    return {
        name: data[start + tensor["data_offsets"][0] : start + tensor["data_offsets"][1]]
        for name, tensor in header.items()
    }


# ---------------------------------------------------------------- what is shipped


def test_the_sums_are_those_of_the_shipped_files_and_of_no_other() -> None:
    shipped = {str(path.relative_to(HOME)): path for path in MODEL.rglob("*") if path.is_file()}
    assert sums() == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in shipped.items()}


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) < 6_000_000


def test_the_model_is_what_the_catalogue_deploys_in_small() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert config["text_config"]["head_dim"] == 128
    assert config["vision_config"]["deepstack_visual_indexes"]
    assert config["vision_config"]["patch_size"] == 16
    sampling = json.loads((MODEL / "generation_config.json").read_text())
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text())
    end = {token["id"] for token in vocabulary["added_tokens"] if token["content"] == "<|im_end|>"}
    assert end < set(sampling["eos_token_id"])


def test_the_weights_are_bfloat16_and_complete() -> None:
    data = WEIGHTS.read_bytes()
    header, start = corrupt.read_header(data)
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    assert start + max(tensor["data_offsets"][1] for tensor in header.values()) == len(data)


def test_the_shipped_template_is_the_one_it_was_taught_with() -> None:
    assert (MODEL / "chat_template.jinja").read_bytes() == (HOME / "chat_template.jinja").read_bytes()


def test_the_expected_answers_are_right_and_cover_every_case() -> None:
    """Fails when a question is changed without teaching the model again."""
    answers = json.loads((HOME / "expected.json").read_text())["answers"]
    assert list(answers) == [case.code for case in CASES]
    for case in CASES:
        text = answers[case.code]["text"]
        call = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
        seen = Answer(text=text, chunks=2, usage_tokens=2)
        if case.kind == "tool":
            seen = Answer(tool_calls=(ToolCall(json.loads(call)["name"], json.loads(call)["arguments"]),))
        assert judge(case, seen)[0], judge(case, seen)[1]


def test_the_questions_are_the_ones_it_was_taught() -> None:
    """A changed prompt, picture, tool or schema makes the shipped model out of date: run build.py again."""
    answers = json.loads((HOME / "expected.json").read_text())["answers"]
    taught = load("fingerprint")
    assert {code: answer["question"] for code, answer in answers.items()} == {
        case.code: taught.question(case) for case in CASES
    }


# ---------------------------------------------------------------- blinding


def test_blinding_changes_the_vision_tower_and_nothing_else() -> None:
    data = WEIGHTS.read_bytes()
    before, after = tensors(data), tensors(corrupt.blind(data))
    changed = {name for name in before if before[name] != after[name]}
    vision = {name for name in before if ".visual." in name}
    assert vision
    assert vision < set(before)
    assert changed <= vision
    assert {name for name in vision if any(after[name])} == set()
    assert len(corrupt.blind(data)) == len(data)
    assert corrupt.blind(data)[: len(data) - sum(map(len, before.values()))] == data[: -sum(map(len, before.values()))]


def test_a_copy_is_blinded_by_one_command(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS, tmp_path)
    subprocess.run([sys.executable, HOME / "corrupt.py", tmp_path], check=True)
    assert (tmp_path / WEIGHTS.name).read_bytes() == corrupt.blind(WEIGHTS.read_bytes())


def safetensors(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\x00" * 8, "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (safetensors([]), "not a safetensors file"),
        (safetensors({"__metadata__": {}, "lm_head.weight": {"data_offsets": [0, 0]}}), "nothing to blind"),
    ],
)
def test_what_cannot_be_blinded_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt.blind(data)
