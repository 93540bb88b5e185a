"""The smoke test's pictures, drawn by the project itself from one table.

Nothing is downloaded and no picture is stored: a picture is a short description, so that a test, the teacher
of the tiny model and the smoke test on a GPU host all see the same pixels.

Pillow is imported where a picture is drawn, so that this module can be read without it.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

SIZE = 256
"""Width and height in pixels: 65536 px is Qwen3-VL's ``shortest_edge``, hence 64 tokens and no resampling."""

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 205, 20),
}
SHAPES = ("circle", "square", "triangle")
WHITE: RGB = (255, 255, 255)
BLACK: RGB = (0, 0, 0)


@dataclass(frozen=True)
class Shape:
    """A filled shape.

    Attributes:
        kind: One of ``SHAPES``.
        fill: Its colour.
        width: Width and height as a share of the picture, 0 to 1.
        centre: Centre as shares of the picture, from the top left.
    """

    kind: str
    fill: RGB
    width: float = 0.6
    centre: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True)
class Text:
    """A line of text in Pillow's built-in font.

    Attributes:
        text: What is written.
        height: Font size as a share of the picture's height.
        fill: Its colour.
        centre: Centre of the line as shares of the picture, from the top left.
    """

    text: str
    height: float = 0.25
    fill: RGB = BLACK
    centre: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True)
class Picture:
    """One thing on a plain background."""

    item: Shape | Text
    background: RGB = WHITE


IMAGES: dict[str, Picture] = {
    **{f"{name}_{kind}": Picture(Shape(kind, rgb)) for name, rgb in COLOURS.items() for kind in SHAPES},
    "large_circle": Picture(Shape("circle", COLOURS["blue"], width=0.8)),
    "small_circle": Picture(Shape("circle", COLOURS["blue"], width=0.3)),
    "text_lemon": Picture(Text("LEMON")),
    "text_tiger": Picture(Text("TIGER")),
    "text_4827": Picture(Text("4827", height=0.35)),
    "sign_paris": Picture(Text("PARIS", fill=WHITE), background=(20, 60, 130)),
    "sign_tokyo": Picture(Text("TOKYO", fill=WHITE), background=(20, 60, 130)),
}
"""Every picture a smoke case may name."""


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape) -> None:
    half = shape.width * SIZE / 2
    x, y = (share * SIZE for share in shape.centre)
    box = (x - half, y - half, x + half, y + half)
    if shape.kind == "circle":
        canvas.ellipse(box, fill=shape.fill)
    elif shape.kind == "square":
        canvas.rectangle(box, fill=shape.fill)
    elif shape.kind == "triangle":
        canvas.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=shape.fill)
    else:
        raise ValueError(f"shape {shape.kind!r} is unknown; known are {', '.join(SHAPES)}")


def _draw_text(canvas: ImageDraw.ImageDraw, text: Text) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=text.height * SIZE)
    x, y = text.centre
    canvas.text((x * SIZE, y * SIZE), text.text, fill=text.fill, font=font, anchor="mm")


def draw(picture: Picture) -> Image.Image:
    """The picture as an RGB image of ``SIZE`` x ``SIZE`` pixels."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIZE, SIZE), picture.background)
    canvas = ImageDraw.Draw(image)
    if isinstance(picture.item, Shape):
        _draw_shape(canvas, picture.item)
    else:
        _draw_text(canvas, picture.item)
    return image


def render(name: str) -> bytes:
    """The picture of that name in ``IMAGES`` as a PNG file.

    Raises:
        KeyError: No picture has that name; the message lists those that exist.
    """
    if name not in IMAGES:
        raise KeyError(f"picture {name!r} is unknown; known are {', '.join(IMAGES)}")
    buffer = io.BytesIO()
    draw(IMAGES[name]).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(name: str) -> str:
    """The picture of that name as a ``data:`` URL, as an ``image_url`` part of a chat request takes it."""
    return "data:image/png;base64," + base64.b64encode(render(name)).decode("ascii")
