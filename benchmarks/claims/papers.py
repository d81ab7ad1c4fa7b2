"""The papers' own figures (papers.csv of paretomerge.report), by the names of our rows."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from statistics import fmean

FIGURES = files("paretomerge.report") / "papers.csv"
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
    "PWE-MoE, paper, MLP (labels)": "Ours-LS (MLP)",
    "AdaMerging": "AdaMerging",
    "AdaMerging + PM, paper": "AdaMerging + PM",
    "AdaMerging + TIES": "AdaMerging + TIES",
    "AdaMerging + TIES + PM, paper": "AdaMerging + TIES + PM",
}
"""Our row -> that of Pareto Merging's table 2, or of PWE-MoE's (both CLIP ViT-B/32, the same eight tasks)."""


PWE = {
    "pretrained": "Pretrained",
    "the experts": "Fine-tuned (STL)",
    "TIES, λ 1": "Ties-Merging",
    "multi-task training (labels)": "LS (equal-weight)",
    "EPO training (labels)": "EPO (equal-weight)",
    "MGDA training (labels)": "MGDA",
    "PWE-MoE, paper, attention + MLP (labels)": "Ours-LS (Attn+MLP)",
    "PWE-MoE EPO, paper, MLP (labels)": "Ours-EPO (MLP)",
    "PWE-MoE EPO, paper, attention + MLP (labels)": "Ours-EPO (Attn+MLP)",
}
"""Our row -> that of PWE-MoE's tables, where it is another than ``NAMES`` has."""
THREE = {"pretrained": "pretrained", "the experts": "STL (fine-tuned)", "TIES, λ 1": "TIES-Merging"}
"""The same for its figure 5b."""
COSTS = {name: theirs.replace(" (Attn+MLP)", " (All)").replace(" (MLP)", "").replace(" (equal-weight)", "")
         for name, theirs in {**NAMES, **PWE}.items()}  # fmt: skip
"""The same for its table 8."""


@cache
def _rows(paper: str, table: str) -> list[dict[str, str]]:
    with FIGURES.open() as file:
        return [row for row in csv.DictReader(file) if row["table"] == table and row["paper"].startswith(paper)]


def average(method: str, kind: str, table: str = "a") -> str:
    """The paper's average accuracy in % for one of our rows, or nothing.

    Args:
        method: name of the row.
        kind: equal, priority or only.
        table: ours: a (Pareto Merging's table 2, or PWE-MoE's where that has no such row), g (PWE-MoE's), g3 (its figure 5b).

    >>> average("AdaMerging + PM, paper", "priority"), average("AdaMerging", "equal"), average("Iso-C", "equal")
    ('85.5', '80.1', '')
    >>> average("weight averaging", "equal"), average("weight averaging", "equal", "g")
    ('65.8', '66.0')
    >>> average("PWE-MoE, paper, attention + MLP (labels)", "only", "g3")
    '76.1'
    """
    if table not in ("a", "g", "g3"):
        return ""
    names = {"a": NAMES, "g": NAMES | PWE, "g3": NAMES | PWE | THREE}[table]
    sources = {"a": [("Pareto Merging", "table 2"), ("PWE-MoE", "table 2")], "g": [("PWE-MoE", "table 2")],
               "g3": [("PWE-MoE", "figure 5b")]}[table]  # fmt: skip
    theirs = names.get(method, "")
    for paper, where in sources:
        rows = _rows(paper, where)
        found = {row["preference"]: row["value"] for row in rows
                 if row["method"] == theirs and row["column"] in ("Average", "Avg.")}  # fmt: skip
        only = [float(row["value"]) for row in rows if row["method"] == f"{theirs}, only {row['column']}"]
        if kind == "only" and only:
            return f"{fmean(only):.1f}"
        if kind in found:
            return found[kind]
        if "" in found and (kind == "equal" or method == "the experts"):  # the paper's rows that have no preference
            return found[""]
    return ""


def training(method: str, n_tasks: int) -> tuple[str, str]:
    """Of PWE-MoE's table 8: trainable and total parameters, and minutes, for ViT-B/32; or nothing.

    >>> training("PWE-MoE, paper, MLP (labels)", 8), training("MGDA training (labels)", 8)
    (('3.36K / 566.81M', '10'), ('', ''))
    """
    found = {row["metric"].partition(" ")[0]: row["value"] for row in _rows("PWE-MoE", "table 8")
             if row["model"] == f"CLIP ViT-B/32, {n_tasks} tasks" and row["method"] == COSTS.get(method)}  # fmt: skip
    return found.get("trainable", ""), found.get("minutes", "")


def of_map(table: str, model: str, method: str, metric: str) -> str:
    """A figure of MAP's paper, or nothing.

    >>> of_map("table 7", "Llama-3-8B, Arabic+French", "LocMAP", "GD+IGD"), of_map("table 7", "", "", "")
    ('0.058', '')
    """
    wanted = (model, method, metric)
    return next((row["value"] for row in _rows("MAP", table) if (row["model"], row["method"], row["metric"]) == wanted), "")
