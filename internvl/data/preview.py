"""A page to look at samples as a model will see them: pictures, turns, and what is learnt.

One HTML file without anything from elsewhere. Tokens that are learnt are tinted, one box a token;
the ids are in the tooltips; runs of visual tokens are written as a number.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from internvl.data.examples import Example, ExampleMaker
from internvl.data.mixture import Mixture
from internvl.data.render import NO_RESPONSE
from internvl.data.schema import DataError

_SIDE = 128
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --learnt: #ffd76e; --line: #8884; }}
@media (prefers-color-scheme: dark) {{ :root {{ --learnt: #7a5a00; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
section {{ border-top: 1px solid var(--line); padding: 1rem 0; }}
h2 {{ font-size: 1rem; margin: 0 0 .3rem; }}
p {{ margin: .3rem 0; opacity: .75; }}
img {{ width: {side}px; height: {side}px; margin: 2px; border: 1px solid var(--line); }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; line-height: 1.9; }}
pre span {{ border: 1px solid var(--line); border-radius: 3px; }}
pre .learnt {{ background: var(--learnt); }}
pre .visual {{ opacity: .6; }}
</style>
<h1>{title}</h1>
<p>What is <span style="background: var(--learnt)">tinted</span> is learnt. A box is a token, its
number is in the tooltip; thin lines part the tiles of the images.</p>
{body}
</html>
"""


def write_preview(
    path: str | Path, mixture: Mixture, maker: ExampleMaker, tokenizer: Any, samples: int = 6
) -> Path:
    """Write a page of the first samples of each dataset, in the order of training.

    Args:
        path: HTML file.
        mixture: the datasets.
        maker: makes the examples.
        tokenizer: of the checkpoint.
        samples: of each dataset; those that cannot be used show why.
    """
    body = []
    for index, spec in enumerate(mixture.specs):
        rows = mixture.first_rows(index, samples)
        body += [_section(mixture, maker, tokenizer, (index, row, 0), spec.name) for row in rows]
    page = _PAGE.format(title="Training samples", body="\n".join(body), side=_SIDE)
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _section(
    mixture: Mixture, maker: ExampleMaker, tokenizer: Any, key: tuple[int, int, int], name: str
) -> str:
    head = f"<h2>{html.escape(name)}: {html.escape(mixture.where(key))}</h2>"
    try:
        sample, spec = mixture.sample(key)
        example = maker.make(sample, spec, mixture.rng(0, key), key)
    except DataError as error:
        reason = f"left out ({error.reason}): {error}"
        return f"<section>{head}<p>{html.escape(reason)}</p></section>"
    share = example.supervised / example.tokens
    counts = (
        f"{example.tokens:,} tokens, {example.supervised:,} learnt ({share:.1%}) in "
        f"{int(example.response.max()) + 1} answers, {example.num_tiles} tiles"
    )
    tiles = "".join(f'<img alt="tile" src="{_data_url(tile)}">' for tile in example.tiles[:64])
    tokens = "".join(_tokens(example, maker.context_id, tokenizer))
    return f"<section>{head}<p>{counts}</p>{tiles}<pre>{tokens}</pre></section>"


def _data_url(tile: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(tile).resize((_SIDE, _SIDE)).save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _tokens(example: Example, context_id: int, tokenizer: Any) -> Iterator[str]:
    """The tokens as boxes; a token that is part of a character shows as its bytes do."""
    pairs = zip(example.input_ids.tolist(), example.response.tolist(), strict=True)
    for visual, group in groupby(pairs, key=lambda pair: pair[0] == context_id):
        if visual:
            count = len(list(group))
            yield f'<span class="visual">&lt;IMG_CONTEXT&gt; x {count}</span>'
            continue
        for token, response in islice(group, None):
            text = html.escape(tokenizer.decode([token], skip_special_tokens=False))
            learnt = response != NO_RESPONSE
            hint = f"{token}, answer {response + 1}" if learnt else f"{token}"
            shown = text.replace("\n", "\u21b5\n") or "&nbsp;"
            yield f'<span title="{hint}"{" class=learnt" if learnt else ""}>{shown}</span>'
