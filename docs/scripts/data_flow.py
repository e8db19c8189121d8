"""The picture of the data flow, docs/images/data_flow.svg and .png.

    python docs/scripts/data_flow.py                # the SVG; needs nothing
    python docs/scripts/data_flow.py --png          # and the PNG, drawn by Chromium
    python docs/scripts/data_flow.py --check        # exit code 1 when the SVG differs

All text stands on a fill of its own, so that the picture can be read on light and on dark pages.
Its numbers are those of config.json at the root, the 78B.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parent.parent
IMAGES = DOCS / "images"
BODY, INK, LINE = "#eef1f6", "#1c2330", "#7d8798"
KINDS = {"data": "#5b6678", "text": "#a8501c", "vision": "#4560c4", "shared": "#1f7a66"}
LEGEND = {
    "text": "text",
    "vision": "vision",
    "shared": "both",
}
ALPHABET = ("N tiles", "C ViT width", "D decoder width", "B samples", "T positions", "V vocabulary")
CARD, HEIGHT, GAP, ROW = 204, 116, 28, 40
MARGIN, NARROW = 8, 112


@dataclass(frozen=True)
class Card:
    """One step: where it stands, what it does, and the shape of what comes out."""

    column: int
    row: int
    kind: str
    title: str
    lines: tuple[str, ...]
    shape: str = ""

    @property
    def x(self) -> int:
        """Left edge; column 0 is narrow."""
        return MARGIN + (NARROW + GAP + (self.column - 1) * (CARD + GAP) if self.column else 0)

    @property
    def y(self) -> int:
        """Upper edge."""
        return MARGIN + self.row * (HEIGHT + ROW)

    @property
    def width(self) -> int:
        """Width."""
        return CARD if self.column else NARROW

    @property
    def height(self) -> int:
        """Height; what is in column 0 feeds both of the first rows."""
        return HEIGHT if self.column else 2 * HEIGHT + ROW


def cards() -> dict[str, Card]:
    """The steps, with the numbers of the checkpoint."""
    config = json.loads((DOCS.parent / "config.json").read_text(encoding="utf-8"))
    vision = config["vision_config"]
    side, patch = vision["image_size"], vision["patch_size"]
    r = round(1 / config["downsample_ratio"])
    patches = (side // patch) ** 2
    tokens = patches // r**2
    pixels, encoded = f"(N, 3, {side}, {side})", f"(N, 1 + {patches}, C)"
    merged, projected = f"(N, {tokens}, {r * r}C)", f"(N, {tokens}, D)"
    found = [
        Card(0, 0, "data", "Messages", ("text,", "images,", "videos", "of all", "turns")),
        Card(1, 0, "shared", "Preprocessor", ("frames, grid, tiles,", "a thumbnail"), pixels),
        Card(2, 0, "vision", "InternViT", (f"patches of {patch} px", "and a class token"), encoded),
        Card(
            3,
            0,
            "vision",
            "Pixel unshuffle",
            (f"{r} x {r} patches are one,", "no class token"),
            merged,
        ),
        Card(4, 0, "vision", "Projector mlp1", ("norm, linear,", "GELU, linear"), projected),
        Card(
            1,
            1,
            "text",
            "Template",
            (f"<IMG_CONTEXT> x {tokens}", "a tile, within <img>"),
            "pieces",
        ),
        Card(
            2,
            1,
            "text",
            "Tokenizer",
            ("control ids by lookup,", "typed tags are text"),
            "(B, T) ids",
        ),
        Card(3, 1, "text", "Embedding", ("of the", "language model"), "(B, T, D)"),
        Card(4, 1, "shared", "Fuse", ("visual tokens for", "<IMG_CONTEXT>"), "(B, T, D)"),
        Card(
            4,
            2,
            "text",
            "Language model",
            ("Qwen2.5, InternLM2.5,", "Llama, Phi-3, Yi"),
            "(B, T, V) logits",
        ),
        Card(3, 2, "data", "Answer", ("text, boxes,", "votes")),
    ]
    return {card.title: card for card in found}


def arrows(found: dict[str, Card]) -> list[tuple[int, int, int, int]]:
    """Lines between the steps: from x, y to x, y."""

    def across(first: str, second: str) -> tuple[int, int, int, int]:
        a, b = found[first], found[second]
        y = b.y + b.height // 2
        return (a.x + a.width, y, b.x, y) if a.x < b.x else (a.x, y, b.x + b.width, y)

    def down(first: str, second: str) -> tuple[int, int, int, int]:
        a, b = found[first], found[second]
        return a.x + a.width // 2, a.y + a.height, b.x + b.width // 2, b.y

    vision = ["Messages", "Preprocessor", "InternViT", "Pixel unshuffle", "Projector mlp1"]
    text = ["Messages", "Template", "Tokenizer", "Embedding", "Fuse"]
    return [
        *starmap(across, [*pairwise(vision), *pairwise(text), ("Language model", "Answer")]),
        *starmap(down, [("Preprocessor", "Template"), *pairwise(["Projector mlp1", "Fuse"])]),
        down("Fuse", "Language model"),
    ]


def size() -> tuple[int, int]:
    """Width and height of the picture."""
    return 2 * MARGIN + NARROW + 4 * (CARD + GAP), 2 * MARGIN + 3 * HEIGHT + 2 * ROW


def render() -> str:
    """The SVG."""
    found = cards()
    width, height = size()
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="title text" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">",
        '<title id="title">Data flow of InternVL 2.5</title>',
        f'<desc id="text">{escape(describe(found))}</desc>',
        f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>',
    ]
    lines += [
        f'<path d="M{x} {y}L{u} {v}" stroke="{LINE}" stroke-width="2" marker-end="url(#tip)"/>'
        for x, y, u, v in arrows(found)
    ]
    for card in found.values():
        lines += _card(card)
    lines += [*_legend(height), "</svg>", ""]
    return "\n".join(lines)


def describe(found: dict[str, Card]) -> str:
    """The picture in words, for those who do not see it."""
    steps = [f"{c.title}: {' '.join(c.lines)} {c.shape}".strip() for c in found.values()]
    return ". ".join(steps) + "."


def _card(card: Card) -> Iterator[str]:
    x, y, width, middle = card.x, card.y, card.width, card.x + card.width // 2
    head, step = 34, 19
    yield (
        f'<rect x="{x}" y="{y}" width="{width}" height="{card.height}" rx="8" fill="{BODY}" '
        f'stroke="{KINDS[card.kind]}" stroke-width="2"/>'
    )
    yield (
        f'<path d="M{x} {y + head}v-{head - 8}q0 -8 8 -8h{width - 16}q8 0 8 8v{head - 8}z" '
        f'fill="{KINDS[card.kind]}"/>'
    )
    yield _text(middle, y + 23, card.title, 16, "#ffffff", 'font-weight="600"')
    room = card.height - head - (26 if card.shape else 0)
    first = y + head + (room - step * (len(card.lines) - 1)) // 2 + 5
    for index, line in enumerate(card.lines):
        yield _text(middle, first + step * index, line, 14, INK)
    if card.shape:
        mono = "font-family=\"ui-monospace, 'DejaVu Sans Mono', monospace\""
        yield _text(middle, y + card.height - 13, card.shape, 14, INK, mono)


def _legend(height: int) -> Iterator[str]:
    """Colours and letters, in the free corner."""
    width, tall = NARROW + 2 * (CARD + GAP), 92
    top = height - MARGIN - tall
    yield f'<rect x="{MARGIN}" y="{top}" width="{width}" height="{tall}" rx="8" fill="{BODY}"/>'
    for index, (kind, name) in enumerate(LEGEND.items()):
        x = MARGIN + 16 + 96 * index
        yield f'<rect x="{x}" y="{top + 12}" width="14" height="14" rx="3" fill="{KINDS[kind]}"/>'
        yield _text(x + 22, top + 24, name, 14, INK, anchor="start")
    for index, part in enumerate(ALPHABET):
        x, y = MARGIN + 16 + 152 * (index % 3), top + 50 + 22 * (index // 3)
        yield _text(x, y, part, 14, INK, anchor="start")


def _text(
    x: int, y: int, text: str, px: int, fill: str, more: str = "", anchor: str = "middle"
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{px}" fill="{fill}" text-anchor="{anchor}" {more}>'
        f"{escape(text)}</text>"
    ).replace(" >", ">")


def draw_png(svg: Path, png: Path, scale: int = 2) -> None:
    """Draw the SVG with Chromium, on nothing.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        raise FileNotFoundError("the PNG needs Chromium: apt-get install chromium")
    width, height = size()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f"<body style='margin:0'>{svg.read_text(encoding='utf-8')}</body>")
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                f"--force-device-scale-factor={scale}",
                f"--window-size={width},{height}",
                "--default-background-color=00000000",
                f"--screenshot={png}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


def main(arguments: list[str]) -> int:
    """Write the picture, or compare it."""
    svg, text = IMAGES / "data_flow.svg", render()
    if "--check" in arguments:
        return 0 if svg.is_file() and svg.read_text(encoding="utf-8") == text else 1
    svg.write_text(text, encoding="utf-8")
    if "--png" in arguments:
        draw_png(svg, IMAGES / "data_flow.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
