"""The rules, by name: what each flags, its thresholds and where they are from.

    >>> from internvl.filtering.rules import build, check
    >>> rules = build({"suffix_loop": True, "zero_run": {"max_zeros": 200}})
    >>> verdicts = check(record, rules)

The first group finds the report's repetitive samples (section 4.3, Figure 6), the second other
anomalies. Rules read prose and leave what repeats for a reason to laxer limits; `structure` tells
which is which. Every rule can be wrong ("occasionally false positives", section 4.3), so what they
flag is reviewed before it is removed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from internvl.filtering.rules import (
    compression,
    duplicates,
    lengths,
    loops,
    markup,
    near_loops,
    ngrams,
    runs,
    scripts,
    speech,
    tags,
)
from internvl.filtering.rules.family import EVERY_MODALITY, RuleSpec
from internvl.filtering.verdict import Record, Rule, Verdict

_REPORT = "report, section 4.3"
_FIGURE = "report, Figure 6"
_GOPHER = "Gopher (Rae et al. 2021), Table A1"
_OURS = "this repository"

_SPECS = (
    RuleSpec(
        "suffix_loop", loops.suffix_loop, "the answer ends in a loop", _FIGURE, repetition=True
    ),
    RuleSpec(
        "inner_loop", loops.inner_loop, "a loop anywhere, also in tables and code", _FIGURE,
        repetition=True,
    ),
    RuleSpec(
        "near_loop", near_loops.near_loop, "sentences of one form that bring nothing new", _FIGURE,
        repetition=True,
    ),
    RuleSpec(
        "repeated_answer", loops.repeated_answer, "one long answer to several questions", _OURS,
        repetition=True,
    ),
    RuleSpec(
        "duplicate_lines", duplicates.duplicate_lines, "lines that stood there before",
        f"{_REPORT}; thresholds: {_GOPHER}", repetition=True,
    ),
    RuleSpec(
        "duplicate_paragraphs", duplicates.duplicate_paragraphs,
        "paragraphs that stood there before", _GOPHER, repetition=True,
    ),
    RuleSpec(
        "duplicate_sentences", duplicates.duplicate_sentences, "sentences that stood there before",
        f"{_FIGURE}; thresholds: {_GOPHER}", repetition=True,
    ),
    RuleSpec(
        "ngram_repetition", ngrams.ngram_repetition, "top and duplicated n-grams", _GOPHER,
        repetition=True,
    ),
    RuleSpec(
        "compression", compression.compression, "prose that compresses better than prose does",
        _OURS, repetition=True,
    ),
    RuleSpec("zero_run", runs.zero_run, "zeros without end", _REPORT, repetition=True),
    RuleSpec(
        "character_run", runs.character_run, "one character, or a few, without end", _REPORT,
        repetition=True,
    ),
    RuleSpec("sentence_length", lengths.sentence_length, "a sentence that does not end", _REPORT),
    RuleSpec("turn_length", lengths.turn_length, "an answer longer than a row", _REPORT),
    RuleSpec("mixed_scripts", scripts.mixed_scripts, "alphabets that change inside words", _OURS),
    RuleSpec("broken_encoding", scripts.broken_encoding, "text decoded wrongly", _OURS),
    RuleSpec("unbalanced_markup", markup.unbalanced_markup, "tags or LaTeX left open", _OURS),
    RuleSpec("empty_answer", speech.empty_answer, "an answer that says nothing", _OURS),
    RuleSpec("refusal", speech.refusal, "an answer that refuses", _OURS),
    RuleSpec(
        "tag_count", tags.tag_count, "tags that do not fit the images and videos",
        "internvl.data.schema", roles=("user",), modalities=EVERY_MODALITY,
    ),
)  # fmt: skip

RULES: Mapping[str, RuleSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
REPETITION = tuple(name for name, spec in RULES.items() if spec.repetition)


def build(settings: Mapping[str, Mapping[str, Any] | bool] | None = None) -> dict[str, Rule]:
    """Make rules.

    Args:
        settings: by name of the rule True, False, or thresholds that differ from the defaults;
            None for all rules as they are. A rule that is not named is not made.

    Returns:
        The rules, in the order of `RULES`.

    Raises:
        ValueError: a rule or a threshold that is unknown, or a threshold of another type.
    """
    if settings is None:
        settings = dict.fromkeys(RULES, True)
    for name, options in settings.items():
        if name not in RULES:
            raise ValueError(f"there is no rule {name!r}{_nearest(name, RULES)}")
        if not isinstance(options, (bool, Mapping)):
            raise ValueError(
                f"rule {name!r} is set to {options!r}; expected true, false or its thresholds."
            )
    wanted = {name: settings[name] for name in RULES if settings.get(name, False) is not False}
    return {name: _make(RULES[name], options) for name, options in wanted.items()}


def _make(spec: RuleSpec, options: Mapping[str, Any] | bool) -> Rule:
    given = {} if isinstance(options, bool) else dict(options)
    for name, value in given.items():
        if name not in spec.options:
            raise ValueError(
                f"rule {spec.name!r} has no option {name!r}{_nearest(name, spec.options)}"
            )
        default = spec.options[name]
        expected = Mapping if isinstance(default, Mapping) else (int, float)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ValueError(
                f"rule {spec.name!r}: {name} is {value!r}; expected a value like {default!r}."
            )
    return spec.make(**given)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}."


def check(record: Record, rules: Mapping[str, Rule]) -> list[Verdict]:
    """What the rules say about a sample, in their order; nothing if it is clean.

    A rule that does not read samples of this modality is passed over.
    """
    verdicts = []
    for name, rule in rules.items():
        if name in RULES and record.modality not in RULES[name].modalities:
            continue
        found = rule(record)
        if found is not None:
            verdicts.append(found)
    return verdicts
