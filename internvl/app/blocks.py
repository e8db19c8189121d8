"""The page's `gr.Blocks`: the one door through which everything that a visitor sends comes in."""

from __future__ import annotations

from typing import Any

import gradio as gr


class Blocks(gr.Blocks):
    """Refuses URLs in the place of files.

    Gradio downloads whatever a request names as a file, for every kind of component and before
    any function of ours runs.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Hand on what a request brings, if no file in it is a URL."""
        if names_url(inputs):
            raise gr.Error(
                "URLs are not fetched here; please upload the file.", print_exception=False
            )
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def names_url(data: Any) -> bool:
    """Whether anything in a request is a file whose path is a URL."""
    waiting = [data]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            path = each.get("path")
            if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:")):
                return True
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
    return False
