"""Questions about what is written or plotted: handwritten digits, printed words, bar charts."""

from __future__ import annotations

import numpy as np

from internvl.training.demo.drawings import Chart
from internvl.training.demo.labels import LETTERS
from internvl.training.demo.questions import ORDINALS, QA, article, ask
from internvl.training.demo.scenes import COLOURS, pick


def _place(rng: np.random.Generator, length: int) -> tuple[int, str]:
    """An index and its ordinal; the last one has two names."""
    index = int(rng.integers(length))
    if index == length - 1 and length > 1 and rng.random() < 0.6:
        return index, "last"
    return index, ORDINALS[index]


def about_number(rng: np.random.Generator, digits: str, task: str | None = None) -> QA:
    """A question about two or three handwritten digits, which are read from left to right."""
    task = task or pick(rng, ("number", "number", "number", "digit_count", "digit_at",
                              "digit_exist", "describe"))  # fmt: skip
    if task == "number":
        return ask(rng, task, digits)
    if task == "describe":
        return ask(rng, task, f"the number {digits}")
    if task == "digit_count":
        return ask(rng, task, str(len(digits)))
    if task == "digit_at":
        index, name = _place(rng, len(digits))
        return ask(rng, task, digits[index], k=name)
    wanted = sorted(set(digits))
    present = bool(rng.random() < 0.5)
    if not present:
        wanted = [str(v) for v in range(10) if str(v) not in digits]
    return ask(rng, task, "yes" if present else "no", d=pick(rng, wanted))


def letter_article(letter: str) -> str:
    """``an A``, ``a B``: by the sound of the letter's name."""
    return f"an {letter}" if letter in "AEFHILMNORSX" else f"a {letter}"


def about_text(rng: np.random.Generator, text: str, task: str | None = None) -> QA:
    """A question about one printed word or number; the answer is in its capitals."""
    if text.isdigit():
        return ask(rng, "printed_number", text)
    task = task or pick(rng, ("word", "word", "word", "word", "letter_at", "letter_at",
                              "letter_count", "letter_exist", "describe"))  # fmt: skip
    if task == "word":
        return ask(rng, task, text)
    if task == "describe":
        return ask(rng, task, f"the text {text}")
    if task == "letter_count":
        return ask(rng, task, str(len(text)))
    if task == "letter_at":
        index, name = _place(rng, len(text))
        return ask(rng, task, text[index], k=name)
    present = bool(rng.random() < 0.5)
    wanted = [letter for letter in LETTERS if (letter in text) == present]
    letter = pick(rng, wanted)
    return ask(rng, task, "yes" if present else "no", a=letter_article(letter), d=letter)


def about_chart(rng: np.random.Generator, chart: Chart, task: str | None = None) -> QA:
    """A question about a bar chart."""
    task = task or pick(rng, ("highest", "highest", "lowest", "value", "value", "value", "bars",
                              "higher", "bar_at", "exist", "describe"))  # fmt: skip
    order = np.argsort(chart.values)
    if task == "highest":
        return ask(rng, task, chart.colours[int(order[-1])])
    if task == "lowest":
        return ask(rng, task, chart.colours[int(order[0])])
    if task == "bars":
        return ask(rng, task, str(len(chart.values)))
    if task == "describe":
        return ask(rng, task, "a bar chart")
    if task == "value":
        index = _even_value(rng, chart)
        return ask(rng, task, str(chart.values[index]), c=chart.colours[index])
    if task == "bar_at":
        index, name = _place(rng, len(chart.values))
        return ask(rng, task, chart.colours[index], k=name)
    if task == "exist":
        present = bool(rng.random() < 0.5)
        name = f"{pick(rng, [c for c in COLOURS if (c in chart.colours) == present])} bar"
        return ask(rng, task, "yes" if present else "no", a=article(name), p=f"{name}s")
    while True:
        a, b = (int(k) for k in rng.choice(len(chart.values), 2, replace=False))
        if chart.values[a] != chart.values[b]:
            break
    answer = "yes" if chart.values[a] > chart.values[b] else "no"
    return ask(rng, task, answer, c=chart.colours[a], c2=chart.colours[b])


def _even_value(rng: np.random.Generator, chart: Chart) -> int:
    """A bar, each value that occurs being equally likely."""
    value = pick(rng, sorted(set(chart.values)))
    return pick(rng, [k for k, found in enumerate(chart.values) if found == value])
