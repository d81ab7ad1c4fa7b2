"""What ``check`` finds, one line each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of ``paretomerge check``: what was found, where, and the cure."""

    level: Literal["error", "warning", "note"]
    file: str
    tensor: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.tensor, self.message) if part)


def some(names: Collection[str]) -> str:
    """The first of several names, and how many there are."""
    first = sorted(names)[0]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
