"""What do the filtering rules find and lose, and how many samples a second do they judge?

    python benchmarks/filtering.py [--json] [--rounds 5] [--full] [--smoke]

20,000 samples of `filter_corpus.py`, a tenth of them with one of twelve defects. Per defect: the
share that is found, by any rule, and by the rule that is meant to. Per rule: the share of its flags
that stand on a defect. Then the two numbers that count, at several rates: injected repetition
removed, and clean samples lost. Corpus and rules are by the same authors, so the second table is of
texts that nobody wrote for this: docstrings of Python's standard library, as they are, and with the
repetitive defects injected. `--full` adds the rates 1 %, 5 % and 20 %.

Time is of the rules only, one process against two. Peer: datatrove's GopherRepetitionFilter on the
answers, with our units for words (its own tokenizers need spaCy), where datatrove is installed.
"""

from __future__ import annotations

import ast
import multiprocessing
import sysconfig
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import filter_corpus
from filter_corpus import DEFECTS, EXPECTED, REPETITION, Draft, Labelled
from harness import Record, amount, compare, entry, interleave, require

from internvl.filtering.near_duplicates import find_duplicates
from internvl.filtering.rules import build, check
from internvl.filtering.rules import text as units
from internvl.filtering.verdict import Record as Sample
from internvl.filtering.verdict import Said

QUESTION = "defects found, clean samples lost, and speed of the filtering rules"
REMOVED, LOST, FASTER = 98.0, 1.0, 1.5


# ---------------------------------------------------------------------- what is found
def flags_of(corpus: Sequence[Labelled]) -> list[set[str]]:
    """The rules that flag each sample, those on duplicates among them."""
    rules = build()
    found = [{verdict.rule for verdict in check(each.record, rules)} for each in corpus]
    place = {each.record.key: number for number, each in enumerate(corpus)}
    for key, verdict in find_duplicates(each.record for each in corpus):
        found[place[key]].add(verdict.rule)
    return found


def percent(part: int, whole: int) -> float:
    """100 for nothing of nothing."""
    return 100 * part / whole if whole else 100.0


def summary_rows(
    name: str, corpus: Sequence[Labelled], found: Sequence[set[str]]
) -> list[dict[str, Any]]:
    """The two numbers that count."""
    pairs = list(zip(corpus, found, strict=True))
    repetitive = [flags for each, flags in pairs if each.defect in REPETITION]
    clean = [flags for each, flags in pairs if each.defect is None]
    removed, lost = sum(map(bool, repetitive)), sum(map(bool, clean))
    return [
        amount(
            f"{name}: repetition", percent(removed, len(repetitive)), "% removed",
            at_least=REMOVED, samples=len(repetitive),
        ),
        amount(
            f"{name}: clean", percent(lost, len(clean)), "% lost", at_most=LOST, samples=len(clean)
        ),
    ]  # fmt: skip


def detail_rows(corpus: Sequence[Labelled], found: Sequence[set[str]]) -> list[dict[str, Any]]:
    """Recall by defect, precision by rule."""
    rows, pairs = [], list(zip(corpus, found, strict=True))
    for defect in DEFECTS:
        flags = [each for sample, each in pairs if sample.defect == defect]
        meant = sum(bool(each & set(EXPECTED[defect])) for each in flags)
        note = f"{percent(meant, len(flags)):.1f} % by {' or '.join(EXPECTED[defect])}"
        recall = percent(sum(map(bool, flags)), len(flags))
        rows.append(amount(f"defect {defect}", recall, "% found", samples=len(flags), note=note))
    right, flagged = Counter[str](), Counter[str]()
    for sample, each in pairs:
        flagged.update(each)
        right.update(each if sample.defect else ())
    for rule in flagged:
        share = percent(right[rule], flagged[rule])
        rows.append(amount(f"rule {rule}", share, "% of its flags right", flags=flagged[rule]))
    return rows


# ---------------------------------------------------------------------- texts of others
def docstrings(limit: int) -> Iterator[str]:
    """Docstrings of 200 characters and more of Python's standard library, without its tests."""
    library, count = Path(sysconfig.get_paths()["stdlib"]), 0
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
    for path in sorted(library.rglob("*.py")):
        if skipped & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) >= 200:
                    yield text
                    count += 1
                    if count == limit:
                        return


