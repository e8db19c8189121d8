r"""Formulas: LaTeX to sympy, their values, and whether two are the same.

    "\frac{\pi}{2}" -> parse -> pi/2 -> value -> 1.5707...        a, b -> same_value, same_function

The parser is sympy's `parse_latex`, that of the official OlympiadBench judge. It reads a grammar;
nothing a model wrote is evaluated as Python, as the official scripts do. Work is bounded by size
and not by time, so a score does not depend on the machine: a text that is too long, an integral or
a sum, and a power or factorial with a large number is not computed, only compared as text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sympy import Expr

LONGEST = 400  # characters of a formula that is parsed
LARGEST = 1000  # exponents and arguments of factorials that are computed
_TALLEST = 3
_DEEPEST = 60
_DIGITS = 30
_POINTS = 6
# What the parser raises, beside its own error, on text that is no formula.
_FAULTS = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
_SAME = 1e-9  # relative difference of two functions at a point


@lru_cache(maxsize=4096)
def parse(text: str) -> Any:
    r"""A formula as sympy has it, or None if it cannot be read or computed.

    `\pi` is the number. A relation is returned as such.

    Raises:
        ImportError: the parser's runtime is not installed.
    """
    text = text.strip()
    if not text or len(text) > LONGEST:
        return None
    import sympy
    from sympy.parsing.latex import parse_latex
    from sympy.parsing.latex.errors import LaTeXParsingError

    try:
        expression = parse_latex(text, strict=True)
        if expression is None or not _is_bounded(expression):
            return None
        return expression.subs(sympy.Symbol("pi"), sympy.pi)
    except (LaTeXParsingError, *_FAULTS):
        return None
    except ImportError as error:
        raise ImportError(
            "comparing formulas needs antlr4-python3-runtime 4.11, the one that sympy reads LaTeX "
            "with: pip install 'internvl[eval]'."
        ) from error


def _is_bounded(expression: Any) -> bool:
    """Whether computing a value is quick: leaves first, so that a tower of powers stops early."""
    import sympy

    slow = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
    if expression.has(*slow):
        return False
    depths: dict[Any, int] = {}
    heights: dict[Any, int] = {}  # how many growing functions of a symbol stand in one another
    for node in sympy.postorder_traversal(expression):
        depths[node] = 1 + max((depths[each] for each in node.args), default=0)
        height = max((heights[each] for each in node.args), default=0)
        for each in _growing(node):
            if each.free_symbols:
                height = max(height, heights[each] + 1)
            elif (number := _number(each)) is None or abs(number) > LARGEST:
                return False
        if height > _TALLEST or depths[node] > _DEEPEST:
            return False
        heights[node] = height
    return True


def _growing(node: Any) -> Sequence[Any]:
    """The arguments in which a function grows faster than any power."""
    import sympy

    if isinstance(node, sympy.Pow):
        return (node.exp,)
    fast = (sympy.factorial, sympy.binomial, sympy.exp, sympy.sinh, sympy.cosh)
    return node.args if isinstance(node, fast) else ()


def value(expression: Any) -> complex | None:
    """The value of an expression without symbols; None for any other."""
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    return _number(expression)


def _number(expression: Expr) -> complex | None:
    try:
        number = complex(expression.evalf(_DIGITS))
    except _FAULTS:
        return None
    return number if math.isfinite(number.real) and math.isfinite(number.imag) else None


def same_value(first: complex, second: complex, tolerance: float) -> bool:
    """Whether two numbers differ by at most a tolerance, and a per cent of it for rounding."""
    return abs(first - second) <= tolerance * 1.01


def same_function(first: Any, second: Any) -> bool:
    """Whether two expressions in the same symbols are the same, told by their values at six points.

    The points are positive, so that roots and logarithms exist, and always the same.
    """
    ratios = _at_points(first, second)
    return bool(ratios) and all(
        abs(one - two) <= _SAME * max(1.0, abs(one), abs(two)) for one, two in ratios
    )


def same_equation(first: Any, second: Any) -> bool:
    """Whether two equations say the same: one, brought to `... = 0`, is a whole multiple of the
    other. (OlympiadBench, `equation_equal`)"""
    pairs = _at_points(first.lhs - first.rhs, second.lhs - second.rhs)
    if not pairs or any(abs(one) < _SAME or abs(two) < _SAME for one, two in pairs):
        return False
    for quotients in ([one / two for one, two in pairs], [two / one for one, two in pairs]):
        factor = round(quotients[0].real)
        if factor and all(abs(each - factor) <= 1e-6 * abs(factor) for each in quotients):
            return True
    return False


def _at_points(first: Any, second: Any) -> list[tuple[complex, complex]]:
    """Values of both expressions; empty when their symbols differ or too few values exist."""
    import sympy

    both = [_plain(each) for each in (first, second)]
    symbols = sorted(both[0].free_symbols, key=str)
    if set(symbols) != both[1].free_symbols:
        return []
    generator = random.Random(0)
    found = []
    for _ in range(_POINTS):
        point = {each: sympy.Float(generator.uniform(0.6, 2.4), _DIGITS) for each in symbols}
        one, two = (_number(each.subs(point)) for each in both)
        if one is not None and two is not None:
            found.append((one, two))
    return found if len(found) >= _POINTS // 2 else []


def _plain(expression: Any) -> Any:
    """Unknown functions, such as f(x), as symbols."""
    import sympy
    from sympy.core.function import AppliedUndef

    return expression.replace(
        lambda node: isinstance(node, AppliedUndef), lambda node: sympy.Symbol(str(node))
    )
