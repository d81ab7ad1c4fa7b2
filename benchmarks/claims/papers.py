"""The papers' own figures (docs/papers.csv), by the names of our rows."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

FIGURES = Path(__file__).parents[2] / "docs" / "papers.csv"
NAMES = {
    "the experts": "Individual",
    "weight averaging": "Weight Averaging",
    "Task Arithmetic, λ 0.3": "Task Arithmetic",
    "TIES, λ 1": "TIES-Merging",
    "DARE + TA, λ 0.3": "DARE",
    "PM on TA λ 0.3, attention": "Task Arithmetic + PM",
    "PM on TIES, attention": "TIES-Merging + PM",
    "Fisher merging": "Fisher Merging",
    "RegMean": "RegMean",
    "MAP, 100 evaluations": "MAP",
    "multi-task training (labels)": "Traditional MTL",
    "PWE-MoE, paper (labels)": "Ours-LS (MLP)",
    "AdaMerging": "AdaMerging",
    "AdaMerging + PM, paper": "AdaMerging + PM",
    "AdaMerging + TIES": "AdaMerging + TIES",
    "AdaMerging + TIES + PM, paper": "AdaMerging + TIES + PM",
}
"""Our row -> that of Pareto Merging's table 2, or of PWE-MoE's (both CLIP ViT-B/32, the same eight tasks)."""


@cache
def _averages() -> dict[tuple[str, str], str]:
    with open(FIGURES, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "table 2" and row["column"] in ("Average", "Avg.")]
    rows.sort(key=lambda row: row["paper"].startswith("Pareto Merging"))  # where both have a row, Pareto Merging's counts
    return {(row["method"], row["preference"]): row["value"] for row in rows}


def average(method: str, kind: str) -> str:
    """The paper's average accuracy in % for one of our rows, or nothing.

    >>> average("AdaMerging + PM, paper", "priority"), average("AdaMerging", "equal"), average("Iso-C", "equal")
    ('85.5', '80.1', '')
    """
    theirs, found = NAMES.get(method, ""), _averages()
    without = kind == "equal" or theirs == "Individual"  # the paper's rows that have no preference
    return found.get((theirs, kind), found.get((theirs, ""), "") if without else "")
