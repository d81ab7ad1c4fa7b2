"""JSON as the standard has it: numbers are finite, and whatever is in a text, the file is UTF-8 and its lines are safe to show.

Python also writes NaN and Infinity, which no other reader takes, and surrogates, which no file in UTF-8 can hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_TAG = "__float__"
"""transformers' way to write a number that is not finite: {"__float__": "Infinity"}."""
_TAGGED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def as_json(value: object, *, indent: int | None = 2) -> str:
    """A value as JSON; a number that is not finite becomes an object, as transformers writes it in ``config.json``.

    >>> as_json({"x": float("inf")}, indent=None)
    '{"x": {"__float__": "Infinity"}}'
    """
    return _dumped(_replaced(value, tagged=True), indent)


def printed_json(value: object) -> str:
    """The same for ``--json``, to people and their programs: a number that is not finite is null."""
    return _dumped(_replaced(value, tagged=False), 2)


def compact_json(value: object) -> str:
    """The same on one line, in which a number that is not finite is null: figures have a gap there."""
    return _dumped(_replaced(value, tagged=False), None)


def parsed_json(text: str) -> Any:
    """What ``as_json`` wrote."""
    return json.loads(text, object_hook=untagged)


def untagged(value: dict[str, Any]) -> Any:
    """An object that was read: the number that it stands for, or itself.

    >>> untagged({"__float__": "-Infinity"}), untagged({"x": 1})
    (-inf, {'x': 1})
    """
    if value.keys() == {_TAG} and isinstance(value[_TAG], str):
        return _TAGGED.get(value[_TAG], value)
    return value


def _replaced(value: Any, *, tagged: bool) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: next(tag for tag, number in _TAGGED.items() if str(number) == str(value))} if tagged else None
    if isinstance(value, Mapping):
        return {key: _replaced(inner, tagged=tagged) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(inner, tagged=tagged) for inner in value]
    return value


def _dumped(value: object, indent: int | None) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    # inside of texts alone: JSON's own signs, and the line ends of an indent, are ASCII
    return re.sub(r"[^\x20-\x7e\n]", lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)
