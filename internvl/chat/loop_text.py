"""What a repeating block says: prose, labels or marks, which may loop, or data, which never does.

The second half of `loop_guard.py`: its table has the kinds, this file tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
_FENCE = re.compile(r"\s*(?:`{3,}|~{3,})\s*(?P<language>[^`\s]*)[^`]*$")
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


def kind_of(run: str, size: int, before: str) -> str | None:
    """What a repeating block is, or None for what never stops a generation.

    Args:
        run: four copies of the block, the first and the last maybe not complete.
        size: characters of the block.
        before: all text in front.
    """
    *earlier, begun = before.split("\n")
    fences = ""
    for line in earlier:
        fences = _fences_after(line, fences)
    first, *rest = run.split("\n")
    if not rest:
        return None if fences.endswith("c") else _kind_of_words(run, size, begun)
    fences = _fences_after(begun + first, fences)
    if not run.strip("\r\n"):
        return None if fences.endswith("c") else "marks"
    lines = []
    for line in rest[:-1]:
        fences = _fences_after(line, fences)
        if not _FENCE.match(line):
            lines.append("|" + line if fences.endswith("c") else line)  # code counts as data
    # The run may begin with the line break of the line before it.
    above = earlier[-1:] if first else [begun]
    return _kind_of_lines(lines, any(map(_is_data_line, above)))


def _fences_after(line: str, fences: str) -> str:
    """The fences that are open after a line, outermost first: c of code, p of plain text."""
    fence = _FENCE.match(line)
    if fence is None:
        return fences
    language = fence["language"].lower()
    if fences and not language:
        return fences[:-1]
    if fences.endswith("c"):
        return fences
    return fences + ("p" if language in _PLAIN_LANGUAGES else "c")


def _kind_of_words(run: str, size: int, opening: str) -> str | None:
    """Kind of a block within one line, of which `opening` stands before the run."""
    if not re.search(r"\w", run):
        return "marks" if _is_marks(run) else None
    if not re.search(r"\s", run) and not _UNSPACED.search(run):
        return None if _is_unbroken_data(run, size, opening) else "words"
    prose = _SPAN_OF_CODE.sub("`", "`" * (opening.count("`") % 2) + run)
    if _TABLE.search(prose) or _ARRAY.search(prose) or _OPERATOR.search(prose):
        return None
    count = count_of(prose)
    words = max(1, round(count.words * size / len(run)))
    if count.is_data or not count.words:
        return None
    ends = any(map(_SENTENCE_END.search, run.split()))
    items = re.split("[,;\u3001\uff0c\uff1b]", run[: 2 * size])
    listed = len(items) > 2 and not ends
    if listed and count.cells == count.words:
        return None
    if words >= 4 and not (listed and max(count_of(item).words for item in items) <= 3):
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
        count = count_of(spared)
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
    return bool(_TABLE.search(line) or _OPERATOR.search(line)) or _is_code_line(line)


def _is_code_line(line: str) -> bool:
    """Whether a line begins or ends as code does."""
    return bool(_CODE_LINE.search(line if len(line) <= 600 else line[:300] + line[-300:]))


def _is_list_row(line: str, count: Count) -> bool:
    """Whether a line is a row of short fields between commas."""
    fields = line.count(",") + line.count(";") + 1
    return fields >= 3 and count.words <= 2 * fields and not _SENTENCE_END.search(line.rstrip())


@dataclass
class Count:
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


def count_of(text: str) -> Count:
    """Count the words, numbers and symbols between the spaces of a text."""
    count = Count()
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


def _count_chunk(core: str, count: Count) -> None:
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
        return  # a variable is neither
    elif re.search(rf"[{_CODE}_,;:]", core) or len(core) > 40:
        count.symbols += 1
    elif re.search(r"\(", core):
        count.symbols += len(core.partition("(")[0]) > 1  # f(x) is neither
    elif re.search(rf"{_LETTER}{{2,}}\.{_LETTER}|^[a-z]{{2,}}[A-Z]", core):  # a.b, not U.S.; aB
        count.symbols += 1
    else:
        count.words += 1
        count.cells += bool(_CELL.fullmatch(lower))