def injected(docs: Sequence[str], seed: int = 0) -> list[Labelled]:
    """Docstrings as they are, and each of them once more with a repetitive defect."""
    rng, made = Random(seed), []
    for number, text in enumerate(docs):
        made.append(_labelled(text, number, None))
        parts = [piece.text for piece in units.view(text).sentences]
        if len(parts) >= 3:
            name = rng.choice(list(REPETITION))
            answer = REPETITION[name](rng, Draft(parts, "en", "", []))
            made.append(_labelled(answer, len(docs) + number, name))
    return made


def _labelled(text: str, number: int, defect: str | None) -> Labelled:
    turns = (Said("user", f"Explain number {number}."), Said("assistant", text))
    return Labelled(Sample(turns, key=str(number)), "docstring", defect)


# ---------------------------------------------------------------------- speed
def judge(samples: Sequence[Sample]) -> int:
    """How many of the samples are flagged; what a process does."""
    rules = build()
    return sum(bool(check(sample, rules)) for sample in samples)


def speed_rows(samples: Sequence[Sample], rounds: int) -> list[dict[str, Any]]:
    """Samples a second of one process, and wall time of two against it."""
    parts = [samples[0::2], samples[1::2]]
    one, two = [], []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(judge, [part[:10] for part in parts])  # the processes import what they need
        for _ in range(rounds):
            one.append(_seconds(partial(judge, samples)))
            two.append(_seconds(partial(pool.map, judge, parts, 1)))
    rates = sorted(len(samples) / seconds for seconds in one)
    ratios = sorted(a / b for a, b in zip(one, two, strict=True))
    spread = [round(rates[0]), round(rates[-1])]
    return [
        amount("one process", rates[rounds // 2], "samples/s, wall", spread=spread),
        amount(
            "two processes", ratios[rounds // 2], "x one process, wall", at_least=FASTER,
            spread=[round(ratios[0], 2), round(ratios[-1], 2)],
            note="samples are sent to the processes within the time",
        ),
    ]  # fmt: skip


def _seconds(call: partial[Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peer_rows(corpus: Sequence[Labelled], rounds: int) -> list[dict[str, Any]]:
    """datatrove's filter: what it finds and loses, and its time."""
    if find_spec("datatrove") is None:
        return []
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherRepetitionFilter

    from internvl.filtering.near_duplicates import unit_tokenizer

    gopher = GopherRepetitionFilter(language=unit_tokenizer())
    documents = [Document(each.record.turns[1].text, each.record.key) for each in corpus]

    def filter_all() -> list[set[str]]:
        kept = [gopher.filter(document) is True for document in documents]
        return [set() if keep else {"gopher"} for keep in kept]

    rows = summary_rows("peer Gopher", corpus, filter_all())
    rows = [{**row, "target": None, "met": None} for row in rows]
    samples = [each.record for each in corpus]
    timings = interleave({"ours": partial(judge, samples), "peer": filter_all}, rounds, warm_up=0)
    name = "datatrove GopherRepetition"
    return [*rows, compare("all rules", timings["ours"], timings["peer"], peer_name=name)]


# ---------------------------------------------------------------------- all of it
def measure(options: Namespace) -> dict[str, Any]:
    """Build the corpora, judge them, time the judging."""
    record = Record("filtering", QUESTION, options)
    size = 400 if options.smoke else 20_000
    equality: dict[str, Any] = {}
    for rate in (0.1, 0.01, 0.05, 0.2) if options.full else (0.1,):
        corpus = list(filter_corpus.build(size, rate=rate))
        again = list(filter_corpus.build(min(size, 500), rate=rate))
        equality[f"{rate:.0%}: the same corpus again"] = again == corpus[: len(again)]
        found = flags_of(corpus)
        record.add(*summary_rows(f"{rate:.0%} defects", corpus, found))
        if rate == 0.1:
            record.add(*detail_rows(corpus, found))
            timed = corpus[: 200 if options.smoke else 4000]
    own = injected(list(docstrings(40 if options.smoke else 100_000)))
    record.add(*summary_rows("docstrings", own, flags_of(own)))
    record.add(*speed_rows([each.record for each in timed], options.rounds))
    record.add(*peer_rows(timed, options.rounds))
    return record.finish(equality=require(equality), samples=size)


main = entry(__doc__, measure)

if __name__ == "__main__":
    main()
