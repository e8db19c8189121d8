"""What is on the page, and where. What happens is in events.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from internvl.app import figures
from internvl.app.bounds import Bounds
from internvl.app.engine import Engine
from internvl.app.examples import Example
from internvl.app.options import Options

_LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "\\[", "right": "\\]", "display": True},
]
# Of boxes, in questions; elsewhere Gradio takes what looks like a tag away.
TAGS = ("ref", "box", "quad")
PARTS = [
    ("Tiles and thumbnail", "image"),
    ("Tiles only", "tiles"),
    ("Thumbnail only", "thumbnail"),
]


@dataclass
class Page:
    """The components that events are about.

    Attributes:
        chat: the dialogue.
        box: question and files.
        fresh: the button that begins a new chat.
        meter: use of the context.
        tiles: images as the model gets them.
        words: words of the last answer.
        layer: whose attention is shown.
        part: of the image.
        attention: the map.
        options: settings by their name in `Options`.
    """

    chat: gr.Chatbot
    box: gr.MultimodalTextbox
    fresh: gr.Button
    meter: gr.HTML
    tiles: gr.HTML
    words: gr.Radio
    layer: gr.Dropdown
    part: gr.Dropdown
    attention: gr.HTML
    options: dict[str, Any]


def build(engine: Engine, examples: list[Example]) -> Page:
    """Lay the page out, within a `gr.Blocks`.

    Args:
        engine: the model it is for.
        examples: for the empty chat.
    """
    facts = engine.describe()
    with gr.Row(elem_classes="iv-top"):
        gr.HTML(figures.header(facts), elem_classes="iv-head", padding=False)
        fresh = gr.Button("New chat", size="sm", scale=0, min_width=110, elem_id="new-chat")
    with gr.Row(elem_classes="iv-main", equal_height=False):
        with gr.Column(scale=7, min_width=320, elem_classes="iv-left"):
            chat = _chat(examples)
            box = _box(engine.bounds)
            meter = gr.HTML(figures.meter(None, engine.context), elem_id="meter", padding=False)
        with (
            gr.Column(scale=5, min_width=320, elem_classes="iv-right"),
            gr.Tabs(elem_id="panel"),
        ):
            with gr.Tab("Tiles", id="tiles"):
                tiles = gr.HTML(figures.tiles((), (), 0), elem_id="tiles", padding=False)
            with gr.Tab("Attention", id="attention"):
                words, layer, part, attention = _attention(facts["layers"])
            with gr.Tab("Settings", id="settings"):
                options = _settings(engine)
            with gr.Tab("Model", id="model"):
                gr.HTML(figures.model(facts), elem_id="model", padding=False)
    return Page(chat, box, fresh, meter, tiles, words, layer, part, attention, options)


def _chat(examples: list[Example]) -> gr.Chatbot:
    offered: list[Any] = [
        {
            "text": example.question,
            "display_text": example.title,
            "files": [str(path) for path in example.files],
        }
        for example in examples
    ]
    return gr.Chatbot(
        label="Chat",
        show_label=False,
        elem_id="chat",
        height=None,
        editable="user",
        buttons=["copy"],
        latex_delimiters=_LATEX,
        layout="bubble",
        group_consecutive_messages=False,
        allow_tags=list(TAGS),
        placeholder="## What would you like to know?\nAdd images or videos and ask about them, or "
        "try an example.",
        examples=offered or None,
        feedback_options=None,
    )


def _box(bounds: Bounds) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        label="Your question, with images and videos",
        show_label=False,
        placeholder="Ask about images and videos",
        file_types=["image", "video"],
        file_count="multiple",
        sources=["upload"],
        lines=1,
        max_lines=8,
        max_plain_text_length=bounds.question_characters,
        autofocus=False,
        elem_id="box",
    )


def _attention(layers: int) -> tuple[gr.Radio, gr.Dropdown, gr.Dropdown, gr.HTML]:
    words = gr.Radio(
        [],
        label="Words of the last answer",
        elem_id="words",
        interactive=True,
        visible=False,
    )
    with gr.Row():
        layer = gr.Dropdown(
            [("All layers, averaged", 0), *((f"Layer {n}", n) for n in range(1, layers + 1))],
            value=0,
            label="Layer",
            elem_id="layer",
            min_width=190,
        )
        part = gr.Dropdown(
            PARTS, value="image", label="Attention on", elem_id="part", min_width=190
        )
    attention = gr.HTML(figures.note(figures.NO_WORDS), elem_id="attention", padding=False)
    gr.HTML(
        figures.note("Attention says where a layer read, averaged over its heads, not why."),
        padding=False,
    )
    return words, layer, part, attention


def _settings(engine: Engine) -> dict[str, Any]:
    usual = Options().checked(engine)
    bounds = engine.bounds
    options: dict[str, Any] = {}
    options["max_tiles"] = gr.Slider(
        1,
        max(12, engine.max_tiles),
        value=usual.max_tiles,
        step=1,
        label="Tiles per image",
        info="More tiles show more detail and cost more tokens.",
        elem_id="max-tiles",
    )
    options["num_frames"] = gr.Slider(
        1, bounds.frames, value=usual.num_frames, step=1, label="Frames per video"
    )
    options["max_new_tokens"] = gr.Slider(
        1,
        engine.new_tokens,
        value=usual.max_new_tokens,
        step=1,
        label="Longest answer, in tokens",
        elem_id="max-new-tokens",
    )
    options["cot"] = gr.Checkbox(
        value=False,
        label="Reason step by step",
        info="The report's prompt for reasoning. Allow a long answer.",
        elem_id="cot",
    )
    options["votes"] = gr.Slider(
        1,
        bounds.votes,
        value=1,
        step=1,
        label="Votes",
        info="Sample several answers and keep the majority's.",
        elem_id="votes",
    )
    options["sample"] = gr.Checkbox(
        value=False, label="Sample", info="Otherwise always the likeliest token.", elem_id="sample"
    )
    options |= _sampling(usual)
    options["system_prompt"] = gr.Textbox(
        label="System prompt",
        placeholder=engine.system_message or "none",
        info="Left empty: the checkpoint's own.",
        lines=2,
        max_lines=6,
        elem_id="system-prompt",
    )
    return options


def _sampling(usual: Options) -> dict[str, Any]:
    with gr.Accordion("Sampling", open=False):
        temperature = gr.Slider(0.05, 2, value=usual.temperature, step=0.05, label="Temperature")
        top_p = gr.Slider(0.05, 1, value=usual.top_p, step=0.05, label="Top p")
        penalty = gr.Slider(
            0.8, 2, value=usual.repetition_penalty, step=0.05, label="Repetition penalty"
        )
        seed = gr.Number(
            value=None, precision=0, label="Seed", info="Left empty: another each time."
        )
    return {
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": penalty,
        "seed": seed,
    }


def example_files(page: Page) -> list[Path]:
    """The copies of the examples from which Gradio serves them."""
    found = []
    for example in page.chat.examples or []:
        served = [example.get("icon"), *(example.get("files") or [])]
        found += [Path(each["path"]) for each in served if isinstance(each, dict)]
    return found
