#!/usr/bin/env python3
"""Build and train the tiny Qwen3-VL: ``python build.py --out FOLDER``.

Needs the packages of requirements.txt, but no network and no GPU. Exits with 1 and keeps the folder if the trained
model in bfloat16 does not answer every case of the smoke test correctly.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "collections")]

import architecture  # noqa: E402
import corrupt  # noqa: E402
import fingerprint  # noqa: E402
import teach  # noqa: E402
import torch  # noqa: E402
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import Answer, ToolCall  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case  # noqa: E402

SEED = 20
LOOKING_STEPS = 500
TALKING_STEPS = 500
REHEARSING_STEPS = 70
LEAST_CERTAINTY = 0.9
MOST_BYTES = 6_000_000
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")


def corpus() -> list[str]:
    """All text of the training data, for the vocabulary of the tokenizer."""
    texts = [architecture.TEMPLATE.read_text()]
    for case in CASES:
        texts += [case.prompt, case.system or "", teach.answer_of(case), json.dumps(case.tools)]
    return texts


def read_answer(case: Case, text: str) -> Answer:
    """Parse the answer like the parsers of a server."""
    if case.kind == "tool" and text.startswith("<tool_call>"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            return Answer(tool_calls=(ToolCall(call["name"], call["arguments"]),))
    return Answer(text=text, chunks=2, usage_tokens=2)


def ask_all(model: Any, room: teach.Classroom) -> dict[str, tuple[str, float, bool, str]]:
    """Ask every case. Returns by code the answer, its confidence, whether it is correct, and the judge's message."""
    asked = {}
    for case in CASES:
        text, certainty = room.ask(model, teach.exact(case), case.max_tokens)
        asked[case.code] = (text, certainty, *smoke_cases.judge(case, read_answer(case, text)))
    return asked


def examine(model: Any, room: teach.Classroom) -> dict[str, dict[str, Any]]:
    """Ask every case. Returns by code the answer, its confidence and the digest of the question.

    The cases of a group ask the same question about different images, so the answers must depend on the image.

    Raises:
        SystemExit: An answer is wrong, or its confidence is below ``LEAST_CERTAINTY``.
    """
    asked = ask_all(model, room)
    for code, (text, certainty, ok, _) in asked.items():
        print(f"{'ok ' if ok else 'BAD'} {certainty:.3f} {code}: {text!r}")
    faults = [
        f"{code} (certainty {certainty:.3f}): {message}"
        for code, (_, certainty, ok, message) in asked.items()
        if not ok or certainty < LEAST_CERTAINTY
    ]
    if faults:
        raise SystemExit("The model is not trained well enough:\n" + "\n".join(faults))
    return {
        case.code: {
            "text": asked[case.code][0],
            "certainty": round(asked[case.code][1], 4),
            "question": fingerprint.question(case),
        }
        for case in CASES
    }


def wrong_when_blind(folder: Path, room: teach.Classroom) -> list[str]:
    """Codes of the cases that the model fails with a zeroed vision tower, which therefore prove that it uses the image.

    Raises:
        SystemExit: The blind model answers a whole group of image questions correctly.
    """
    with tempfile.TemporaryDirectory() as name:
        blinded = shutil.copytree(folder, Path(name) / "model")
        corrupt.blind_file(blinded / "model.safetensors")
        model = Qwen3VLForConditionalGeneration.from_pretrained(blinded, dtype=torch.bfloat16).eval()
        wrong = [code for code, (_, _, ok, _) in ask_all(model, room).items() if not ok]
    untouched = {case.group for case in CASES if case.images} - {case.group for case in CASES if case.code in wrong}
    if untouched:
        raise SystemExit(f"A blind model passes these groups, so they prove nothing: {', '.join(sorted(untouched))}")
    return wrong


def unseen(model: Any, room: teach.Classroom, each: int) -> dict[str, float]:
    """Accuracy per group on unseen images, with ``each`` questions per group."""
    rng = random.Random(SEED + 1)
    shares: dict[str, float] = {}
    for group in dict.fromkeys(case.group for case in CASES if case.images):
        lessons = [teach.draw_lesson(group, rng) for _ in range(each)]
        right = [room.ask(model, lesson, lesson.case.max_tokens)[0] == lesson.answer for lesson in lessons]
        shares[group] = round(sum(right) / each, 2)
    return shares


def write_sums(root: Path, sums: Path) -> None:
    """Write the SHA-256 of every file of the model in the format of ``sha256sum -c``."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {root.name}/{path.relative_to(root)}\n"
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
    sums.write_text("".join(lines))


def build(out: Path, looking: int, talking: int) -> None:
    """Write ``out/model``, ``out/SHA256SUMS`` and ``out/expected.json``."""
    folder = out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # more threads would wait for each other on a busy machine, and sum in another order

    tokenizer = architecture.make_tokenizer(corpus())
    ids = architecture.write_tokenizer(tokenizer, folder)
    architecture.write_processors(folder)
    model = architecture.make_model(ids, tokenizer.get_vocab_size(), SEED)
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters, {len(tokenizer.get_vocab())} tokens")

    room = teach.Classroom(AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder))
    teach.look(model, room, steps=looking, seed=SEED)
    teach.teach(model, room, steps=talking, seed=SEED)
    loss = teach.rehearse(model, room, steps=REHEARSING_STEPS, seed=SEED)
    model.to(torch.bfloat16).save_pretrained(folder)
    architecture.write_generation_config(ids, folder)

    saved = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    shares = unseen(saved, room, each=20)
    print(f"loss {loss:.5f}; accuracy on unseen images: {shares}")
    answers = examine(saved, room)
    blind = wrong_when_blind(folder, room)
    print(f"wrong when blind: {len(blind)} of {len(CASES)}")

    expected = {
        "seed": SEED,
        "steps": {"looking": looking, "talking": talking, "rehearsing": REHEARSING_STEPS},
        "right_on_pictures_never_seen": shares,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "wrong_when_blind": blind,
        "answers": answers,
    }
    (out / "expected.json").write_text(json.dumps(expected, indent=2, ensure_ascii=False) + "\n")
    write_sums(folder, out / "SHA256SUMS")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{size} bytes in {folder}")
    if size > MOST_BYTES:
        raise SystemExit(f"The model has {size} bytes, more than {MOST_BYTES}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write model/, SHA256SUMS and expected.json")
    parser.add_argument("--looking", type=int, default=LOOKING_STEPS, help="steps of the vision tower alone")
    parser.add_argument("--talking", type=int, default=TALKING_STEPS, help="steps of the whole model")
    arguments = parser.parse_args()
    build(arguments.out, arguments.looking, arguments.talking)


if __name__ == "__main__":
    main()
