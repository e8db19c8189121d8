r"""Final answers of a model: found in its text, brought into one form, counted, voted on.

    text -> extract_answer -> "\frac{1}{2}" -> normalize_answer -> "1/2" -> majority_vote -> Vote

Chain of thought and majority voting are the report's test-time scaling (section 5.1, Figure 9). Two
rules hold throughout: nothing is random unless a generator is given, and an empty answer is never
right and never wins. Metrics of single benchmarks are not here, nor is anything that asks a model.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

Kind = Literal["auto", "choice", "number", "text"]

_COT = (
    " The last line of your response should follow this format: 'Answer: \\boxed{$%s}' (without "
    "quotes), where %s. If you are uncertain or the problem is too complex, make a reasoned guess "
    "based on the information provided. Avoid repeating steps indefinitely\u2014provide your best "
    "guess even if unsure. Think step by step logically, considering all relevant information "
    "before answering."
)
# Figure 9 (a) and (b). The report prints "\$": the typesetter's escape of the dollar sign.
COT_MULTIPLE_CHOICE = "Answer the preceding multiple choice question." + _COT % (
    "LETTER",
    "LETTER is one of the options",
)
COT_OPEN = "Answer the preceding question." + _COT % (
    "FINAL_ANSWER",
    "'FINAL_ANSWER' is your conclusion based on the reasoning provided",
)
# Instructions of the direct answer, which the prompts above contradict.
DIRECT_SUFFIXES = (
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase.",
    "\u8bf7\u76f4\u63a5\u56de\u7b54\u9009\u9879\u5b57\u6bcd\u3002",  # the first one in Chinese
    "Answer the question directly.",  # VLMEvalKit's, for an open question among others
    "\u8bf7\u76f4\u63a5\u56de\u7b54\u95ee\u9898\u3002",
)
# Subsets of samples that maj_at_k goes through one by one.
MOST_SUBSETS = 100_000

_MARKER = re.compile(
    r"(?:answer|\u7b54\u6848)\W{0,4}(?:(?:is|\u662f|\u4e3a)(?![a-z])\s?[:\uff1a]?|[:\uff1a])",
    re.IGNORECASE,
)
_SAYS = re.compile(r"[^\S\n]*[^\s*]")
_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)(?:[eE][-+]?\d{1,3})?%?"
)
_FRACTION = re.compile(r"(?<!\d)(?:(?<!\w)[-+])?\d{1,40}/\d{1,40}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([-+]?[\d,.]+)\s*\}\s*\{\s*([-+]?[\d,.]+)\s*\}")
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf|operatorname)\s*\{([^{}]*)\}"
)
_OPTION = re.compile(r"\(?([a-z])[).:]?")
_ENDS = " \t\n.,;\u3002\uff0c"
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def with_cot(question: str, *, multiple_choice: bool) -> str:
    """Put the report's prompt for reasoning (Figure 9) after a question.

    An instruction to answer directly is taken out first, as in the official evaluation.
    """
    for suffix in DIRECT_SUFFIXES:
        question = question.replace(suffix, "")
    prompt = COT_MULTIPLE_CHOICE if multiple_choice else COT_OPEN
    return f"{question.strip()}\n{prompt}"


# ---------------------------------------------------------------------- finding
def extract_boxed(text: str) -> str:
    r"""Content of the last `\boxed{...}`, braces matched; the whole text when there is none or it
    does not end. (VLMEvalKit, `extract_boxed_content`)"""
    content = _boxed(text)
    return text if content is None else content


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return text[start:index]
    return None


def answer_line(text: str) -> str:
    """What follows `Answer:` on the only line that begins so, or its one capital letter; the whole
    text when there is no such line, or several. (VLMEvalKit, `MMMUProDataset.cot_postproc`)"""
    lines = [line.strip() for line in text.strip().split("\n")]
    tails = [line.removeprefix("Answer:") for line in lines if line.startswith("Answer:")]
    if len(tails) != 1:
        return text
    letters = {letter for letter in tails[0] if "A" <= letter <= "Z"}
    return letters.pop() if len(letters) == 1 else tails[0]


def _marked(text: str) -> str | None:
    """What follows the last "Answer:" or "answer is", in English or Chinese, on its line."""
    ends = [match.end() for match in _MARKER.finditer(text) if _SAYS.match(text, match.end())]
    if not ends:
        return None
    return text[ends[-1] :].split("\n", 1)[0].strip().strip("*").strip()


def extract_answer(
    text: str, kind: Kind = "auto", choices: Mapping[str, str] | Sequence[str] | None = None
) -> str | None:
    r"""Find the final answer in a model's text.

    It is looked for in the last `\boxed{}`, then after the last `Answer:`, and without either in
    the whole text.

    Args:
        text: what the model said.
        kind: "choice" (one of the letters), "number" (the last one), "text" (what was found there;
            in the whole text its last line); "auto" is "choice" with `choices` and "text" without.
        choices: letters, or a dict of letters and the text of each option.

    Returns:
        The answer, or None when there is none: an empty box, a refusal, several letters.

    Raises:
        ValueError: an unknown kind, or "choice" without choices.
    """
    if kind not in ("auto", "choice", "number", "text"):
        raise ValueError(f"kind is {kind!r}; expected auto, choice, number or text.")
    if kind == "choice" and not choices:
        raise ValueError("kind is 'choice', but there are no choices; give their letters.")
    found = _boxed(text)
    if found is None:
        found = _marked(text)
    if choices and kind in ("auto", "choice"):
        return extract_choice(text if found is None else found.strip(" $"), choices)
    if kind == "number":
        return extract_number(text if found is None else found)
    if found is None:
        lines = text.strip().splitlines()
        found = lines[-1] if lines else ""
    return found.strip() or None


def extract_choice(
    response: str,
    choices: Mapping[str, str] | Sequence[str],
    *,
    peer: Literal["vlmevalkit", "mmmu", "mmmu_pro"] = "vlmevalkit",
) -> str | None:
    """The option that a response to a multiple-choice question names.

    Args:
        response: what the model said, or its boxed answer.
        choices: letters, or a dict of letters and texts.
        peer: whose rule. "vlmevalkit" (`can_infer`): exactly one letter stands alone, and that
            among the last four words, or exactly one option's text occurs. "mmmu" (official): the
            last letter in brackets, or alone, or the last option's text. "mmmu_pro" (official):
            the only letter after "Answer:", then as "mmmu".

    Returns:
        The letter; None when there is none, where the official rules draw one at random, and for a
        refusal, which VLMEvalKit calls "Z".
    """
    options = dict(choices) if isinstance(choices, Mapping) else dict.fromkeys(choices, "")
    if peer == "vlmevalkit":
        return _inferred(response, options)
    if peer == "mmmu_pro" and (start := response.rfind("Answer:")) >= 0:
        tail = response[start + len("Answer:") :]
        letters = [letter for letter in options if letter in tail]
        if len(letters) == 1:
            return letters[0]
    return _last_named(response, options)


def _inferred(response: str, options: Mapping[str, str]) -> str | None:
    if any(refusal in response for refusal in _REFUSALS):
        return None
    words = response.translate(_MARKS).split()
    named = [letter for letter in options if letter in words]
    # Far from the end, "A" may be an article, and "B" part of an explanation.
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    lowered = response.lower()
    if not named and (match := re.search(r"\banswer is \(?([a-z])\)?\W{0,3}$", lowered[-40:])):
        letter = match[1].upper()
        return letter if letter in options else None
    texts = {letter: text.lower() for letter, text in options.items() if text.strip()}
    if len(response) > 2 * sum(map(len, texts.values())):
        return None
    named = [letter for letter, text in texts.items() if text in lowered]
    return named[0] if len(named) == 1 else None


def _last_named(response: str, options: Mapping[str, str]) -> str | None:
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response} "
    lowered = response.lower()
    for pattern in ("({})", " {} "):
        places = {letter: response.rfind(pattern.format(letter)) for letter in options}
        if max(places.values()) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(response.split()) <= 5:
        return None
    places = {k: lowered.rfind(text.lower()) for k, text in options.items() if text}
    best = max(places, key=lambda letter: places[letter], default=None)
    return best if best is not None and places[best] >= 0 else None


def extract_number(text: str) -> str | None:
    r"""The last number of a text, as it is written: `1,234.5`, `-3/4`, `\frac{1}{2}`, `50%`."""
    text = unicodedata.normalize("NFKC", text)
    last, end = None, -1
    for pattern in (_LATEX_FRACTION, _FRACTION, _NUMBER):
        for match in pattern.finditer(text):
            found = match[0].rstrip(".")
            # Of two that end together the longer one: a fraction, and not its denominator.
            if found and match.start() + len(found) > end:
                last, end = found, match.start() + len(found)
    return last


# ---------------------------------------------------------------------- one form
def normalize_answer(answer: str) -> str:
    r"""Bring an answer into the form in which two are the same.

    Unicode is composed (full-width digits become ASCII), LaTeX wrappers (`$..$`, `\text{}`,
    `\left`), blanks at both ends, a final full stop and case go; `(B)` and `B.` become `b`. Numbers
    become integers or reduced fractions: `12.0` is `12`, `1,200` is `1200`, and `\frac{1}{2}`,
    `1/2` and `0.5` are `1/2`. A per cent sign stays: `50%` is not `0.5`. Units stay.
    """
    text = unicodedata.normalize("NFKC", answer).strip()
    text = re.sub(r"\\[()\[\]]|\$|\\(?:left|right|displaystyle)(?![a-z])|\\[,;!]", " ", text)
    for _ in range(3):  # \text{\textbf{a}}
        text = _WRAPPER.sub(r"\1", text)
    text = text.replace("\\%", "%").replace("\\ ", " ").strip().rstrip(_ENDS)
    text = " ".join(text.split()).casefold()
    option = _OPTION.fullmatch(text)
    return option[1] if option else _number(text) or text


def _number(text: str) -> str | None:
    """The canonical form of a number, or None."""
    percent = "%" if text.endswith("%") else ""
    text = _LATEX_FRACTION.sub(r"\1/\2", text.removesuffix("%").strip())
    if len(text) > 80:
        return None
    if not (_FRACTION.fullmatch(text) or _NUMBER.fullmatch(text)):
        return None
    try:
        value = Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return f"{value}{percent}"


# ---------------------------------------------------------------------- votes
@dataclass(frozen=True)
class Vote:
    """The outcome of a majority vote.

    Attributes:
        winner: the winning answer as it was first written; None when there was no vote at all.
        counts: votes of each answer, in its normalised form, most votes first.
        unparsed: answers that were None or empty, and did not count.
        tie: whether another answer had as many votes.
    """

    winner: str | None
    counts: dict[str, int] = field(default_factory=dict)
    unparsed: int = 0
    tie: bool = False


def majority_vote(
    answers: Sequence[str | None], normalize: Callable[[str], str] | None = normalize_answer
) -> Vote:
    """Take the answer that most samples gave; of several, the one seen first.

    With `normalize=None` this is lm-eval's `majority_vote` filter, except that empty answers do not
    count.

    Args:
        answers: one per sample; None or blanks for none.
        normalize: brings answers into the form in which they are compared; None compares as is.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for answer in answers:
        if answer is None or not answer.strip():
            continue
        form = answer if normalize is None else normalize(answer)
        if form:
            counts[form] += 1
            first.setdefault(form, answer)
    if not counts:
        return Vote(None, unparsed=len(answers))
    ranked = counts.most_common()  # equal counts in the order of their first vote
    tie = len(ranked) > 1 and ranked[1][1] == ranked[0][1]
    return Vote(first[ranked[0][0]], dict(ranked), len(answers) - counts.total(), tie)


