"""Which of a recipe's and the flags' inputs a command on a front wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paretomerge.front.front import Front
    from paretomerge.specs.data_spec import DataSpec


def wanted(front: Front, found: Mapping[str, DataSpec | str], flags: Sequence[str] | None) -> dict[str, DataSpec | str]:
    """A recipe's data of the front's tasks, and all that the flags name."""
    from paretomerge.recipes.flag_values import parse_pairs

    named = parse_pairs(flags or [], "--data", "math=data/math.jsonl")
    return {name: spec for name, spec in found.items() if name in front.tasks or name in named}
