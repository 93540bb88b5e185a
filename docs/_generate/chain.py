"""docs/chain.svg: the chain of a deployment and what runs afterwards, drawn from docs/_generate/chain.yml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from docs._generate.markdown import read

_WIDTH, _HEIGHT = 1000, 345
_BOX_WIDTH, _BOX_HEIGHT, _GAP = 108, 78, 17
_LEFT, _TOP, _LOWER = 9, 40, 205
#: Widest character of a sans-serif font, on average, for each pixel of its size.
_WIDEST = 0.56
_STYLE = """\
text { font-family: system-ui, -apple-system, 'DejaVu Sans', sans-serif; fill: #1f2937; text-anchor: middle }
.title { font-size: 15px; font-weight: 600 } .name { font-size: 14px; font-weight: 600 }
.does { font-size: 11px } .file { font-size: 11px; fill: #1d4ed8 } .label { font-size: 11px; fill: #6b7280 }
.box { fill: #eff6ff; stroke: #2563eb } .proof { fill: #ecfdf5; stroke: #059669 } .run { fill: #fff; stroke: #6b7280 }
.host { fill: #f9fafb; stroke: #9ca3af }
.arrow { stroke: #4b5563; fill: none; stroke-width: 1.5; marker-end: url(#tip) }
.back { stroke-dasharray: 4 3 }"""


def picture() -> str:
    """The whole SVG."""
    data = read("docs/_generate/chain.yml")
    steps = data["steps"]
    at = {step["name"]: _LEFT + number * (_BOX_WIDTH + _GAP) for number, step in enumerate(steps)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="title">',
        "<!-- Drawn by bin/make-docs from docs/_generate/chain.yml. Do not edit: run `make docs`. -->",
        f'<title id="title">{escape(data["title"])}</title>',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#4b5563"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#fff"/>',
        text(_WIDTH / 2, 22, data["title"], "title"),
        *(_step(step, at[step["name"]]) for step in steps),
        *(_arrow((x - _GAP + 1, _TOP + 30), (x - 1, _TOP + 30)) for x in list(at.values())[1:]),
        *_host(data, at),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _step(step: Mapping[str, Any], x: float) -> str:
    kind = "proof" if step["name"] == "verify" else "box"
    return "\n".join(
        [_box(step, x, _TOP, kind), text(x + _BOX_WIDTH / 2, _TOP + 94, step["writes"], "file", _BOX_WIDTH)]
    )


def _host(data: Mapping[str, Any], at: Mapping[str, float]) -> list[str]:
    """The lower row: clients, the host with its parts, and the arrows that lead there."""
    wide = _BOX_WIDTH + 2 * _GAP
    first = at["plan"] + 15
    places = [first + number * (wide + 34) for number in range(len(data["host"]["parts"]))]
    gateway, engine, watchdog = places
    serve, verify = (at[name] + _BOX_WIDTH / 2 for name in ("serve", "verify"))
    client, target, end = at["inventory"] + 60, engine + wide / 2, watchdog + wide
    below, above, middle, under = _TOP + 104, _LOWER - 2, _LOWER + _BOX_HEIGHT / 2, _HEIGHT - 14
    return [
        f'<rect class="host" x="{first - 20}" y="{_LOWER - 32}" width="{end - first + 40}" '
        f'height="{_BOX_HEIGHT + 52}" rx="8"/>',
        text(first + 30, _LOWER - 14, data["host"]["title"], "label"),
        _box(data["client"], client, _LOWER, "run"),
        *(_box(part, x, _LOWER, "run", wide) for part, x in zip(data["host"]["parts"], places, strict=True)),
        _arrow((client + _BOX_WIDTH, middle), (gateway - 2, middle)),
        _arrow((gateway + wide, middle), (engine - 2, middle)),
        _arrow((watchdog, middle), (engine + wide + 2, middle)),
        _arrow((serve, below), (serve, below + 24), (target, below + 24), (target, above)),
        text((serve + target) / 2, below + 20, data["starts"], "label"),
        _arrow((verify, below), (verify, above - 10), (target + 30, above - 10), (target + 30, above)),
        text(verify - 60, above - 16, data["proves"], "label"),
        _arrow(
            (verify + 30, below),
            (verify + 30, under),
            (target, under),
            (target, _LOWER + _BOX_HEIGHT + 2),
            kind="arrow back",
        ),
        text((target + verify) / 2 + 15, under - 6, data["back"], "label"),
    ]


def _box(part: Mapping[str, Any], x: float, y: float, kind: str, width: float = _BOX_WIDTH) -> str:
    lines: Sequence[str] = part["does"]
    return "\n".join(
        [
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{_BOX_HEIGHT}" rx="6"/>',
            text(x + width / 2, y + 24, part["name"], "name", width),
            *(text(x + width / 2, y + 44 + 15 * row, line, "does", width) for row, line in enumerate(lines)),
        ]
    )


def _arrow(*points: tuple[float, float], kind: str = "arrow") -> str:
    return f'<path class="{kind}" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def text(x: float, y: float, words: str, kind: str, width: float = _WIDTH) -> str:
    """A line of text centred at x; raises ValueError where it does not fit into `width`."""
    size = {"title": 15, "name": 14}.get(kind, 11)
    if len(words) * size * _WIDEST > width:
        raise ValueError(f"docs/_generate/chain.yml: {words!r} is wider than its box")
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>' if words else ""
