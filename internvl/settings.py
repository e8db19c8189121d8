"""Settings as a YAML file, read into frozen dataclasses that refuse nonsense.

A leaf: recipes of training, configurations of filtering and of its judge are read by it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def read_yaml(
    path: Path, overrides: Mapping[str, Any] | None, *, what: str, extra: str
) -> dict[str, Any]:
    """The mapping that a YAML file holds, with some values replaced.

    Args:
        path: the file.
        overrides: values in place of the file's, "optimizer.lr" naming a value within a value.
        what: kind of the file, for messages.
        extra: of this package that brings PyYAML.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mapping.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"a {what} needs PyYAML: pip install 'internvl[{extra}]'") from error
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no {what}; expected a mapping of keys to values.")
    for name, value in (overrides or {}).items():
        _put(content, name, value)
    return content


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for key in path:
        inner = content.get(key)
        content[key] = dict(inner) if isinstance(inner, Mapping) else {}
        content = content[key]
    content[last] = value


def unknown_names(found: Collection[str], known: Collection[str], where: str) -> str:
    """The message on unknown names, with the nearest known one of each."""
    hints = []
    for name in sorted(found):
        near = difflib.get_close_matches(str(name), sorted(known), n=1)
        hints.append(f"{name!r} (did you mean {near[0]!r}?)" if near else f"{name!r}")
    return f"{where} has unknown keys {', '.join(hints)}; known are {sorted(known)}."


def build(kind: type, content: Any, where: str, need: Sequence[str] = ()) -> Any:
    """Make a dataclass of a mapping, its parts in the same way.

    Args:
        kind: the dataclass.
        content: keys and values, as YAML has them.
        where: name of the place, for messages.
        need: keys that have to be there.

    Raises:
        ValueError: unknown or missing keys, or values of another type.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is {content!r:.60}; expected a mapping.")
    known = {each.name for each in fields(kind)}
    if unknown := {str(key) for key in content} - known:
        raise ValueError(unknown_names(unknown, known, where))
    if missing := [name for name in need if name not in content]:
        raise ValueError(f"{where} lacks {missing}.")
    hints = get_type_hints(kind)
    values = {key: _value(hints[key], value, f"{where}.{key}") for key, value in content.items()}
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """Check a value against the type that a field has, and bring it into that type."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is UnionType:
        if value is None and type(None) in options:
            return None
        hint = next(option for option in options if option is not type(None))
        return _value(hint, value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{where} is {value!r}; expected one of {list(options)}.")
        return value
    if origin is tuple:
        return _tuple(options, value, where)
    if hint is float and isinstance(value, str):  # YAML takes 2e-5 for text
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{where} is {value!r}; expected a number.") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if isinstance(value, bool) != (expected is bool) or not isinstance(value, expected):
        raise ValueError(f"{where} is {value!r:.60}; expected {getattr(hint, '__name__', hint)}.")
    return value


def _tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A list of values: `tuple[X, Y]` for so many, `tuple[X, ...]` for any number."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} is {value!r:.60}; expected a list.")
    if options[-1] is Ellipsis:
        return tuple(_value(options[0], v, f"{where}[{i}]") for i, v in enumerate(value, 1))
    if len(value) != len(options):
        raise ValueError(f"{where} is {value!r:.60}; expected {len(options)} values.")
    return tuple(_value(o, v, where) for o, v in zip(options, value, strict=True))
