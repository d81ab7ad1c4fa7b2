"""What we read of a ``config.json`` ourselves: it may come from anywhere, and hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paretomerge.errors import UserError


def architecture(config: Mapping[str, Any]) -> str:
    """The class that a configuration names first; "" if it names none.

    Raises:
        UserError: ``architectures`` is no list of names.
    """
    names = config.get("architectures")
    if not names and names in (None, [], ""):
        return ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong("architectures", names, "a list of class names")
    return str(names[0])


def count(config: Mapping[str, Any], *fields: str) -> int | None:
    """A whole number under the first of these names that the configuration has; None: it has none of them.

    Raises:
        UserError: it is no whole number, or less than 1.
    """
    for field in fields:
        if (value := config.get(field)) is None or value == 0:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(field, value, "a whole number")
        return value
    return None


def labels(config: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name of each class, in order; {} where the configuration names none.

    Raises:
        UserError: ``id2label`` is no such map.
    """
    names = config.get("id2label")
    if names is None:
        return {}
    try:
        return {number: str(name) for number, name in sorted((int(number), name) for number, name in names.items())}
    except (AttributeError, TypeError, ValueError) as error:
        raise _wrong("id2label", names, "a map from numbers to names") from error


def part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The configuration of a part, such as CLIP's ``vision_config``; {} where there is none.

    Raises:
        UserError: it is no object.
    """
    found = config.get(name)
    if not (found is None or isinstance(found, Mapping)):
        raise _wrong(name, found, "an object")
    return found or {}


def _wrong(field: str, value: object, wanted: str) -> UserError:
    return UserError(f"the model's config.json: {field} is {str(value)[:60]!r}, and should be {wanted}: download it again")
