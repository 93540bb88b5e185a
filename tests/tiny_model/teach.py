"""Train the tiny model on the questions of the smoke test.

A lesson is a question of ``smoke_cases`` about a newly drawn image with another position, size, shade and, if the
question allows it, another colour or shape. The model therefore learns to recognise images instead of memorising
fifteen files, and tolerates small differences between Pillow versions and image processors.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ansible_collections.inference.vllm.plugins.module_utils.checks.client import ToolCall
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import cases as smoke_cases
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke import images as smoke_images
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.cases import CASES, Case
from ansible_collections.inference.vllm.plugins.module_utils.checks.smoke.images import (
    COLOURS,
    IMAGES,
    RGB,
    SHAPES,
    Picture,
    Shape,
    Text,
)

# Weights of the groups in a batch: harder questions occur more often.
SHARES = {"greeting": 1, "stream": 1, "colour": 3, "shape": 4, "ocr": 5, "compare": 4, "order": 3, "tool": 4, "json": 5}
LESSONS_PER_STEP = 12
EXACT_PER_STEP = 2
IGNORED = -100


@dataclass(frozen=True)
class Lesson:
    """A question, its images and the expected answer."""

    case: Case
    pictures: tuple[Picture, ...]
    answer: str


def answer_of(case: Case) -> str:
    """Text that the model must generate before the end-of-turn token, including tool calls and JSON."""
    if isinstance(case.expect, ToolCall):
        call = {"name": case.expect.name, "arguments": dict(case.expect.arguments)}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    if isinstance(case.expect, str):
        return case.example
    # Without spaces, because the grammar allows none if the server runs with disable_any_whitespace.
    return json.dumps(case.expect, separators=(",", ":"))


def exact(case: Case) -> Lesson:
    """The exact question of the smoke test."""
    return Lesson(case, tuple(IMAGES[name] for name in case.images), answer_of(case))


def _shade(rgb: RGB, rng: random.Random, most: int) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-most, most))) for value in rgb)
    return red, green, blue


def _moved(width: float, rng: random.Random, most: float) -> tuple[float, float]:
    room = min(most, max(0.0, (1 - width) / 2))
    return 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room)


def vary(picture: Picture, rng: random.Random) -> Picture:
    """Variation of an image: other size, shade and position."""
    item: Shape | Text
    if isinstance(picture.item, Shape):
        width = min(0.9, picture.item.width * rng.uniform(0.7, 1.3))
        fill = _shade(picture.item.fill, rng, 20)
        item = replace(picture.item, width=width, fill=fill, centre=_moved(width, rng, 0.15))
    else:
        height = picture.item.height * rng.uniform(0.8, 1.04)
        x, y = 0.5 + rng.uniform(-0.06, 0.06), 0.5 + rng.uniform(-0.2, 0.2)
        item = replace(picture.item, height=height, fill=_shade(picture.item.fill, rng, 40), centre=(x, y))
    return Picture(item, _shade(picture.background, rng, 15))


def _any_shape(rng: random.Random, colour: str = "", kind: str = "") -> Picture:
    fill = COLOURS[colour or rng.choice(list(COLOURS))]
    return vary(Picture(Shape(kind or rng.choice(SHAPES), fill)), rng)


def _colour_lesson(case: Case, rng: random.Random) -> Lesson:
    colour = rng.choice(list(COLOURS))
    return Lesson(case, (_any_shape(rng, colour),), colour.capitalize())


def _shape_lesson(case: Case, rng: random.Random) -> Lesson:
    kind = rng.choice(SHAPES)
    return Lesson(case, (_any_shape(rng, kind=kind),), kind.capitalize())


def _json_lesson(case: Case, rng: random.Random) -> Lesson:
    colour, kind = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    return Lesson(
        case, (_any_shape(rng, colour, kind),), answer_of(replace(case, expect={"colour": colour, "shape": kind}))
    )


def _order_lesson(case: Case, rng: random.Random) -> Lesson:
    first, second = rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
    return Lesson(case, (_any_shape(rng, first), _any_shape(rng, second)), f"{first.capitalize()}, {second}")


def _compare_lesson(case: Case, rng: random.Random) -> Lesson:
    small = rng.uniform(0.15, 0.5)
    large = rng.uniform(small * 1.5, 0.9)
    fill = COLOURS[rng.choice(list(COLOURS))]
    widths = [large, small]
    rng.shuffle(widths)
    pictures = tuple(Picture(Shape("circle", _shade(fill, rng, 20), w, _moved(w, rng, 0.15))) for w in widths)
    return Lesson(case, pictures, "First" if widths[0] > widths[1] else "Second")


def _varied(case: Case, rng: random.Random) -> Lesson:
    lesson = exact(case)
    return replace(lesson, pictures=tuple(vary(picture, rng) for picture in lesson.pictures))


LESSONS: dict[str, Callable[[Case, random.Random], Lesson]] = {
    "colour": _colour_lesson,
    "shape": _shape_lesson,
    "json": _json_lesson,
    "order": _order_lesson,
    "compare": _compare_lesson,
}


def draw_lesson(group: str, rng: random.Random) -> Lesson:
    """Draw a new lesson of a group."""
    case = rng.choice([case for case in CASES if case.group == group])
    return LESSONS.get(group, _varied)(case, rng)


def draw_lessons(rng: random.Random, count: int) -> list[Lesson]:
    """Draw lessons of all groups, weighted by ``SHARES``."""
    return [draw_lesson(group, rng) for group in rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)]


class Classroom:
    """Converts lessons to tensors like a server does: chat template, placeholders, patches."""

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        """Use transformers' tokenizer and image processor from the model folder."""
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_token: int = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.pad: int = tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def prompt_ids(self, case: Case, grids: Sequence[Sequence[int]]) -> list[int]:
        """Token IDs of the rendered prompt, with one placeholder per image token.

        Args:
            case: The case.
            grids: Patches of each image in time, height and width.
        """
        text: str = self.tokenizer.apply_chat_template(
            smoke_cases.messages(case, str),
            tools=[dict(tool) for tool in case.tools] or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        merge = self.image_processor.merge_size**2
        counts = iter([t * h * w // merge for t, h, w in grids])
        ids: list[int] = []
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            ids += [token] * next(counts) if token == self.image_token else [token]
        return ids

    def pixels(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """``pixel_values`` and ``image_grid_thw`` of the images; empty without images."""
        if not pictures:
            return {}
        return dict(self.image_processor([smoke_images.draw(picture) for picture in pictures], return_tensors="pt"))

    def batch(self, lessons: Sequence[Lesson]) -> tuple[dict[str, Any], torch.Tensor]:
        """Model inputs and labels, padded on the right. The loss covers only the answers."""
        pixels = self.pixels([picture for lesson in lessons for picture in lesson.pictures])
        grids = iter(pixels["image_grid_thw"].tolist() if pixels else [])
        rows, labels = [], []
        for lesson in lessons:
            prompt = self.prompt_ids(lesson.case, [next(grids) for _ in lesson.pictures])
            answer = [*self.tokenizer.encode(lesson.answer, add_special_tokens=False), self.end]
            rows.append(prompt + answer)
            labels.append([IGNORED] * len(prompt) + answer)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        target = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == self.image_token).int()}
        return inputs | pixels, target

    def ask(self, model: Any, lesson: Lesson, limit: int) -> tuple[str, float]:
        """Greedy answer of at most ``limit`` tokens, and the lowest probability of its tokens."""
        inputs, _ = self.batch([lesson])
        answer = len(self.tokenizer.encode(lesson.answer, add_special_tokens=False)) + 1
        for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            inputs[key] = inputs[key][:, :-answer]
        with torch.inference_mode():
            seen = model.generate(
                **inputs,
                max_new_tokens=limit,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self.end,
                pad_token_id=self.pad,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = seen.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        surest = [float(step[0].float().softmax(-1).max()) for step in seen.logits]
        if tokens and tokens[-1] == self.end:
            tokens = tokens[:-1]
        return self.tokenizer.decode(tokens), min(surest)


def _any_picture(rng: random.Random) -> tuple[Picture, tuple[int, int]]:
    """Random image with a label for its content (shape or text) and one for its colour (none for text)."""
    texts = [picture for picture in IMAGES.values() if isinstance(picture.item, Text)]
    if rng.random() < len(SHAPES) / (len(SHAPES) + len(texts)):
        colour, kind = rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES))
        return _any_shape(rng, list(COLOURS)[colour], SHAPES[kind]), (kind, colour)
    text = rng.randrange(len(texts))
    return vary(texts[text], rng), (len(SHAPES) + text, len(COLOURS))


def look(model: Any, room: Classroom, *, steps: int, seed: int, images: int = 24, peak_rate: float = 2e-3) -> None:
    """Train the vision tower alone to distinguish the images, which is fast, before the whole model is trained.

    Two temporary linear heads read the mean and the maximum of an image's tokens and predict its content and colour.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tower = model.model.visual
    width = tower.config.out_hidden_size * 2
    texts = sum(isinstance(picture.item, Text) for picture in IMAGES.values())
    heads = torch.nn.ModuleList([torch.nn.Linear(width, len(SHAPES) + texts), torch.nn.Linear(width, len(COLOURS) + 1)])
    weights = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_rate, total_steps=steps, pct_start=0.1)
    started, right = time.monotonic(), [0.0]
    for step in range(steps):
        pictures, labels = zip(*(_any_picture(rng) for _ in range(images)), strict=True)
        pixels = room.pixels(pictures)
        tokens = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        tokens = torch.stack(list(tokens)) if isinstance(tokens, tuple | list) else tokens.view(images, -1, width // 2)
        features = torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)
        scores = [head(features) for head in heads]
        targets = torch.tensor(labels).T
        sum(torch.nn.functional.cross_entropy(*pair) for pair in zip(scores, targets, strict=True)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        right.append(float((scores[0].argmax(1) == targets[0]).float().mean()))
        if step % 25 == 0 or step == steps - 1:
            share = sum(right[-25:]) / len(right[-25:])
            print(f"look {step:5d}/{steps}  right {share:.2f}  {time.monotonic() - started:.0f} s", flush=True)


def teach(model: Any, room: Classroom, *, steps: int, seed: int, peak_rate: float = 2e-3) -> float:
    """Train the whole model. Returns the mean loss of the last 20 steps and prints the progress every 25 steps."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tower = {id(weight) for weight in model.model.visual.parameters()}
    groups = [
        {"params": [weight for weight in model.parameters() if (id(weight) in tower) == is_tower]}
        for is_tower in (False, True)
    ]
    rates = [peak_rate, peak_rate / 4]  # lower rate for the tower, which is already trained
    optimiser = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps, pct_start=0.1)
    model.train()
    losses: list[float] = []
    started = time.monotonic()
    for step in range(steps):
        lessons = draw_lessons(rng, LESSONS_PER_STEP) + [exact(case) for case in rng.sample(CASES, EXACT_PER_STEP)]
        # Sort by length to reduce padding. Both halves have the same weight.
        lessons.sort(key=lambda lesson: (len(lesson.pictures), len(lesson.case.tools)))
        half = len(lessons) // 2
        losses.append(0.0)
        for part in (lessons[:half], lessons[half:]):
            inputs, labels = room.batch(part)
            loss = model(**inputs, labels=labels).loss / 2
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            mean = sum(losses[-25:]) / len(losses[-25:])
            print(f"step {step:5d}/{steps}  loss {mean:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    model.eval()
    return sum(losses[-20:]) / len(losses[-20:])


def rehearse(model: Any, room: Classroom, *, steps: int, seed: int, peak_rate: float = 1.5e-3) -> float:
    """Repeat the exact questions of the smoke test. Returns the last loss.

    Noise on the pixels prevents that answers depend on single bits of an image.
    """
    torch.manual_seed(seed)
    lessons = sorted((exact(case) for case in CASES), key=lambda lesson: (len(lesson.case.tools), len(lesson.pictures)))
    batches = [room.batch(lessons[start : start + 6]) for start in range(0, len(lessons), 6)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_rate, total_steps=steps, pct_start=0.1)
    model.train()
    started, loss = time.monotonic(), 0.0
    for step in range(steps):
        loss = 0.0
        for inputs, labels in batches:
            noisy = {
                key: value + 0.01 * torch.randn_like(value) if key == "pixel_values" else value
                for key, value in inputs.items()
            }
            part = model(**noisy, labels=labels).loss / len(batches)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            print(f"rehearse {step:5d}/{steps}  loss {loss:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    model.eval()
    return loss