def is_same(
    answer: str | None, reference: str, normalize: Callable[[str], str] | None = normalize_answer
) -> bool:
    """Whether an answer equals the reference; an empty one never does."""
    if answer is None or not answer.strip():
        return False
    return answer == reference if normalize is None else normalize(answer) == normalize(reference)


def maj_at_k(
    answers: Sequence[str | None],
    reference: str,
    k: int,
    *,
    normalize: Callable[[str], str] | None = normalize_answer,
    generator: random.Random | None = None,
    draws: int = 1000,
) -> float:
    """Share of right votes among k of the samples.

    The mean over all subsets of k samples, in their order, as long as there are at most 100,000 of
    them; beyond, over `draws` random ones.

    Args:
        answers: one per sample.
        reference: the right answer.
        k: voters.
        normalize: as in `majority_vote`.
        generator: for the random subsets.
        draws: how many of them.

    Raises:
        ValueError: k is not between 1 and the number of samples, or a generator is needed.
    """
    n = len(answers)
    _check_k(n, k)
    subsets: Iterable[tuple[int, ...]]
    if math.comb(n, k) <= MOST_SUBSETS:
        subsets = itertools.combinations(range(n), k)
        count = math.comb(n, k)
    elif generator is None:
        raise ValueError(
            f"there are {math.comb(n, k)} ways to choose {k} of {n} samples, more than "
            f"{MOST_SUBSETS}; give a generator to draw some of them."
        )
    else:
        subsets = [tuple(sorted(generator.sample(range(n), k))) for _ in range(draws)]
        count = draws
    right = 0
    for subset in subsets:
        vote = majority_vote([answers[index] for index in subset], normalize)
        right += is_same(vote.winner, reference, normalize)
    return right / count


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples hold a right one, when c of the n are right.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).

    Args:
        n: samples.
        c: right ones among them.
        k: samples drawn.

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    _check_k(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"c is {c}, but there are {n} samples; expected 0 <= c <= n.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, but there are {n} samples; expected 1 <= k <= {n}.")
