"""What stands beside the dialogue, as HTML: tiles, context, attention, facts about the model.

Pictures are written into the page itself, so they are no files that have to be removed. Every text
that comes from a visitor goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from internvl.app.pictures import Sheet, data_url, heat, media_sheets
from internvl.chat.accounting import Account, mebibytes
from internvl.chat.attention_map import Part, WordAttention
from internvl.chat.media import Media
from internvl.chat.tiles_picture import plural

_SHOWN = 12  # images at most; the page would get heavy
NO_TILES = (
    "Add an image or a video. It appears here as the model gets it: cut into tiles, with what it "
    "costs in tokens, before you ask."
)
NO_WORDS = "Ask about an image first. Then choose a word of the answer to see where it came from."
CHOOSE = "Choose a word of the last answer."


def count(number: int) -> str:
    """A number with separators."""
    return f"{number:,}"


def note(text: str) -> str:
    """A quiet remark in place of what is not there yet."""
    return f'<p class="iv-note">{escape(text)}</p>'


def problem(text: str) -> str:
    """What keeps a question from being asked."""
    return f'<p class="iv-problem" role="alert">{escape(text)}</p>'


# ---------------------------------------------------------------------- context
def meter(account: Account | None, context: int) -> str:
    """How much of the context a question would take, as a bar and in numbers.

    Args:
        account: of the question; None for an empty dialogue.
        context: positions of the model.
    """
    if account is None:
        return (
            '<div class="iv-meter"><div class="iv-bar"></div><div class="iv-legend">'
            f"<span>Context of {count(context)} tokens, empty</span></div></div>"
        )
    needed = account.prompt_tokens + account.max_new_tokens
    parts = (
        ("visual", account.visual_tokens, "from images"),
        ("text", account.text_tokens, "of text"),
        ("answer", account.max_new_tokens, "kept for the answer"),
    )
    scale = 100 / max(context, needed, 1)
    bars = "".join(
        f'<span class="iv-{name}" style="width:{size * scale:.2f}%"></span>'
        for name, size, _ in parts
    )
    legend = "".join(
        f'<span><i class="iv-{name}"></i>{count(size)} {what}</span>' for name, size, what in parts
    )
    over = " iv-over" if account.excess else ""
    head = f"{count(needed)} of {count(context)} tokens"
    if account.excess:
        head += f": {count(account.excess)} too many"
    return (
        f'<div class="iv-meter{over}"><div class="iv-bar" role="meter" aria-label="Context" '
        f'aria-valuemin="0" aria-valuemax="{context}" aria-valuenow="{min(needed, context)}" '
        f'aria-valuetext="{escape(head)}">{bars}</div>'
        f'<div class="iv-legend"><b>{escape(head)}</b>{legend}</div></div>'
    )


# ---------------------------------------------------------------------- tiles
def tiles(waiting: Sequence[Media], asked: Sequence[Media], tokens_per_tile: int) -> str:
    """Images and videos as the model gets them.

    Args:
        waiting: of the question that is being written.
        asked: of the dialogue.
        tokens_per_tile: visual tokens Q.
    """
    sections = []
    seen: set[int] = set()
    for title, group in (("Next question", waiting), ("In this chat", asked)):
        distinct = [each for each in group if id(each) not in seen]
        seen |= {id(each) for each in distinct}
        if not distinct:
            continue
        total = sum(sum(each.num_tiles) for each in group)
        sections.append(
            f"<h3>{title}<small>{plural(total, 'tile')} = {count(total * tokens_per_tile)} "
            "tokens</small></h3>"
        )
        latest = distinct[::-1][:_SHOWN]
        sections += [_tiling(each, tokens_per_tile) for each in latest]
        if len(distinct) > len(latest):
            sections.append(note(f"and {len(distinct) - len(latest)} earlier ones"))
    return f'<div class="iv-tiles">{"".join(sections)}</div>' if sections else note(NO_TILES)


def _tiling(media: Media, tokens_per_tile: int) -> str:
    sheet, thumbnail = media_sheets(media)
    number, tiling = sum(media.num_tiles), media.tiling
    cost = f"{count(number * tokens_per_tile)} tokens"
    if tiling is None:
        frames, side = plural(number, "frame"), media.pixel_values.shape[-1]
        facts = f"{frames} of {side} px, each one tile"
        alt = f"{frames} of the video {media.label}"
    else:
        facts = f"{tiling.image.width} × {tiling.image.height} px → "  # noqa: RUF001
        single = tiling.rows * tiling.cols == 1
        facts += f"{'one tile' if single else tiling.grid()} of {tiling.side} px"
        alt = f"{media.label} cut into {plural(sheet.rows * sheet.cols, 'tile')}"
    pictures = _sheet(sheet, 1, sheet.rows * sheet.cols if tiling else number, alt)
    if thumbnail is not None:
        pictures += _sheet(thumbnail, number, 1, f"Thumbnail of {media.label}", "thumbnail")
    kind = "image" if tiling is not None else "video"
    return (
        f'<figure class="iv-media iv-{kind}"><div class="iv-sheets">{pictures}</div><figcaption>'
        f"<b>{escape(media.label)}</b><span>{escape(facts)}</span>"
        f'<span class="iv-cost">{plural(number, "tile")} = {cost}</span></figcaption></figure>'
    )


def _sheet(sheet: Sheet, first: int, cells: int, alt: str, label: str = "") -> str:
    """A picture of tiles with their numbers on it."""
    numbers = "".join(f"<b>{first + index} {label}</b>" for index in range(cells))
    ratio = sheet.picture.width / sheet.picture.height
    return (
        f'<div class="iv-sheet iv-{label or "grid"}" style="--cols:{sheet.cols};'
        f'--rows:{sheet.rows};aspect-ratio:{ratio:.4f};flex-grow:{sheet.cols};">'
        f'<img src="{data_url(sheet.picture)}" alt="{escape(alt)}">'
        f'<div aria-hidden="true">{numbers}</div></div>'
    )


# ---------------------------------------------------------------------- attention
def attention(seen: WordAttention, layer: int | None, part: Part) -> str:
    """Attention of a word on the images, drawn on them, with the share that each received.

    Args:
        seen: of `Visitor.attention`.
        layer: one of the layers; None for the mean of all.
        part: tiles, thumbnail, or both together.
    """
    shares = [float(weights.sum()) for weights in seen.on_tiles(layer)]
    total = f"{sum(shares):.0%}"
    head = (
        f"<p>While it wrote <q>{escape(seen.word.text)}</q>, {total} of the attention was on "
        f"{'the image' if len(shares) == 1 else 'the images'}, the rest on the text.</p>"
    )
    figures = []
    maps = seen.maps(layer)
    parts = [cells.of(available(part, cells.thumbnail is not None)) for m in maps for cells in m]
    peak = max(float(values.max()) for values in parts)  # one scale for all pictures
    for media, cells, share in zip(seen.media, maps, shares, strict=True):
        pictures = []
        for index, each in enumerate(cells):
            if media.tiling is None:
                frame = media.pixel_values[index].permute(1, 2, 0).contiguous().numpy()
                picture = _from_array(frame)
            else:
                picture = media.tiling.image
            shown = heat(picture, each, available(part, each.thumbnail is not None), peak)
            place = f"frame {index + 1} of {media.label}" if media.is_video else media.label
            alt = f"Attention of the word {seen.word.text} on {place}"
            pictures.append(f'<img src="{data_url(shown)}" alt="{escape(alt)}">')
        kind = "video" if media.is_video else "image"
        figures.append(
            f'<figure class="iv-media iv-{kind}"><div class="iv-heat">{"".join(pictures)}</div>'
            f'<figcaption><b>{escape(media.label)}</b><span class="iv-cost">{share:.1%}</span>'
            "</figcaption></figure>"
        )
    scale = '<div class="iv-scale"><span>least</span><i></i><span>most</span></div>'
    return f'<div class="iv-attention">{head}{"".join(figures)}{scale}</div>'


def available(part: Part, thumbnail: bool) -> Part:
    """An image of one tile has no thumbnail; what was asked for is then the tile."""
    return part if thumbnail or part == "image" else "tiles"


def _from_array(array: Any) -> Any:
    from PIL import Image

    return Image.fromarray(array)


# ---------------------------------------------------------------------- model
def header(facts: dict[str, Any]) -> str:
    """Name of the model and what it runs on."""
    chips = (size(facts["parameters"]["total"]), facts["dtype"], facts["device"])
    shown = "".join(f"<span>{escape(chip)}</span>" for chip in chips)
    mark = "".join(f'<rect x="{x}" y="{y}" width="9" height="9" rx="2"/>' for x, y in _MARK)
    return (
        f'<div class="iv-header"><svg viewBox="0 0 24 24" aria-hidden="true">{mark}</svg>'
        f'<h1>{escape(facts["name"])}</h1><div class="iv-chips">{shown}</div></div>'
    )


_MARK = ((1, 1), (14, 1), (1, 14), (14, 14))


def model(facts: dict[str, Any]) -> str:
    """A table of the model's facts."""
    counts = facts["parameters"]
    parts = ", ".join(f"{name} {size(n)}" for name, n in counts.items() if name != "total")
    per_token = facts["kv_bytes_per_token"]
    rows = {
        "Checkpoint": facts["name"],
        "Parameters": f"{size(counts['total'])}: {parts}",
        "Vision encoder": facts["vision_encoder"],
        "Language model": facts["language_model"],
        "Context": f"{count(facts['context'])} tokens, {mebibytes(facts['context'] * per_token)} "
        "of keys and values when full",
        "Tiles": f"{facts['tile_size']} px = {facts['tokens_per_tile']} tokens each, up to "
        f"{facts['max_tiles']} and a thumbnail by default",
        "Prompt template": facts["template"],
        "System prompt": facts["system_prompt"] or "none",
        "Runs on": f"{facts['device']}, {facts['dtype']}, {facts['attention']} attention",
    }
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f'<table class="iv-facts"><tbody>{body}</tbody></table>'


def size(parameters: int) -> str:
    """A number of parameters for people: 6.3 M, 8.1 B."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f} B"
    return f"{parameters / 1e6:.1f} M"
