"""Bytes of weights, tensor by tensor, against published sizes and measured boots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Quantization
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import (
    Model,
    from_config,
    from_entry,
    from_folder,
)
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import (
    GIB,
    MIB,
    Layout,
    allocated,
    engine_buffers,
    from_shapes,
    on_one_gpu,
    total_bytes,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.checkpoint import write_checkpoint


def model(name: str) -> Model:
    return from_entry(catalogue.load(name))


def gib(name: str) -> float:
    return total_bytes(from_shapes(model(name))) / GIB


@pytest.mark.parametrize(
    ("name", "fp8", "bf16"),
    [("2b", 2.65, 3.96), ("4b", 4.88, 8.27), ("8b", 9.86, 16.33), ("32b", 33.08, 62.13)],
)
def test_checkpoints_have_their_published_size(name: str, fp8: float, bf16: float) -> None:
    quantised = model(f"qwen3-vl-{name}-instruct-fp8")
    assert total_bytes(from_shapes(quantised)) / GIB == pytest.approx(fp8, abs=0.006)
    plain = replace(quantised, quantization=Quantization("none"))
    assert total_bytes(from_shapes(plain)) / GIB == pytest.approx(bf16, abs=0.006)


@pytest.mark.parametrize(
    ("name", "size", "within"),
    [
        ("qwen3-vl-32b-instruct-bf16", 62.13, 0.01),
        ("qwen3-vl-32b-thinking-fp8", 33.08, 0.01),
        ("qwen3-vl-32b-instruct-awq", 19.1, 0.02),
        ("qwen3-vl-30b-a3b-instruct-fp8", 30.0, 0.1),
        ("qwen3-vl-235b-a22b-instruct-fp8", 221, 0.5),
        # Four bits and the scales of 31.2 billion weights, and what stays in BF16: 2.9 + 1.1 GiB.
        ("qwen3-vl-32b-instruct-nvfp4", 31.205e9 * (0.5 + 1 / 16) / GIB + 4.0, 0.03),
        ("qwen3-vl-32b-instruct-w4a16", 31.205e9 * (0.5 + 2.5 / 32) / GIB + 4.0, 0.03),
        ("qwen3-32b-awq", 31.205e9 * (0.5 + 2.5 / 128) / GIB + 2.9, 0.03),
    ],
)
def test_each_quantisation_has_its_size(name: str, size: float, within: float) -> None:
    assert gib(name) == pytest.approx(size, abs=within)


def test_tiny_model_is_a_few_megabytes() -> None:
    # The checkpoint that the demo builds: 2,633,728 bytes of tensors.
    assert total_bytes(from_shapes(model("tiny-qwen3-vl"))) == 2_633_728


@pytest.mark.parametrize(
    ("layout", "batched", "measured"),
    [(Layout(1), 8192, 33.66), (Layout(2), 2048, 17.10), (Layout(2, marlin=True), 2048, 17.33)],
)
def test_weights_on_a_gpu_are_those_of_the_boots(layout: Layout, batched: int, measured: float) -> None:
    thirty_two = model("qwen3-vl-32b-instruct-fp8")
    expected = (on_one_gpu(thirty_two, layout) + engine_buffers(thirty_two, batched)) / GIB
    assert expected == pytest.approx(measured, rel=0.002)


def test_what_tensor_parallelism_copies() -> None:
    thirty_two = model("qwen3-vl-32b-instruct-fp8")
    halves = on_one_gpu(thirty_two, Layout(2))
    # Only norms, patch and position embeddings and biases are whole on each GPU; the allocator rounds up the halves of
    # each layer's projections by 3.5 MiB.
    rounded = 2 * int(3.5 * MIB) * thirty_two.text.num_hidden_layers
    assert 2 * halves - on_one_gpu(thirty_two, Layout(1)) - rounded < 200 * MIB
    # The vision tower copied instead of split: half of its 1.1 GiB more.
    assert (on_one_gpu(thirty_two, Layout(2, copies_encoder=True)) - halves) / GIB == pytest.approx(0.55, abs=0.02)
    # Scales of blocks repeated for every row.
    assert (on_one_gpu(thirty_two, Layout(2, marlin=True)) - halves) / GIB == pytest.approx(0.23, abs=0.01)


def test_key_value_heads_are_copied_where_there_are_more_gpus_than_heads() -> None:
    mixture = model("qwen3-vl-30b-a3b-instruct-fp8")  # four key-value heads
    text = mixture.text
    whole = on_one_gpu(replace(mixture, vision=None), Layout(8))
    one_head_fewer = replace(mixture, vision=None, text=replace(text, num_key_value_heads=8))
    more = on_one_gpu(one_head_fewer, Layout(8))
    # Eight heads on eight GPUs leave one head on each; four heads do, too.
    assert abs(whole - more) < 2 * MIB * text.num_hidden_layers


def test_tied_head_is_counted_once() -> None:
    small = model("qwen3-vl-2b-instruct-fp8")
    head = small.text.vocab_size * small.text.hidden_size * 2
    assert on_one_gpu(replace(small, tied=False), Layout(1)) - on_one_gpu(small, Layout(1)) == allocated(head)


@pytest.mark.parametrize(
    ("size", "counted"),
    [
        *((0, 0), (1, 512), (512, 512), (5 * MIB, 5 * MIB)),
        # From 10 MiB a segment of its own, of which more than 1 MiB is split off; from 20 MiB nothing is.
        *((int(12.5 * MIB), int(12.5 * MIB)), (13 * MIB, 14 * MIB), (int(19.5 * MIB), 20 * MIB)),
        *((int(62.5 * MIB), 64 * MIB), (125 * MIB, 126 * MIB)),
    ],
)
def test_allocator_counts_blocks(size: int, counted: int) -> None:
    assert allocated(size) == counted


def test_headers_of_a_checkpoint_say_the_same_as_its_shapes(tmp_path: Path) -> None:
    entry = catalogue.load("qwen3-vl-8b-instruct-fp8")
    write_checkpoint(entry, tmp_path)
    read, expected = from_folder(tmp_path), from_entry(entry)
    assert (read.text, read.vision, read.tied) == (expected.text, expected.vision, expected.tied)
    assert read.quantization == expected.quantization
    assert total_bytes(read.tensors) == total_bytes(from_shapes(expected))
    for layout in (Layout(1), Layout(2, marlin=True), Layout(4, copies_encoder=True)):
        assert on_one_gpu(read, layout) == on_one_gpu(expected, layout)


def test_headers_win_over_shapes(tmp_path: Path) -> None:
    entry = catalogue.load("qwen3-vl-2b-instruct-fp8")
    write_checkpoint(entry, tmp_path, leave_out="layers.27.")
    read, expected = from_folder(tmp_path), from_entry(entry)
    assert on_one_gpu(read, Layout(1)) < on_one_gpu(expected, Layout(1)) - 40 * MIB


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    write_checkpoint(catalogue.load("tiny-qwen3-vl"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(RefusalError, match="no safetensors header"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (
            {"architectures": ["LlavaForConditionalGeneration"]},
            "unsupported_architecture",
            "Qwen3VLForConditionalGeneration",
        ),
        ({"architectures": []}, "unsupported_architecture", "none named"),
        ({"vision_config": {}}, "incomplete_config", "depth, hidden_size"),
        ({"text_config": {"hidden_size": -1}}, "incomplete_config", "hidden_size"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "unsupported_quantization", "bitsandbytes"),
    ],
)
def test_config_that_cannot_be_accounted_for_is_refused(
    tmp_path: Path, change: dict[str, object], code: str, named: str
) -> None:
    write_checkpoint(catalogue.load("tiny-qwen3-vl"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(RefusalError) as caught:
        from_config(config | change, name="mine")
    assert caught.value.refusals[0].code == code
    assert named in caught.value.refusals[0].message


def test_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RefusalError, match="cannot be read as JSON"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Quantization("awq", 4, None, 128, 16, True)),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}},
            },
            Quantization("compressed-tensors", 4, None, 32, 16, False),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16, "type": "float"}}},
            },
            Quantization("nvfp4", 4, None, 16, 8, False),
        ),
    ],
)
def test_quantisation_of_config_json(tmp_path: Path, quantization: object, expected: Quantization) -> None:
    write_checkpoint(catalogue.load("tiny-qwen3-vl"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    read = from_config(config | {"quantization_config": quantization}, name="mine")
    assert read.quantization == expected


def test_text_only_config(tmp_path: Path) -> None:
    write_checkpoint(catalogue.load("tiny-qwen3-vl"), tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    read = from_config(text | {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}, name="mine")
    assert (read.vision, read.tied, read.images_per_prompt) == (None, True, 0)
