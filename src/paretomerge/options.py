"""The options of methods: a function's keyword-only parameters, checked by their annotations."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretomerge.errors import UserError

_INTERNAL = frozenset({"on", "progress", "folder", "resume", "report", "say"})
"""Parameters that the library fills in itself."""


def check_options(function: Callable[..., object], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The options, if ``function`` has keyword-only parameters of these names and kinds.

    Args:
        function: a merge or the maker of a set.
        options: name -> value.
        what: the method's name, for messages.

    Raises:
        UserError: an unknown option, or a value of the wrong kind, NaN and infinity included.
    """
    hints = get_type_hints(function)
    known = [name for name, _ in parameters_of(function)]
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{what}: {unknown('option', name, known)}")
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(hints[name], config=ConfigDict(strict=True, allow_inf_nan=False))
            checked[name] = adapter.validate_python(value)
        except ValidationError:
            raise UserError(f"{what}: {name} must be {kind_of(hints[name])}, not {shown(value)}") from None
    return checked


def option_names(function: Callable[..., object]) -> list[str]:
    """The options that ``check_options`` knows of a function."""
    return [name for name, _ in parameters_of(function)]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The words that refuse a name, with the nearest known one.

    >>> unknown("option", "densty", ["density", "scale"])
    "unknown option 'densty', did you mean 'density'? (known: density, scale)"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {shown(name)}{hint} (known: {', '.join(known) or 'none'})"


def parameters_of(function: Callable[..., object]) -> list[tuple[str, inspect.Parameter]]:
    """A method's options, by name."""
    parameters = inspect.signature(function).parameters.items()
    return [(name, p) for name, p in parameters if p.kind is p.KEYWORD_ONLY and name not in _INTERNAL]


def kind_of(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(kind_of(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"a map from task to {kind_of(arguments[1]).removeprefix('a ')}"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return "a list"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return words.get(annotation, str(annotation))


def shown(value: object) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
