"""Every message of ours that docs/troubleshooting.md quotes is one that the source can raise."""

from __future__ import annotations

import ast
import re

from tests.docs import scripts

PAGE = (scripts.ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
OTHERS = "## Messages of transformers, torch and the official code"


def quoted(text: str) -> list[str]:
    return [block.strip() for block in re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)]


def messages() -> list[str]:
    """Every string of the source, `…` standing for what is put in."""
    found = []
    for pattern in ("*.py", "preprocessor/*.py", "internvl/**/*.py"):
        for path in scripts.ROOT.glob(pattern):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    found.append("".join(map(str, parts)))
    return found


def is_raised(message: str, known: list[str]) -> bool:
    """Whether a string has the words of the message in their order; `…` is anything."""
    words = [part for part in re.split(r"\s*…\s*", message) if len(part) > 1]
    longest = max(words, key=len)
    pattern = re.compile(r".*?".join(map(re.escape, words)), re.DOTALL)
    return any(pattern.search(text) for text in known if longest in text)


def test_quoted_messages_are_in_the_source():
    ours, _, _ = PAGE.partition(OTHERS)
    known = [text for text in messages() if len(text) > 20]
    blocks = quoted(ours)
    assert len(blocks) > 40
    assert [block for block in blocks if not is_raised(block, known)] == []


def test_a_message_that_nobody_raises_is_found():
    known = ["the prompt has … tokens; shorten it"]
    assert is_raised("the prompt has … tokens; shorten it", known)
    assert not is_raised("the prompt has … letters", known)


def test_every_message_has_a_cause_or_a_cure():
    """After its message, or after the last of several that have the same."""
    for text in re.split(r"\n```text\n", PAGE)[1:]:
        rest = text.partition("\n```\n")[2].strip()
        assert not rest or rest.startswith(("**Cause**", "**Cure**")), text[:80]


def test_messages_of_others_stand_apart():
    _, found, others = PAGE.partition(OTHERS)
    assert found
    assert "has no attribute 'generate'" in others
