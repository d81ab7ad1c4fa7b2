"""The tables of the text suite: accuracy, and what is stored on a model three times as wide as the vision suite's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.claims import methods, text
from benchmarks.claims.methods import Method
from benchmarks.claims.table import Table, cells_of

STEPS = 60
"""Of a fit: a step costs eight of the vision suite's."""


def _fitted(name: str, method: str = "pareto-merging", **options: Any) -> Method:
    return methods.fitted(name, method, steps=STEPS, batch_size=16, **options)


MERGED = [
    method
    for method in methods.SINGLE
    if method.name in ("Task Arithmetic, λ 0.3", "Task Arithmetic, λ 1/K", "TIES, λ 1", "TSV-M")
]
CHOSEN = [
    methods.PRETRAINED,
    methods.EXPERTS,
    *MERGED,
    methods.MERGED_ON_DATA[1],
    _fitted("AdaMerging", "adamerging"),
    methods.SOUPS,
    methods.PM_TA,
    methods.closed_form("PM on TA λ 1/K, all matrices, rank 16", targets="all", rank=16),
    _fitted("PM, distilled, rank 16"),
    _fitted("steered, distilled, rank 16", "steered"),
]


def accuracy(mode: str) -> Table:
    note = f"λ 1/K is weight averaging. Fits run {STEPS} steps of 16 texts a task."
    title = "Five text tasks on MiniLM: accuracy"
    return Table("text", title, "no table of a paper", cells_of(text.suite(), CHOSEN, mode, seeds=1), note=note)


def cost(mode: str) -> Table:
    cells = [cell for cell in accuracy(mode).cells if cell.method not in (methods.PRETRAINED, methods.EXPERTS)]
    title = "Five text tasks on MiniLM: what making and keeping costs"
    return Table("text-cost", title, "Pareto Merging, table 1", cells, layout="cost")


TABLES: dict[str, Callable[[str], Table]] = {"text": accuracy, "text-cost": cost}
