"""A guard against endless repetition: it stops a generation that has fallen into a loop, says why,
and leaves tables, lists of numbers and code alone (report sections 4.3 to 4.5, Figure 6).

    generated ids -> shortest period at the end -> text of the block -> which kind -> enough copies?

A loop is the same block of tokens again and again, without any change, up to the last token. How
many copies it takes depends on what the block says:

    kind       block                                              copies      and at least
    sentence   a sentence or more, below 400 characters                6      200 characters
               from 400 characters, from 1000 characters            5, 4
    words      one to three words within a line: "temple temple"      32      128 characters
    labels     short lines, or short items between commas             64
               the same with 8 words or more                          16
    marks      "!!!!", emoji, empty lines                                     256 characters

Blocks without words (numbers, separators, dot leaders, ASCII art), rows of tables, numbers with
their labels and units, code, and everything in a code fence never stop a generation, however often
they come: only `max_new_tokens` ends them. Where text can be read both ways it counts as a table or
code. Copies that differ in anything, a counter for instance, are no loop. Prose in the layout of a
table without any separator, and text that somebody asked to have repeated, cannot be told from a
loop; that is why the guard is an option. It does not repair, cut or penalise anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria

FINISH_REASON = "repetition"
MAX_PERIOD = 1024  # tokens: a paragraph of 400 tokens of a small vocabulary is 1000 of a tiny one
MAX_PERIOD_TEXT = 4096  # characters
STRIDE = 16  # tokens between two looks
STRIDE_TEXT = 64  # characters
_FEWEST = 4  # copies that any kind asks for
_PROBE = 16  # tokens at the end that must come again before more is compared
_COPIES = {  # kind -> (size of the block from which it holds, copies), largest first
    "sentence": ((1000, 4), (400, 5), (0, 6)),  # size in characters
    "words": ((0, 32),),
    "labels": ((8, 16), (0, 64)),  # size in words
    "marks": ((0, _FEWEST),),
}
_SPAN = {"sentence": 200, "words": 128, "labels": 128, "marks": 256}  # characters


@dataclass(frozen=True)
class LoopFound:
    """A repetition loop at the end of what was generated.

    Attributes:
        period: length of the repeating block.
        repeats: complete copies of it.
        text: what the block says.
        start: position at which the loop began, counted from the first generated token.
        end: position after the last token that was looked at; `ids[:kept]` leaves out all but one
            copy.
        kind: "sentence", "words", "labels" or "marks".
        unit: what is counted, "tokens" or "characters".
    """

    period: int
    repeats: int
    text: str
    start: int
    end: int
    kind: str
    unit: str = "tokens"

    @property
    def kept(self) -> int:
        """Position after the first copy of the block."""
        return self.start + self.period

    def __str__(self) -> str:
        text = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        units = self.unit if self.period > 1 else self.unit.removesuffix("s")
        return (
            f"repetition: {text!r} ({self.period} {units}) came {self.repeats} times in a row, "
            f"from {self.unit.removesuffix('s')} {self.start} to {self.end}"
        )


def find_loop(
    ids: Sequence[int] | np.ndarray | torch.Tensor, tokenizer: Any, *, max_period: int = MAX_PERIOD
) -> LoopFound | None:
    """Find the loop at which a guard would have stopped a finished answer.

    Args:
        ids: (T,) generated ids, without the prompt.
        tokenizer: the one that decodes them.
        max_period: longest block, in tokens.

    Returns:
        The first loop, wherever in the answer it stands, or None.

    Raises:
        ValueError: `max_period` is not positive, or `ids` are not one row.
    """
    return _first_loop(_as_row(ids), _Judge(_decoder(tokenizer), max_period, "tokens"), STRIDE)


def find_loop_in_text(text: str, *, max_period: int = MAX_PERIOD_TEXT) -> LoopFound | None:
    """Find a loop in a text by the same rules, without a tokenizer; periods are in characters.

    Args:
        text: a finished answer.
        max_period: longest block, in characters.

    Raises:
        ValueError: `max_period` is not positive.
    """
    codes = np.array([ord(character) for character in text], dtype=np.int64)
    judge = _Judge(lambda part: "".join(map(chr, part)), max_period, "characters")
    return _first_loop(codes, judge, STRIDE_TEXT)


class LoopGuard(StoppingCriteria):
    """Stops the rows of a generation that have fallen into a loop.

        guard = LoopGuard(tokenizer)
        model.generate(..., stopping_criteria=[guard])
        guard.reasons[0]  # None, or the LoopFound

    It looks at the generated ids every 16 tokens, from the 64th on, so a row stops at most 15
    tokens after its last necessary copy. A look costs one comparison of the last `max_period` ids
    and, once something does repeat, a few comparisons of all generated ids; text is decoded once
    per loop.

    Each row stands for itself. A row that `generate` goes on with for lack of an end token may be
    cut at `end`, or at `kept` to leave one copy. Rows of beams are candidates that change places:
    there `reasons` says what was found in a place, and `find_loop` what is in an answer.

    One guard watches one call of `generate`. Without `prompt_length`, all ids but the last one of
    the first call are the prompt, which is right with `input_ids`, with `inputs_embeds` alone, and
    with both; candidates of an assistant make it a few ids too long.

    Attributes:
        reasons: for each row the loop that stopped it, or None; empty before the first token.

    Args:
        tokenizer: the one of the model.
        prompt_length: ids in front of the generated ones; None finds it out.
        max_period: longest block, in tokens.

    Raises:
        ValueError: `max_period` is not positive, or `prompt_length` is negative.
    """

    def __init__(
        self, tokenizer: Any, prompt_length: int | None = None, *, max_period: int = MAX_PERIOD
    ) -> None:
        if prompt_length is not None and prompt_length < 0:
            raise ValueError(
                f"prompt_length is {prompt_length}; give the ids in front of the generated ones."
            )
        self.reasons: list[LoopFound | None] = []
        self._given_length = prompt_length
        self._prompt_length = 0
        self._looked_at = 0
        self._judge = _Judge(_decoder(tokenizer), max_period, "tokens")

    @property
    def finish_reasons(self) -> list[str | None]:
        """For each row "repetition" if that ended it, else None."""
        return [FINISH_REASON if reason else None for reason in self.reasons]

    def __call__(
        self, input_ids: torch.LongTensor, scores: Any = None, **kwargs: Any
    ) -> torch.BoolTensor:
        """Which of the rows (B, T) are in a loop now: (B,)."""
        rows, length = input_ids.shape
        if self._given_length is not None and length < self._given_length:
            raise ValueError(
                f"prompt_length is {self._given_length}, but generate shows {length} ids with the "
                "new ones; with inputs_embeds alone there is no prompt in front, so give 0."
            )
        if rows != len(self.reasons) or length <= self._prompt_length + 1:
            self._begin(rows, length)
        stopped: Any = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        generated = length - self._prompt_length
        if generated // STRIDE > self._looked_at // STRIDE:
            answers = input_ids[:, self._prompt_length :].cpu().numpy()
            for row in range(rows):
                found = self._judge(answers[row])
                if found is not None:
                    stopped[row] = True
                    self.reasons[row] = self.reasons[row] or found
                    # Candidates of an assistant are shown before they count, so look again.
                    generated = self._looked_at
        self._looked_at = generated
        return stopped

    def _begin(self, rows: int, length: int) -> None:
        """Forget what was seen: this is the first token of a generation."""
        self.reasons = [None] * rows
        self._prompt_length = length - 1 if self._given_length is None else self._given_length
        self._looked_at = 0
        self._judge.verdicts.clear()


# ---------------------------------------------------------------------- what repeats
class _Judge:
    """Looks for a loop at the end of a row of ids, and remembers what it has decoded once.

    The verdict on a block depends on the block and on what stands before it, so it holds as long as
    the repetition goes on: a table of 4000 equal cells is decoded once.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str], max_period: int, unit: str) -> None:
        if max_period < 1:
            raise ValueError(f"max_period is {max_period}; a block has at least one token.")
        self.text_of = text_of
        self.max_period = max_period
        self.unit = unit
        self.verdicts: dict[tuple[int, int, int], _Verdict | None] = {}

    def __call__(self, ids: np.ndarray) -> LoopFound | None:
        for period, start in _periods(ids, self.max_period):
            key = (period, start, hash(ids[: start + period].tobytes()))
            if key not in self.verdicts:
                self.verdicts[key] = self._verdict(ids, period, start)
            verdict = self.verdicts[key]
            if verdict is not None and len(ids) - start >= verdict.tokens:
                repeats = (len(ids) - start) // period
                return LoopFound(
                    period, repeats, verdict.text, start, len(ids), verdict.kind, self.unit
                )
        return None

    def _verdict(self, ids: np.ndarray, period: int, start: int) -> _Verdict | None:
        decoded = self.text_of(ids[start : start + _FEWEST * period].tolist())
        # The row may enter and leave the loop within a character.
        run = decoded.strip("\ufffd") or decoded
        size = run.find(run[: len(run) // 2], 1)  # characters of the shortest block
        if size < 1:
            return None
        kind = _kind(run, size, self.text_of(ids[:start].tolist()))
        if kind is None:
            return None
        measure = _count(run[:size]).words if kind == "labels" else size
        copies = next(count for smallest, count in _COPIES[kind] if measure >= smallest)
        characters = max(copies * size, _SPAN[kind])
        per_period = size * max(1, round(len(run) / (_FEWEST * size)))  # characters
        tokens = -(-characters * period // per_period)
        return _Verdict(kind, run[:size], max(tokens, _FEWEST * period))


@dataclass(frozen=True)
class _Verdict:
    """What a block is, and how many tokens of it make a loop."""

    kind: str
    text: str
    tokens: int


def _periods(ids: np.ndarray, max_period: int) -> Iterator[tuple[int, int]]:
    """Periods of which the row ends in four copies or more, and where each begins.

    Short ones first; a longer one follows only where it reaches further back, so multiples of a
    period are left out.
    """
    n = len(ids)
    longest = min(max_period, n // _FEWEST)
    if longest < 1 or n < _FEWEST * _PROBE:
        return
    # How far back the last token stood, narrowed down by the tokens before it.
    distances = np.flatnonzero(ids[n - 1 - longest : n - 1][::-1] == ids[n - 1]) + 1
    for back in range(2, _PROBE + 1):
        if not distances.size:
            return
        distances = distances[ids[n - back - distances] == ids[n - back]]
    reach = shortest = 0
    for period in distances.tolist():
        if period + shortest <= reach:
            continue
        copies = ids[n - _FEWEST * period :]
        if not np.array_equal(copies[period:], copies[:-period]):
            continue
        changes = np.flatnonzero(ids[period:] != ids[:-period])
        start = int(changes[-1]) + 1 if changes.size else 0
        reach, shortest = n - start, period
        yield period, start


def _first_loop(ids: np.ndarray, judge: _Judge, stride: int) -> LoopFound | None:
    """Look at a finished row as it looked while it grew."""
    for end in (*range(stride, len(ids), stride), len(ids)):
        found = judge(ids[:end])
        if found is not None:
            return found
    return None


def _as_row(ids: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
    row = ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids, dtype=np.int64)
    if row.ndim != 1:
        raise ValueError(f"ids have the shape {row.shape}; give one row of generated ids, (T,).")
    return row


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    def text_of(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    return text_of


# ---------------------------------------------------------------------- what it says
_CODE = r"@#%&\\/\[\]{}$+<=>^`|~"  # characters that prose hardly uses
_EDGE = re.compile(rf"^(?:[^\w{_CODE}]|_)+|(?:[^\w{_CODE}]|_)+$")
_LETTER = r"[^\W\d_]"
# Thai to Tibetan, Burmese, Khmer, kana and Chinese: scripts without spaces, two letters to a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_NUMERALS = "\u96f6\u3007\u4e00\u4e8c\u4e24\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341\u767e"
_LITERAL = re.compile(
    r"null|none|nil|nan|inf|infinity|true|false|undefined|void|n/?a|tbd|zero|one|two|three|four|five|"
    r"six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|million"
)
_CELL = re.compile(r"yes|no|ok|on|off|pass(?:ed)?|fail(?:ed)?|unknown|empty")
_HEXADECIMAL = re.compile(r"[a-f]{2}|([a-f])\1+|[a-f]{8,}|[A-F]{2}|([A-F])\2+|[A-F]{8,}")
_SENTENCE_END = re.compile(
    "[.!?:\u2026\u061f\u0964\u3002\uff01\uff1a\uff1f][\"')\\]*_\u2019\u201d\u300d\uff09]*$"
)
_MARK = re.compile(
    "[!?\u2049\u203c\u3002\uff01\uff1f\ufffd\U0001f300-\U0001f7df\U0001f900-\U0001faff]"
)
# Code and mathematics within prose: `f()`, $x$, \\(x\\).
_SPAN_OF_CODE = re.compile(r"`[^`\n]*`|\\?\$(?=\S)[^$\n]{1,80}?(?<=\S)\$|\\\(.{1,80}?\\\)")
_FENCE = re.compile(r"\s*(?P<marks>`{3,}|~{3,})\s*(?P<language>[^`\s]*)")
_PLAIN_LANGUAGES = frozenset(("markdown", "md", "text", "txt", "plain", "plaintext"))
_TABLE = re.compile(r"\||\t|[\u2502\u2503\u2551]|\S {3,}\S|,,|</?t[dhr]\b|\\\\\s*$")
_ARRAY = re.compile(r"""(["'])\s?[,;]\s?\1""")  # "a", "b"
_OPERATOR = re.compile(
    r"->|=>|::|==|!=|&&|\+\+|\+=|-=|:=|</|/>|\(\)|\[\]|\{\}|\(\s*[\"']|[\"']\s*\)"
)
_KEYWORDS = (
    "abstract|add|and|async|await|begin|bool|break|call|case|catch|cd|char|chmod|class|cmp|const|"
    "continue|cp|debugger|dec|def|default|del|do|done|double|echo|else|elsif|endif|enum|esac|exit|"
    "export|extends|extern|fi|final|finally|float|fn|for|from|func|function|git|global|goto|if|"
    "import|inc|include|inline|int|interface|jmp|jne|jz|kill|lea|let|local|long|loop|ls|make|mkdir|"
    "mov|mul|mv|namespace|new|nop|npm|or|package|pass|pip|pop|print|private|protected|pub|public|"
    "push|puts|raise|readonly|require|ret|return|rm|section|self|set|shift|short|signed|sizeof|"
    "sleep|source|static|string|struct|sub|sudo|super|switch|template|then|this|throw|throws|touch|"
    "trait|trap|try|type|typedef|typename|union|unless|unsafe|unset|unsigned|until|use|using|var|"
    "virtual|void|volatile|wait|when|where|while|with|xor|yield"
)
_CODE_LINE = re.compile(
    rf"""
      ^(?:\ {{4,}}|\ {{0,3}}\t)(?![-*+\u2022]\ |\d+[.)]\ )\S      # the indented code of Markdown
    | [;{{}}\[(]\s*$ | [)\]][,:]\s*$ | ^\s*[{{}})\]]             # brackets and semicolons
    | ^\s*(?://|/\*|\*/|<[!?/a-zA-Z]|\#(?!\#)|>>>|\.\.\.\ |\$\ |%\ |@\w|--\ |\\[a-zA-Z\[\]])
    | \S\ \ \#\ | ^(?:\ \ )*\ \*(?:\ |$)                         # comments of Python, C
    | ^\s*\.[a-zA-Z]                                             # selector of CSS, .PHONY
    | ^\s*(?:[\da-fA-F]{{2,}}[\s,:;]+){{2}} | ^\[?\d{{4}}-\d\d-\d\d | ^\[\w+\]\s      # dump, log
    | ^\s*[\w.\[\]"'*&$-]+(?:,\ \w+)*(?:\s+[\w*&<>\[\]]+)?\s*(?:[-+*/%|&^:]|<<|>>)?=(?!=)  # x += 1
    | ^\s*(?:-\s+)?(["']).*\1\s*: | ^\s*(["']).*\2,\s*$          # key, entry of JSON
    | ^\s*[rbfu]{{1,2}}["'] | ^\s*\*{{0,2}}\w+(?::\s*\w+)?,\s*$  # f"text", **options,
    | ^\s*(?:-\s+)?[a-z_][\w./-]*:(?:\s.*)?(?<![.!?])\s*$        # key of YAML
    | ^\s*\w*[-_][\w-]*:\s                                       # header of HTTP
    | ^\s*(?:(?:await|return)\s+)?(?:\w+(?:\.|::|->))*[a-zA-Z]\w+\((?!s\)|es\))        # call
    | \b[a-zA-Z]\w+\((?!s\)|es\)).*\)\s*$ | ^\s*(?:\w+\.)+\w+\s*$    # declaration, a.b
    | ^\s*from\ \S+\ import\b | ^\s*for\ \S+(?:,\ ?\S+)*\ in\ \S+\s*$
    | ^\s*(?:assert|elif|except|import|lambda|nonlocal|return)\b(?!.*[.!?]\s*$)
    | ^\s*(?:end|End|END)(?:\ ?\w+)?\s*$
    | ^\s*(?:select|insert\ into|update|delete\ from|create|drop|alter)\b.*
        \b(?:from|set|values|table|view|index|database)\b
    | ^\s*(?:AS|BEGIN|COMMIT|CREATE|ALTER|DELETE|DROP|FROM|GRANT|GROUP|INSERT|JOIN|LANGUAGE|LEFT|
        LIMIT|ORDER|RETURN|RETURNS|ROLLBACK|SELECT|SET|UPDATE|VALUES|WHERE)\b
    | \s--?[a-zA-Z][\w-]*(?=\s|=|$)                              # option of a command
    | ^\s*(?:{_KEYWORDS})\b(?:(?:\s+\S+){{0,2}}\s*$ | .*[=(){{}}\[\]<>"'] | .*:\s*$)
    """,
    re.VERBOSE,
)


def _kind(run: str, size: int, before: str) -> str | None:
    """What a repeating block is, or None for what never stops a generation.

    Args:
        run: four copies of the block, the first and the last maybe not complete.
        size: characters of the block.
        before: all text in front.
    """
    in_code = False
    for line in before.split("\n")[:-1]:
        in_code = _after_line(line, in_code)
    first, *rest = run.split("\n")
    opening = before.rpartition("\n")[2] + first
    if not rest:
        return None if in_code else _kind_of_words(run, size, before.rpartition("\n")[2])
    in_code = _after_line(opening, in_code)
    if not run.strip("\r\n"):
        return None if in_code else "marks"
    lines = []
    for line in rest[:-1]:
        after = _after_line(line, in_code)
        if not (in_code or after):
            lines.append(line)
        elif not _FENCE.match(line):
            lines.append("|" + line)  # counts as data
        in_code = after
    return _kind_of_lines(lines, before.endswith("\n") and _is_data_line(before[:-1]))


def _after_line(line: str, in_code: bool) -> bool:
    """Whether a line is followed by code of a fence."""
    fence = _FENCE.match(line)
    if fence is None:
        return in_code
    language = fence["language"].lower()
    if in_code:
        return bool(language)  # a fence with a language does not close another one
    return language not in _PLAIN_LANGUAGES


def _kind_of_words(run: str, size: int, opening: str) -> str | None:
    """Kind of a block within one line, of which `opening` stands before the run."""
    if not re.search(r"\w", run):
        return "marks" if _is_marks(run) else None
    if not re.search(r"\s", run) and not _UNSPACED.search(run):
        return None if _is_unbroken_data(run, size, opening) else "words"
    prose = _SPAN_OF_CODE.sub("`", "`" * (opening.count("`") % 2) + run)
    if _TABLE.search(prose) or _ARRAY.search(prose) or _OPERATOR.search(prose):
        return None
    count = _count(prose)
    words = max(1, round(count.words * size / len(run)))
    if count.is_data or not count.words:
        return None
    ends = any(map(_SENTENCE_END.search, run.split()))
    items = re.split("[,;\u3001\uff0c\uff1b]", run[: 2 * size])
    listed = len(items) > 2 and not ends
    if listed and count.cells == count.words:
        return None
    if words >= 4 and not (listed and max(_count(item).words for item in items) <= 3):
        return "sentence"
    # A weak block takes the line it stands in for its word: `x = [temple, temple, ...`.
    if _is_code_line(opening + run):
        return None
    return "labels" if listed else "words"


def _is_marks(text: str) -> bool:
    """Whether a text is all exclamation marks, question marks, emoji."""
    marks = re.sub(r"[\s\u200d\ufe0f]", "", text)
    return bool(marks) and all(map(_MARK.match, marks))


def _is_unbroken_data(run: str, size: int, opening: str) -> bool:
    """Whether a run without any space is rather data than a word drawn out: base64, DNA, hex."""
    block = run[:size]
    if re.search(r"[\d_,;:]", block) or re.search(rf"[{_CODE}]", block) or block != block.lower():
        return True
    if re.search(rf"{_LETTER}\.{_LETTER}", run):
        return True
    begun = opening.split(" ")[-1]  # of the same word, before the run
    return bool(re.fullmatch("[a-f]+", block) and re.search(r"[\d\W]", begun))


def _kind_of_lines(lines: Sequence[str], follows_data: bool) -> str | None:
    """Kind of a block of whole lines."""
    prose = data = words = cells = 0
    sentence = False
    for line in lines:
        characters = len("".join(line.split()))
        spared = _SPAN_OF_CODE.sub("`", line)
        count = _count(spared)
        if _is_data_line(spared) or count.is_data or _is_list_row(spared, count):
            data += characters
        elif count.words:
            prose += characters
            words += count.words
            cells += count.cells
            sentence |= count.words >= (4 if _SENTENCE_END.search(line.rstrip()) else 7)
    if not prose:
        return "marks" if not data and _is_marks("".join(lines)) else None
    if prose < 2 * data or cells == words:
        return None
    if sentence:
        return "sentence"
    return None if follows_data else "labels"


def _is_data_line(line: str) -> bool:
    """Whether a whole line is a row of a table or a line of code."""
    line = line.rpartition("\n")[2]
    return bool(_TABLE.search(line) or _OPERATOR.search(line)) or _is_code_line(line)


def _is_code_line(line: str) -> bool:
    """Whether a line begins or ends as code does."""
    return bool(_CODE_LINE.search(line if len(line) <= 600 else line[:300] + line[-300:]))


def _is_list_row(line: str, count: _Count) -> bool:
    """Whether a line is a row of short fields between commas."""
    fields = line.count(",") + line.count(";") + 1
    return fields >= 3 and count.words <= 2 * fields and not _SENTENCE_END.search(line.rstrip())


@dataclass
class _Count:
    """What a text is made of: words, and words among them that fill cells; numbers; symbols."""

    words: int = 0
    cells: int = 0
    numbers: int = 0
    symbols: int = 0

    @property
    def is_data(self) -> bool:
        """Whether numbers or symbols weigh more than words."""
        if not self.words:
            return bool(self.numbers or self.symbols)
        if self.numbers and (self.words <= 2 or self.numbers >= self.words):
            return True
        return self.symbols > 0 and 3 * self.symbols >= 2 * self.words


def _count(text: str) -> _Count:
    """Count the words, numbers and symbols between the spaces of a text."""
    count = _Count()
    text = re.sub(r"(?<=[a-z)])([.!?]+)(?=[A-Z])", r"\1 ", text)  # "passage of time.....The"
    for chunk in text.split():
        core = _EDGE.sub("", chunk)
        if _UNSPACED.search(core):
            letters = _UNSPACED.findall(core)
            count.numbers += len(re.findall(r"\d+", core)) + (not set(letters) - set(_NUMERALS))
            count.words += -(-len(letters) // 2)
        elif core and not any(mark in core for mark in "`$\\"):  # inline code and mathematics
            _count_chunk(core, count)
    return count


def _count_chunk(core: str, count: _Count) -> None:
    """Add one chunk, without the punctuation around it, to a count."""
    lower = core.lower()
    tag = re.fullmatch(rf"#({_LETTER}+)", core)
    parts = core.split("/")
    if tag and not re.fullmatch("[a-f]{3,8}", lower[1:]):
        count.words += 1
    elif re.search(r"\d", core) or tag or _LITERAL.fullmatch(lower) or _HEXADECIMAL.fullmatch(core):
        count.numbers += 1
    elif len(parts) == 2 and all(part.isalpha() for part in parts):  # and/or
        count.words += 2
    elif re.fullmatch(rf"{_LETTER}+\((?:s|es)\)", core):  # image(s)
        count.words += 1
    elif re.fullmatch(r"[A-Za-z]", core) and core not in "aAI":
        count.cells += 0  # a variable is neither
    elif re.search(rf"[{_CODE}_,;:]", core) or len(core) > 40:
        count.symbols += 1
    elif re.search(r"\(", core):
        count.symbols += len(core.partition("(")[0]) > 1  # f(x) is neither
    elif re.search(rf"{_LETTER}{{2,}}\.{_LETTER}|^[a-z]{{2,}}[A-Z]", core):  # a.b, not U.S.; aB
        count.symbols += 1
    else:
        count.words += 1
        count.cells += bool(_CELL.fullmatch(lower))
