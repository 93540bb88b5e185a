"""The untrained tiny Qwen3-VL: tokenizer, configuration files and seeded random weights.

The shapes are valid for ``Qwen3VLForConditionalGeneration``, so that vLLM runs the code path of the full-size models
(deepstack, interleaved M-RoPE, head_dim 128); only the counts are small.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

TEMPLATE = Path(__file__).with_name("chat_template.jinja")

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Not special tokens, like in the full-size models: the tool parser needs them in the decoded text.
PLAIN_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

# Pre-tokenization of the Qwen family, which transformers' Qwen2Tokenizer requires.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

HIDDEN = 128
CONTEXT = 262144

IMAGE_PROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def make_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Byte-level BPE tokenizer with the words of the corpus. Any other text is encoded as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> dict[str, int]:
    """Write the tokenizer files and the chat template. Returns the IDs of the added tokens."""
    ids: dict[str, int] = {token: tokenizer.token_to_id(token) for token in (*SPECIAL_TOKENS, *PLAIN_TOKENS)}
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        },
    )
    shutil.copyfile(TEMPLATE, out / TEMPLATE.name)
    return ids


def write_processors(out: Path) -> None:
    """Write the image processor configuration, and the video configuration that the processor class requires."""
    image = IMAGE_PROCESSOR | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    video = IMAGE_PROCESSOR | {
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    _write_json(out / "preprocessor_config.json", image)
    _write_json(out / "video_preprocessor_config.json", video)


def write_generation_config(ids: dict[str, int], out: Path) -> None:
    """Write the sampling defaults of the full-size Instruct models."""
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "repetition_penalty": 1.0,
        },
    )


def make_model(ids: dict[str, int], entries: int, seed: int) -> Any:
    """Create the model with random weights in float32.

    Args:
        ids: IDs of the added tokens.
        entries: Number of tokens of the tokenizer.
        seed: Seed of the random weights.
    """
    torch.manual_seed(seed)
    text = {
        "vocab_size": -(-entries // 64) * 64,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "initializer_range": 0.02,
        "dtype": "bfloat16",
    }
    vision = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": IMAGE_PROCESSOR["patch_size"],
        "spatial_merge_size": IMAGE_PROCESSOR["merge_size"],
        "temporal_patch_size": IMAGE_PROCESSOR["temporal_patch_size"],
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 256,  # 16 x 16 patches of an image of the smoke test
        "deepstack_visual_indexes": [0, 1],
        "hidden_act": "gelu_pytorch_tanh",
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    return Qwen3VLForConditionalGeneration(config).float()
