"""A seeded corpus with known defects, to measure what the filtering rules find.

Of 20,000 samples a part has one of twelve defects, modelled on report Figure 6 and section 4.3, of
a strength that is drawn too: a sentence comes 3 to 20 times, zeros run for 150 to 2,000 characters.
The other samples are clean (`filter_texts`). Rows have the official format, so that the pipeline
can read what the rules judge here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import filter_texts as texts
import harness  # noqa: F401  (puts the repository on the path)

from internvl.filtering.verdict import Record, Said

_SCRIPTS = ("горождай", "مرحبا", "สวัสดี", "שלום", "안녕하", "नमस्ते", "ქართული")
_REFUSALS = {
    "en": (
        "I'm sorry, but I can't assist with that.",
        "I apologize, but I cannot provide a description of this image.",
        "As an AI language model, I do not have access to the file you mention.",
        "Sorry, I am unable to view images. Could you describe it?",
        "I cannot fulfill this request.",
        "Unfortunately, I am not able to identify the people in the picture.",
    ),
    "zh": (
        "很抱歉, 我无法查看图片。",
        "作为一个人工智能语言模型, 我没有办法访问这个文件。",
        "对不起, 我不能回答这个问题。",
        "我无法识别图片中的人物。",
    ),
}
_EMPTY = ("", " ", "...", "……", "\n\n", "nan", "<think></think>")


@dataclass(frozen=True)
class Labelled:
    """A sample and what is wrong with it.

    Attributes:
        record: the sample.
        kind: of its answer.
        defect: name of the defect; None if it is clean.
    """

    record: Record
    kind: str
    defect: str | None


@dataclass
class Draft:
    """A sample in the making: what defects change."""

    parts: list[str]
    language: str
    question: str
    images: list[str]

    @property
    def answer(self) -> str:
        """Its sentences as one text."""
        return texts.join(self.parts, self.language)


def _pick(rng: Random, draft: Draft) -> str:
    """A sentence of the answer that is long enough to be missed by nobody."""
    return rng.choice([part for part in draft.parts if len(part) >= 12] or draft.parts)


def _cut(rng: Random, text: str) -> str:
    return text[: rng.randint(len(text) // 4, 3 * len(text) // 4)] + rng.choice(("", "...", "…"))


Defect = Callable[[Random, Draft], str]


# ---------------------------------------------------------------------- defects
def suffix_loop(rng: Random, draft: Draft) -> str:
    """A sentence to the end, cut mostly (Figure 6, first example)."""
    said = _pick(rng, draft)
    tail = _cut(rng, said) if rng.random() < 0.7 else said
    return texts.join([*draft.parts, *[said] * rng.randint(3, 20), tail], draft.language)


def phrase_loop(rng: Random, draft: Draft) -> str:
    """A few words to the end."""
    said = _pick(rng, draft)
    if draft.language == "zh":
        phrase = said[: rng.randint(3, 8)]
    else:
        phrase = " ".join(said.split()[: rng.randint(2, 5)]) + " "
    return texts.join([draft.answer, phrase * rng.randint(12, 60)], draft.language).rstrip()


def inner_loop(rng: Random, draft: Draft) -> str:
    """A sentence again and again, and then the answer goes on."""
    place = rng.randrange(1, len(draft.parts))
    loop = [_pick(rng, draft)] * rng.randint(3, 12)
    return texts.join([*draft.parts[:place], *loop, *draft.parts[place:]], draft.language)


def near_loop(rng: Random, draft: Draft) -> str:
    """Sentences that differ in two places only (Figure 6, third example)."""
    words = texts.WORDS[draft.language]
    if draft.language == "zh":
        form = "因为{a}的{n}位于" + rng.choice(words["p"]) + ", 所以{a}的人们都会去那里看一看。"
    else:
        form = "Since the {a} {n} lies " + rng.choice(words["p"]) + ", it is {a} for the people."
    few = rng.sample(words["a"], 2), rng.sample(words["n"], 2)
    count = rng.randint(8, 25)
    loop = [form.format(a=rng.choice(few[0]), n=rng.choice(few[1])) for _ in range(count)]
    return texts.join([*draft.parts[:4], *loop], draft.language)


def repeated_lines(rng: Random, draft: Draft) -> str:
    """A line after every other."""
    said = _pick(rng, draft)
    others = [part for part in draft.parts if part != said]
    count = rng.randint(3, 8)
    lines = [line for part in (others * 3)[:count] for line in (said, part)]
    return "\n".join([*lines, said])


def repeated_paragraphs(rng: Random, draft: Draft) -> str:
    """Paragraphs that come back."""
    middle = max(1, len(draft.parts) // 2)
    halves = [texts.join(h, draft.language) for h in (draft.parts[:middle], draft.parts[middle:])]
    return "\n\n".join((halves * rng.randint(2, 4))[: rng.randint(3, 8)])


def character_run(rng: Random, draft: Draft) -> str:
    """Zeros, another character, or a few, without end."""
    length = rng.randint(160, 2000)
    run = rng.choice(("0", "0", "0", "a", "哈", "9", "ab", "12", "xyz", "0 ", "0, "))
    if run in ("0 ", "0, "):
        length = rng.randint(600, 2000)
    return draft.answer + " " + (run * length)[:length]


def mixed_scripts(rng: Random, draft: Draft) -> str:
    """Pieces of other alphabets inside the words."""
    pieces = list(draft.answer) if draft.language == "zh" else draft.answer.split(" ")
    for place in rng.sample(range(len(pieces)), max(8, len(pieces) // 5)):
        script, other = rng.sample(_SCRIPTS, 2)
        pieces[place] += script[: rng.randint(1, 3)] + other[: rng.randint(1, 3)]
    return ("" if draft.language == "zh" else " ").join(pieces)


def broken_markup(rng: Random, draft: Draft) -> str:
    """Something that opens and does not close."""
    open_ends = (
        "\n```python\nprint('{n}')",
        "\n<table><tr><td>{n}</td><td>12",
        " <ref>{n}</ref><box>[[12, 40, 300, 410]]",
        " $$\\begin{{pmatrix}} 1 & 2 \\\\ 3 & 4",
        " It is $\\frac{{1}}{{2 + \\sqrt{{{n}}}$ then.",
        " <think>{n}",
        " \\[ x^2 + {n}",
    )
    return draft.answer + rng.choice(open_ends).format(n=rng.choice(texts.WORDS["en"]["n"]))


def no_answer(rng: Random, draft: Draft) -> str:
    """Nothing, or a refusal."""
    return rng.choice(_EMPTY if rng.random() < 0.5 else _REFUSALS[draft.language])


def wrong_tags(rng: Random, draft: Draft) -> str:
    """Tags that do not fit the images."""
    tags = rng.randint(2, 4)
    draft.question = "<image>\n" * tags + draft.question
    draft.images = [f"extra/{rng.randrange(10**9)}.jpg"] * rng.choice((0, 1, tags + 1))
    return draft.answer


REPETITION: dict[str, Defect] = {
    "suffix_loop": suffix_loop,
    "phrase_loop": phrase_loop,
    "inner_loop": inner_loop,
    "near_loop": near_loop,
    "repeated_lines": repeated_lines,
    "repeated_paragraphs": repeated_paragraphs,
    "character_run": character_run,
}
OTHERS: dict[str, Defect] = {
    "mixed_scripts": mixed_scripts,
    "broken_markup": broken_markup,
    "no_answer": no_answer,
    "wrong_tags": wrong_tags,
}
DUPLICATE = "duplicate"  # an earlier sample again; it is made by `build`, which knows them
DEFECTS = (*REPETITION, *OTHERS, DUPLICATE)
# The rules that are meant to find a defect; any of them counts.
EXPECTED: dict[str, tuple[str, ...]] = {
    "suffix_loop": ("suffix_loop",),
    "phrase_loop": ("suffix_loop",),
    "inner_loop": ("inner_loop", "suffix_loop"),
    "near_loop": ("near_loop",),
    "repeated_lines": ("duplicate_lines",),
    "repeated_paragraphs": ("duplicate_paragraphs",),
    "character_run": ("zero_run", "character_run"),
    "mixed_scripts": ("mixed_scripts",),
    "broken_markup": ("unbalanced_markup",),
    "no_answer": ("empty_answer", "refusal"),
    "wrong_tags": ("tag_count",),
    "duplicate": ("exact_duplicate", "near_duplicate"),
}


# ---------------------------------------------------------------------- corpus
def build(samples: int = 20_000, *, rate: float = 0.1, seed: int = 0) -> Iterator[Labelled]:
    """The corpus.

    Args:
        samples: how many.
        rate: part of them that has a defect.
        seed: the same seed gives the same corpus.
    """
    rng = Random(seed)
    earlier: list[Labelled] = []
    for number in range(samples):
        name = None
        if rng.random() < rate:
            name = rng.choice(DEFECTS)
        if name == DUPLICATE and earlier:
            made = _copied(rng, rng.choice(earlier), number)
        else:
            made = _made(rng, number, None if name == DUPLICATE else name)
        if made.defect is None and made.kind == "prose" and len(earlier) < 2000:
            earlier.append(made)
        yield made


def _made(rng: Random, number: int, defect: str | None) -> Labelled:
    language = rng.choice(("en", "zh"))
    question = "请详细回答: " if language == "zh" else "Please answer in detail: "
    draft = Draft([], language, question + texts.sentence(rng, language), [])
    if rng.random() < 0.5:
        draft.images = [f"images/{number}.jpg"]
    if defect is None:
        kind, answer = texts.answer(rng, language)
    else:
        kind = "prose"
        draft.parts = texts.sentences(rng, language, 3, 12)
        answer = {**REPETITION, **OTHERS}[defect](rng, draft)
    if draft.images and "<image>" not in draft.question:
        draft.question = "<image>\n" + draft.question
    return Labelled(_record(number, draft.question, answer, draft.images), kind, defect)


def _copied(rng: Random, original: Labelled, number: int) -> Labelled:
    row = copy.deepcopy(dict(original.record.row))
    question, answer = (turn["value"] for turn in row["conversations"])
    if rng.random() < 0.5:
        answer = answer.replace("\n\n", "\n \n") + " "
    else:  # one sentence in a long answer is another
        answer += " " + texts.sentence(rng, "en")[: len(answer) // 25]
    images = row.get("image") or []
    return Labelled(_record(number, question, answer, images), original.kind, DUPLICATE)


def _record(number: int, question: str, answer: str, images: list[str]) -> Record:
    row: dict[str, Any] = {
        "id": number,
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
        ],
    }
    if images:
        row["image"] = images
    turns = (Said("user", question), Said("assistant", answer))
    return Record(turns, "seeded", f"seeded.jsonl:{number + 1}", len(images), 0, str(number), row)
