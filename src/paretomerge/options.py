"""The options of methods: a function's keyword-only parameters, checked by their annotations.

Options that several methods share are the fields of a frozen dataclass, a record. A method takes a record as one parameter,
whose default holds the method's own defaults, and the user sees the fields as options of the method:

    def pwe_moe(experts, tasks, *, scale: float | None = None,
                options: Annotated[TrainingOptions, Without("beta")] = TrainingOptions(batch_size=16)): ...

    --option scale=0.3 --option batch_size=8 --option steps=100        # scale, and two fields of options
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretomerge.errors import UserError

_INTERNAL = frozenset({"on", "progress", "run", "say"})
"""Parameters that the library fills in itself."""


class Without:
    """Marks the fields of a record that a method does not have: ``Annotated[TrainingOptions, Without("beta")]``."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)


def check_options(function: Callable[..., object], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Check that a function has options of these names and kinds.

    Args:
        function: a merge or the maker of a set.
        options: name -> value.
        what: the method's name, for messages.

    Returns:
        The options, fields of records under their own names: ``arguments`` puts them into the records.

    Raises:
        UserError: an unknown option, or a value of the wrong kind, NaN and infinity included.
    """
    known = dict(parameters_of(function))
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{what}: {unknown('option', name, known)}")
        annotation = known[name].annotation
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))
            checked[name] = adapter.validate_python(value)
        except ValidationError:
            raise UserError(f"{what}: {name} must be {kind_of(annotation)}, not {shown(value)}") from None
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


def arguments(function: Callable[..., object], options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that pass options to a function.

    Args:
        function: a method.
        options: name -> value, as ``check_options`` returns them.

    Returns:
        The options, but those that are fields of a record as this record, completed by the method's defaults.
    """
    given = dict(options)
    for parameter in _keywords(function):
        names = _fields(parameter)
        if names is not None:
            given[parameter.name] = replace(parameter.default, **{name: given.pop(name) for name in names if name in given})
    return given


def settings_of(function: Callable[..., object], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the arguments of a call say of each option of a function.

    Args:
        function: a method.
        given: the arguments of its call by name: ``locals()`` at its beginning.

    Returns:
        Option -> value; records are taken apart.

    Raises:
        UserError: a record in which a field differs from the method's default that the method does not have.
    """
    settings = {}
    for parameter in _keywords(function):
        value, names = given[parameter.name], _fields(parameter)
        if names is None:
            settings[parameter.name] = value
            continue
        settings |= {name: getattr(value, name) for name in names}
        for name in {field.name for field in fields(value)} - set(names):
            if getattr(value, name) != (default := getattr(parameter.default, name)):
                raise UserError(f"{getattr(function, '__name__', function)} has no option {name}: it is always {default!r}")
    return settings


def parameters_of(function: Callable[..., object]) -> list[tuple[str, inspect.Parameter]]:
    """A method's options by name, with defaults and annotations: its own, and the fields of its records."""
    found = []
    for parameter in _keywords(function):
        names = _fields(parameter)
        if names is None:
            found.append((parameter.name, parameter))
            continue
        hints = get_type_hints(type(parameter.default))
        for name in names:
            default = getattr(parameter.default, name)
            found.append((name, inspect.Parameter(name, parameter.kind, default=default, annotation=hints[name])))
    return found


def documented(function: Callable[..., object]) -> list[object]:
    """The objects whose docstrings explain a function's options: its records, and, last, the function itself."""
    return [*(type(p.default) for p in _keywords(function) if _fields(p) is not None), function]


def _keywords(function: Callable[..., object]) -> Iterator[inspect.Parameter]:
    """The keyword-only parameters that a user gives, with their annotations evaluated."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _INTERNAL:
            yield parameter.replace(annotation=hints[name])


def _fields(parameter: inspect.Parameter) -> list[str] | None:
    """The options in a record; None: the parameter is an option itself."""
    if not is_dataclass(parameter.default) or isinstance(parameter.default, type):
        return None
    marks = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    left_out = frozenset().union(*(mark.names for mark in marks if isinstance(mark, Without)))
    return [field.name for field in fields(parameter.default) if field.name not in left_out]


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
