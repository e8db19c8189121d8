"""The reference: signatures and docstrings, read from the source without importing it.

A page names what it shows, one object a line, by its place in a module:

    ```{api} internvl.hub
    load
    Loaded
    ```

A class brings its public methods and properties; `Class: one two` brings only those named, and
`Class:` none. Each becomes an object of Sphinx's Python domain, so that it can be searched for and
linked to. A name that the source no longer has ends the build.
"""

from __future__ import annotations

import re
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import Any

import griffe

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_DIRECTIVE = re.compile(r"^```\{api\} (\S+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`]*`)", re.DOTALL)
_SPECIAL = re.compile(r"[<$_]|(?<!^)(?<!\n)\*(?! )|\*(?=\S)", re.MULTILINE)
_FIELDS = {
    griffe.DocstringSectionKind.parameters: "param",
    griffe.DocstringSectionKind.other_parameters: "param",
    griffe.DocstringSectionKind.attributes: "ivar",
}


def expand(text: str) -> str:
    """Put signatures and docstrings in the place of the directives of a page.

    Raises:
        ValueError: a name that its module does not have, or that has no docstring.
    """
    return _DIRECTIVE.sub(lambda match: _module(match[1], match[2].splitlines()), text)


@lru_cache
def load(name: str) -> Any:
    """A module of this repository, parsed and not imported."""
    path = REPOSITORY.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return griffe.visit(name, filepath=path, code=path.read_text(encoding="utf-8"))


def _module(module: str, lines: list[str]) -> str:
    blocks = [f"```{{py:module}} {module}\n```"]
    for line in lines:
        name, colon, wanted = line.partition(":")
        found = load(module)
        for part in name.strip().split("."):
            if part not in found.members:
                raise ValueError(f"{module} has no {name.strip()}, which the reference shows.")
            found = found.members[part]
            if found.is_alias:
                raise ValueError(f"{module} only imports {part}; show it where it is defined.")
        blocks.append(_object(found, name.strip(), wanted.split() if colon else None))
    return "\n\n".join(blocks)


def _object(found: Any, name: str, wanted: list[str] | None) -> str:
    """The directive of an object, with those of its members inside."""
    if found.docstring is None:
        raise ValueError(f"{found.path} has no docstring, and the reference shows it.")
    body = [*_docstring(found)]
    if found.is_class:
        members = _public(found) if wanted is None else wanted
        body += [_object(found.members[each], each, None) for each in members]
    kind, signature = _signature(found, name)
    content = "\n\n".join(body)
    longest = max((len(run) for run in re.findall(r"^`{3,}", content, re.MULTILINE)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{{py:{kind}}} {signature}\n\n{content}\n{fence}"


def _public(found: Any) -> list[str]:
    """Methods and properties that a class defines and documents."""
    return [
        name
        for name, member in found.members.items()
        if not name.startswith("_")
        and not member.is_alias
        and (member.is_function or "property" in member.labels)
        and member.docstring is not None
    ]


def _signature(found: Any, name: str) -> tuple[str, str]:
    method = found.parent is not None and found.parent.is_class
    if found.is_attribute:
        kind = "property" if "property" in found.labels else "data"
        return kind, name
    parameters = [each for each in found.parameters if not (method and each.name == "self")]
    if found.is_class:
        return "class", f"{name}({_parameters(_constructor(found))})"
    kind = "method" if method or "." in name else "function"
    returns = f" -> {_annotation(found.returns)}" if found.returns is not None else ""
    return kind, f"{name}({_parameters(parameters)}){returns}"


def _constructor(found: Any) -> list[Any]:
    """What a class is made with: the parameters of `__init__`, or the fields of a dataclass."""
    if "__init__" in found.members:
        return [each for each in found.members["__init__"].parameters if each.name != "self"]
    if not any("dataclass" in str(each.value) for each in found.decorators):
        return []
    kind = griffe.ParameterKind.positional_or_keyword
    return [
        griffe.Parameter(name, annotation=member.annotation, kind=kind, default=_default(member))
        for name, member in found.members.items()
        if member.is_attribute
        and member.annotation is not None
        and not name.startswith("_")
        and "ClassVar" not in str(member.annotation)
        and "property" not in member.labels
        and "init=False" not in str(member.value)
    ]


def _default(field: Any) -> Any:
    text = None if field.value is None else str(field.value)
    return "..." if text is not None and text.startswith("field(") else text


def _parameters(parameters: list[Any]) -> str:
    """Parameters as in the source, with `/` and `*` in their places."""
    parts: list[str] = []
    previous = None
    for each in parameters:
        kind = each.kind.value
        if previous == "positional-only" and kind != previous:
            parts.append("/")
        if kind == "keyword-only" and previous not in (kind, "variadic positional"):
            parts.append("*")
        star = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = star + each.name
        if each.annotation is not None:
            text += f": {_annotation(each.annotation)}"
        if each.default is not None and not star:
            text += f" = {each.default}" if each.annotation is not None else f"={each.default}"
        parts.append(text)
        previous = kind
    return ", ".join(parts)


def _annotation(expression: Any) -> str:
    """A type as in the source, but for the names of this package, which are written in full: the
    same short name stands for several classes, and the site shows the short one."""
    if isinstance(expression, str):
        return expression
    return "".join(
        part.canonical_path
        if isinstance(part, griffe.ExprName) and part.canonical_path.startswith("internvl.")
        else str(part)
        for part in expression.iterate(flat=True)
    )


def _docstring(found: Any) -> list[str]:
    """Sections of a docstring as Markdown; what is said of arguments, as fields."""
    blocks: list[str] = []
    fields: list[str] = []
    for section in found.docstring.parse("google", warnings=False):
        kind = section.kind
        if kind is griffe.DocstringSectionKind.text:
            blocks.append(_escape(section.value))
        elif kind is griffe.DocstringSectionKind.examples:
            code = "\n".join(text for _, text in section.value)
            blocks.append(f"```python\n{code}\n```")
        elif kind in _FIELDS:
            fields += [_field(f"{_FIELDS[kind]} {each.name}", each) for each in section.value]
        elif kind is griffe.DocstringSectionKind.raises:
            fields += [_field(f"raises {each.annotation}", each) for each in section.value]
        elif kind.value in ("returns", "yields"):
            text = " ".join(each.description for each in section.value)
            fields.append(_field("returns", text))
        else:
            raise ValueError(f"{found.path}: nobody shows a section {kind.value!r}.")
    return [*blocks, "\n".join(fields)] if fields else blocks


def _field(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else value.description
    return f":{name}: {textwrap.indent(_escape(text), '    ').strip()}"


def _escape(text: str) -> str:
    """Prose of a docstring as Markdown: what looks like a tag or an equation is text."""
    parts = _CODE.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = _SPECIAL.sub(r"\\\g<0>", parts[index])
    return "".join(parts)


def _read(app: Any, name: str, content: list[str]) -> None:
    for module, _ in _DIRECTIVE.findall(content[0]):
        app.env.note_dependency(str(load(module).filepath))
    content[0] = expand(content[0])


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
