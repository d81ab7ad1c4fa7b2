"""What a table is, and the cells of a list of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.claims.cells import Cell, Results
from benchmarks.claims.methods import Method
from benchmarks.claims.suite import Suite, Use

SEEDS = {"full": (0, 1, 2), "quick": (0,)}
PAIR = ("greek", "cyrillic")
"""The two tasks of tables d and g2: of one kind, in different domains."""


@dataclass(frozen=True)
class Table:
    """What a table is about, and its cells."""

    name: str
    title: str
    paper: str
    cells: list[Cell] = field(repr=False)
    layout: str | Callable[[Table, Results], Iterator[str]] = "accuracy"
    """A key of ``report.LAYOUTS``, or what makes the lines of markdown."""
    note: str = ""


def cells_of(
    suite: Suite, chosen: Sequence[Method], mode: str, uses: Sequence[Use] = ("held-out",), seeds: int = 3, **more
) -> list[Cell]:
    """Every method with every use and, where the seed matters, several; a first seed of all methods comes first.

    Transductive is only what is fitted: all else is the same on the same inputs.
    """
    return [
        Cell(suite, method, use, seed, mode=mode, **more)
        for use in uses
        for seed in SEEDS[mode][:seeds]
        for method in chosen
        if (use == "held-out" or method.fitted) and (seed == 0 or (method.seeded and not method.once))
    ]
