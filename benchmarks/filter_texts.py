"""Clean answers for the corpus of the filtering benchmark, invented by a generator.

Prose of both languages is put together from clauses and word lists, so that no two answers are
near each other; the rest is what answers to images and text are made of: tables, code, LaTeX,
boxes, receipts, verse, lists of numbers. Nobody would read them with profit. What counts is that
they repeat what such texts repeat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

WORDS: dict[str, dict[str, list[str]]] = json.loads(
    Path(__file__).with_name("filter_words.json").read_text(encoding="utf-8")
)


# ---------------------------------------------------------------------- prose
def sentence(rng: Random, language: str) -> str:
    """One sentence."""
    words = WORDS[language]
    text = rng.choice(words["forms"])
    while "{" in text:
        before, _, rest = text.partition("{")
        slot, _, after = rest.partition("}")
        if slot == "k":
            word = str(rng.randint(2, 90))
        elif slot in ("T", "P"):
            word = rng.choice(words[slot.lower()]).capitalize()
        else:
            word = rng.choice(words[slot])
        text = before + word + after
    return text


def sentences(rng: Random, language: str, low: int = 3, high: int = 14) -> list[str]:
    """Several sentences."""
    return [sentence(rng, language) for _ in range(rng.randint(low, high))]


def join(parts: Sequence[str], language: str) -> str:
    """Sentences as one paragraph."""
    return ("" if language == "zh" else " ").join(parts)


def prose(rng: Random, language: str) -> str:
    """One to four paragraphs."""
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    return "\n\n".join(join(sentences(rng, language, 3, 9), language) for _ in range(count))


# ---------------------------------------------------------------------- everything else
def _name(rng: Random, language: str) -> str:
    words = WORDS[language]
    return join([rng.choice(words["a"]), rng.choice(words["n"])], language)


def markdown_table(rng: Random, language: str) -> str:
    """A table of few numbers, many of them zero."""
    columns = rng.randint(3, 6)
    head = [_name(rng, language) for _ in range(columns)]
    rows = [
        [
            _name(rng, language),
            *(str(rng.choice((0, 0, 0, 1, rng.randint(2, 99)))) for _ in head[1:]),
        ]
        for _ in range(rng.randint(4, 16))
    ]
    lines = [head, ["---"] * columns, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def html_table(rng: Random, language: str) -> str:
    """A table in HTML with the same mark in most cells."""
    mark = rng.choice(("Yes", "-", "n/a", "合格"))
    rows = "".join(
        f"<tr><td>{_name(rng, language)}</td>"
        + "".join(
            f"<td>{mark if rng.random() < 0.7 else rng.randint(1, 999)}</td>" for _ in range(4)
        )
        + "</tr>"
        for _ in range(rng.randint(4, 14))
    )
    return f"<table>{rows}</table>"


def code(rng: Random, language: str) -> str:
    """A class of assignments and methods that look alike, with a sentence before and after."""
    names = [_name(rng, "en").replace(" ", "_") for _ in range(rng.randint(4, 12))]
    body = "\n".join(f"        self.{name} = {rng.randint(0, 9)}" for name in names)
    methods = "\n\n".join(
        f"    def get_{name}(self):\n        return self.{name}" for name in names[:4]
    )
    name = rng.choice(WORDS["en"]["n"]).title()
    block = f"```python\nclass {name}:\n    def __init__(self):\n{body}\n\n{methods}\n```"
    return f"{sentence(rng, language)}\n\n{block}\n\n{sentence(rng, language)}"


def latex(rng: Random, language: str) -> str:
    """A sparse matrix, with a sentence before."""
    size = rng.randint(3, 12)
    rows = [
        " & ".join(str(rng.choice((0, 0, 0, 0, rng.randint(1, 9)))) for _ in range(size))
        for _ in range(size)
    ]
    matrix = "\\begin{pmatrix}\n" + " \\\\\n".join(rows) + "\n\\end{pmatrix}"
    return f"{sentence(rng, language)}\n\n$$A = {matrix}$$"


def boxes(rng: Random, language: str) -> str:
    """Grounded objects of one kind."""
    name = _name(rng, language)
    places = [sorted(rng.sample(range(1000), 4)) for _ in range(rng.randint(1, 25))]
    return ", ".join(f"<ref>{name}</ref><box>[{place}]</box>" for place in places)


def json_records(rng: Random, language: str) -> str:
    """Detections as JSON."""
    label = _name(rng, language)
    found = [
        {"label": label, "bbox": [rng.randrange(1000) for _ in range(4)], "score": 0.99}
        for _ in range(rng.randint(3, 20))
    ]
    return json.dumps(found, ensure_ascii=False, indent=rng.choice((None, 2)))


def receipt(rng: Random, language: str) -> str:
    """A receipt or a list of a shop, some lines of it twice."""
    items = [
        f"{rng.randint(1, 3)} x {_name(rng, language)}  {rng.randint(100, 3000) / 100:.2f}"
        for _ in range(rng.randint(5, 12))
    ]
    items += [rng.choice(items) for _ in range(2)]
    rng.shuffle(items)
    total = f"TOTAL  {rng.randint(20, 300)}.00\nVAT  0.00\nTIP  0.00\nCHANGE  0.00"
    head = f"{_name(rng, language).upper()}\n{rng.randint(1, 99)} {_name(rng, 'en').upper()} ST"
    return "\n".join([head, *items, total])


def multiplication(rng: Random, language: str) -> str:
    """A multiplication table."""
    factor, first = rng.randint(2, 999), rng.randint(1, 40)
    sign = "\u00d7" if language == "zh" else "x"
    return "\n".join(
        f"{factor} {sign} {i} = {factor * i}" for i in range(first, first + rng.randint(8, 20))
    )


def verse(rng: Random, language: str) -> str:
    """Stanzas with a refrain between them."""

    verb = partial(rng.choice, WORDS[language]["v"])

    def line() -> str:
        if language == "zh":
            return _name(rng, language) + verb() + _name(rng, language)
        return f"The {_name(rng, language)} {verb()} the {_name(rng, language)},"

    refrain = "\n".join([line() for _ in range(2)])
    stanzas = ["\n".join([line() for _ in range(4)]) for _ in range(rng.randint(2, 4))]
    return f"\n\n{refrain}\n\n".join(stanzas)


def zeros(rng: Random, language: str) -> str:
    """A list with a few ones among zeros, closed."""
    values = [1 if rng.random() < 0.03 else 0 for _ in range(rng.randint(20, 120))]
    return f"{sentence(rng, language)} {values}"


def chart(rng: Random, language: str) -> str:
    """A chart in words: sentences of one form, each with numbers of its own."""
    name, start = _name(rng, language), rng.randint(1950, 2010)
    years = range(start, start + rng.randint(4, 9))
    if language == "zh":
        said = [f"{y}年{name}的数量为{rng.randint(100, 9999)}万件。" for y in years]
    else:
        said = [
            f"In {y}, the {name} counted {rng.randint(100, 9999)} thousand visitors." for y in years
        ]
    return join([*said, sentence(rng, language)], language)


def steps(rng: Random, language: str) -> str:
    """A sum, step by step, with the answer said twice."""
    total, lines = 0, []
    for number in range(1, rng.randint(4, 10)):
        value = rng.randint(10, 999)
        total += value
        lines.append(
            f"第{number}步: 加上{value}, 得到{total}。" if language == "zh"
            else f"Step {number}: add {value}, which makes {total}."
        )  # fmt: skip
    end = f"所以答案是{total}。" if language == "zh" else f"So the answer is {total}."
    return "\n".join([sentence(rng, language), *lines, end, f"$\\boxed{{{total}}}$"])


KINDS: dict[str, tuple[int, Callable[[Random, str], str]]] = {
    "prose": (48, prose),
    "markdown_table": (5, markdown_table),
    "html_table": (4, html_table),
    "code": (6, code),
    "latex": (4, latex),
    "boxes": (5, boxes),
    "json": (4, json_records),
    "receipt": (5, receipt),
    "multiplication": (3, multiplication),
    "verse": (4, verse),
    "zeros": (3, zeros),
    "chart": (5, chart),
    "steps": (4, steps),
}


def answer(rng: Random, language: str, kind: str | None = None) -> tuple[str, str]:
    """(kind, text) of a clean answer; the kind is drawn by its share if none is given."""
    if kind is None:
        shares = [share for share, _ in KINDS.values()]
        kind = rng.choices(list(KINDS), weights=shares)[0]
    return kind, KINDS[kind][1](rng, language)
