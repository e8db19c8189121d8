"""Equations as MathML, which browsers draw themselves: no script and no font is loaded."""

from __future__ import annotations

import re
from html import escape
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert

_TAG = re.compile(r"\s*\\tag\{([^}]*)\}")


def to_mathml(latex: str, display: str = "inline") -> str:
    """The `<math>` element of an equation.

    Raises:
        ValueError: something that latex2mathml does not know, or takes for markup.
    """
    text = convert(latex, display=display)
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"equation {latex!r} makes no XML: {error}") from error
    if left := [part for part in root.itertext() if "\\" in part]:
        raise ValueError(f"equation {latex!r} has {left[0]!r}, which latex2mathml does not know.")
    return text


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    latex = node.astext()
    number = _TAG.search(latex)
    label = f'<span class="number">({escape(number[1])})</span>' if number else ""
    body = to_mathml(_TAG.sub("", latex), display="block")
    writer.body.append(f'<div class="equation">{body}{label}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
