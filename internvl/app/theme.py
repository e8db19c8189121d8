"""Colours and fonts: those of the system, so that nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STYLES = [Path(__file__).with_name(name) for name in ("style.css", "chat.css")]
_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_LIGHT = {
    "body_background_fill": "#f6f7f9",
    "body_text_color_subdued": "*neutral_500",
    "block_info_text_color": "*neutral_500",
    "input_placeholder_color": "*neutral_500",
    "block_border_width": "1px",
    "block_shadow": "none",
    "block_radius": "12px",
    "button_large_radius": "10px",
    "button_small_radius": "8px",
    "input_radius": "10px",
    "block_label_text_weight": "500",
    "block_title_text_weight": "500",
}
_DARK = {
    "body_background_fill_dark": "#0e1116",
    "body_text_color_subdued_dark": "*neutral_400",
    "block_info_text_color_dark": "*neutral_400",
    "input_placeholder_color_dark": "*neutral_400",
    "block_background_fill_dark": "#161b22",
    "block_border_color_dark": "#2b3240",
    "border_color_primary_dark": "#2b3240",
    "background_fill_primary_dark": "#161b22",
    "background_fill_secondary_dark": "#1c222c",
    "input_background_fill_dark": "#0e1116",
}


def theme() -> Any:
    """The theme of the app, for light and dark."""
    import gradio as gr

    base = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=list(_SANS),
        font_mono=list(_MONO),
    )
    return base.set(**_LIGHT, **_DARK)
