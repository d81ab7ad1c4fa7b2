"""The name=value texts of flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paretomerge.errors import UserError
from paretomerge.specs.strict_yaml import parse_yaml


def parse_numbers(texts: Sequence[str], flag: str) -> dict[str, float]:
    """name=number texts of a flag."""
    numbers = {}
    for name, text in parse_pairs(texts, flag, "math=0.9").items():
        try:
            numbers[name] = float(text)
        except ValueError:
            raise UserError(f"{flag} {name}={text}: {text!r} is not a number") from None
    return numbers


def parse_pairs(texts: Sequence[str], flag: str, example: str) -> dict[str, str]:
    """name=value texts of a flag, each name once."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UserError(f"{flag} {text}: write a name, = and a value, for instance {flag} {example}")
        if name in pairs:
            raise UserError(f"{flag} {text}: {name} is given twice")
        pairs[name] = value
    return pairs


def option_values(texts: Sequence[str]) -> dict[str, Any]:
    """The values of --option flags."""
    return _values(texts, "--option")


def _values(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """name=value texts, each value as YAML; one that starts like an alias (``*.attn.*``) is text."""
    pairs = parse_pairs(texts, flag, "density=0.2")
    return {name: value if value[0] in "*&!%@`|>" else parse_yaml(value, f"{flag} {name}") for name, value in pairs.items()}
