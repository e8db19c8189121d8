"""Steps that several metrics share: the answer of a text, and edit distance."""

from __future__ import annotations

from internvl.answers import extract_boxed


def final(text: str) -> str:
    r"""The content of the last `\boxed{}` of a text, or the whole text, without blanks around it.

    A direct answer has no box and is compared as it is, as the peers do. In a chain of thought the
    box is what the prompt of Figure 9 asked for.
    """
    return extract_boxed(text).strip()


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance in characters.

    Raises:
        ImportError: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise ImportError(
            "ANLS and MathVista need rapidfuzz: pip install 'internvl[eval]'."
        ) from error
    return Levenshtein.distance(first, second)
