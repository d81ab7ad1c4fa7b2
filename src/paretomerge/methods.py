"""The methods, from the functions themselves: options from the signature, and what each needs from its docstring.

A method is listed because its function is in one of ``_LISTS``; its docstring ends with three lines:

    Needs: what it looks at beside the models: no data, inputs, labels, an evaluator.
    Stores: what it leaves on disk.
    Paper: where it is from.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from paretomerge.errors import UserError
from paretomerge.options import documented, kind_of, parameters_of, unknown

_LISTS = {
    "merge": "merges:MERGES",
    "merge --data": "merges:MERGES_ON_DATA",
    "fit": "fitting:FITS",
    "fit --data": "fitting.on_data:FITS_ON_DATA",
    "fit by evaluations": "search.methods:SEARCHES",
}
"""Command -> where the functions of its methods are: name -> function."""
_FIELDS = ("Needs", "Stores", "Paper")


def functions() -> list[tuple[str, str, Callable[..., object]]]:
    """(command, name, function) of every method; one that works with data and without has two."""
    found = []
    for command, place in _LISTS.items():
        module, _, name = place.partition(":")
        listed: Mapping[str, Callable[..., object]] = getattr(import_module(f"paretomerge.{module}"), name)
        found += [(command, method, function) for method, function in listed.items()]
    return found


def describe_methods(only: str | None = None) -> list[dict[str, Any]]:
    """Name, command, summary, needs, stores, paper and options (default, kind, meaning) of every method, or of one.

    Raises:
        UserError: no method is called ``only``.
    """
    listed = functions()
    if only is not None and only not in (names := [name for _, name, _ in listed]):
        raise UserError(unknown("method", only, dict.fromkeys(names)))
    return [_described(command, name, f) for command, name, f in listed if only in (None, name)]


def evaluator_options() -> dict[str, dict[str, dict[str, Any]]]:
    """Options that a fit by evaluations hands on: what measures -> option -> default, kind, meaning."""
    from paretomerge.evaluation.resolve import EVALUATORS

    return {(inspect.getdoc(e) or "").split(":")[0]: _options(e) for e in EVALUATORS.values()}


def _described(command: str, name: str, function: Callable[..., object]) -> dict[str, Any]:
    doc = inspect.getdoc(function) or ""
    fields = dict(re.findall(rf"^({'|'.join(_FIELDS)}): (.*(?:\n {{4}}.*)*)", doc, re.MULTILINE))
    facts = {field.lower(): " ".join(fields.get(field, "").split()).removesuffix(".") for field in _FIELDS}
    row = {"name": name, "command": command, "summary": doc.split("\n")[0], **facts, "options": _options(function)}
    return row | ({"evaluators": evaluator_options()} if command == "fit by evaluations" else {})


def _options(function: Callable[..., object]) -> dict[str, dict[str, Any]]:
    meanings: dict[str, str] = {}
    for explained in documented(function):  # what a function says itself counts more than what its records say
        meanings |= re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(explained) or "", re.MULTILINE)
    return {
        option: {
            "default": parameter.default,
            "kind": kind_of(parameter.annotation),
            "meaning": " ".join(meanings.get(option, "").split()),
        }
        for option, parameter in parameters_of(function)
    }
