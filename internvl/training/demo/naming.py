"""Questions about named pictures: emoji, flags, photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from internvl.training.demo.labels import Mark
from internvl.training.demo.pictures import EMOJI, FLAGS, PHOTOS, Picture
from internvl.training.demo.questions import QA, article, ask, quadrant
from internvl.training.demo.scenes import Item, pick

_NO_ARTICLE = frozenset(
    ("cherries", "grapes", "glasses", "scissors", "bricks", "coins", "galaxies", "grass", "gravel")
)


def with_article(name: str) -> str:
    """``an apple``, ``scissors``."""
    return name if name in _NO_ARTICLE else article(name)


def about_picture(rng: np.random.Generator, picture: Picture, task: str | None = None) -> QA:
    """A question about a lone emoji, flag or photo."""
    kind, name = picture.kind, picture.name
    if kind == "photo":
        if task == "photo" or rng.random() < 0.7:
            return ask(rng, "photo", name)
        return _is(rng, "emoji_is", name, tuple(PHOTOS), with_article)
    if kind == "flag":
        if task == "flag" or rng.random() < 0.65:
            return ask(rng, "flag", name)
        if rng.random() < 0.25:
            return ask(rng, "describe", f"the flag of {name}")
        return _is(rng, "flag_is", name, tuple(FLAGS.values()), str)
    if task == "emoji" or rng.random() < 0.65:
        return ask(rng, "emoji", name)
    return _is(rng, "emoji_is", name, tuple(EMOJI.values()), with_article)


def _is(
    rng: np.random.Generator,
    task: str,
    name: str,
    names: tuple[str, ...],
    said: Callable[[str], str],
) -> QA:
    present = bool(rng.random() < 0.5)
    shown = name if present else pick(rng, [other for other in names if other != name])
    return ask(rng, task, "yes" if present else "no", a=said(shown), c=shown)


def about_several(
    rng: np.random.Generator, found: Sequence[Picture], marks: Sequence[Mark]
) -> QA | None:
    """A question about two or three emoji in one picture; None when it does not fit."""
    task = pick(rng, ("count", "emoji_where", "emoji_where", "emoji_at", "emoji_at", "emoji_is"))
    names = [picture.name for picture in found]
    if task == "count":
        return ask(rng, task, str(len(found)))
    if task == "emoji_is":
        present = bool(rng.random() < 0.5)
        others = [name for name in EMOJI.values() if name not in names]
        shown = pick(rng, names if present else others)
        phrasing = ask(rng, "exist", "yes" if present else "no", a=with_article(shown), p=shown)
        return None if phrasing.question.startswith("Are") else phrasing
    index = int(rng.integers(len(found)))
    places = [quadrant(Item(mark.x, mark.y, 0.1, (0, 0, 0))) for mark in marks]
    where = places[index]
    if where is None or names.count(names[index]) > 1:
        return None
    if task == "emoji_where":
        return ask(rng, task, where, o=names[index])
    if where == "center" or places.count(where) > 1 or None in places:
        return None
    return ask(rng, task, names[index], k=where)
