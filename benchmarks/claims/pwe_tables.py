"""The tables of PWE-MoE's paper (Tang et al. 2024): eight tasks, two, three, what training costs, and the routing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.claims import methods, vision
from benchmarks.claims.methods import Method
from benchmarks.claims.table import PAIR, Table, cells_of

TRIPLE = ("mnist", "greek", "georgian")
"""Table g3's tasks."""


def _pwe(name: str, **options: Any) -> Method:
    """The paper's recipe with fewer steps; labels are needed."""
    return methods.fitted(f"{name} (labels)", "pwe-moe", preset="paper", steps=methods.STEPS, labels=True, **options)


def _trained(name: str, scalarization: str) -> Method:
    return methods.fitted(
        f"{name} (labels)", "training", steps=methods.STEPS, labels=True, batch_size=16, lr=4e-4, scalarization=scalarization
    )


ATTENTION = _pwe("PWE-MoE, paper, attention + MLP", modules="attention+mlp")
EPO = _pwe("PWE-MoE EPO, paper, MLP", scalarization="epo")
EPO_ATTENTION = _pwe("PWE-MoE EPO, paper, attention + MLP", modules="attention+mlp", scalarization="epo")
DISTILLED = methods.fitted("PWE-MoE, distilled, MLP", "pwe-moe", steps=methods.STEPS, modules="mlp")
PAPERS = [methods.PWE_PAPER, ATTENTION, EPO, EPO_ATTENTION]
TRAINED = [methods.TRAINED, _trained("EPO training", "epo"), _trained("MGDA training", "mgda")]
"""Baselines that train the whole model."""
MERGED = [method for method in methods.SINGLE if method.name.startswith(("weight", "Task", "TIES"))]


def eight(mode: str) -> Table:
    suite, known = vision.suite(), [methods.PRETRAINED, methods.EXPERTS, *MERGED, *methods.MERGED_ON_DATA]
    several = [methods.PWE_PAPER, ATTENTION, methods.PWE, methods.TRAINED]
    cells = cells_of(suite, [*known, methods.SOUPS, *several], mode)
    cells += cells_of(suite, [EPO, EPO_ATTENTION, DISTILLED, *TRAINED[1:]], mode, seeds=1)
    note = (
        f"`paper`: its settings, but for {methods.STEPS} steps instead of 4 000; distilled: our defaults, without labels. "
        "Training: all parameters, at equal preference, in as few steps, and so far from its end. Last column: "
        "the paper's mean, of CLIP ViT-B/32 on eight other tasks."
    )
    return Table("g", "PWE-MoE on eight image tasks: accuracy", "PWE-MoE, table 2", cells, note=note)


def two(mode: str) -> Table:
    chosen = [methods.EXPERTS, methods.SINGLE[2], methods.SINGLE[4], methods.SOUPS, *PAPERS, methods.PWE, *TRAINED]
    cells = cells_of(vision.suite(), chosen, mode, tasks=PAIR, how="line", seeds=1)
    return Table("g2", f"PWE-MoE on two tasks: {' and '.join(PAIR)}", "PWE-MoE, figure 3", cells, "line")


def three(mode: str) -> Table:
    chosen = [methods.PRETRAINED, methods.EXPERTS, *MERGED, methods.PWE_PAPER, ATTENTION, methods.PWE]
    cells = cells_of(vision.suite(), [*chosen, *TRAINED], mode, tasks=TRIPLE, seeds=1)
    note = "Last column: the paper's mean, of SUN397, Cars and DTD."
    return Table("g3", f"PWE-MoE on three tasks: {', '.join(TRIPLE)}", "PWE-MoE, figure 5", cells, note=note)


def training(mode: str) -> Table:
    fitted = [*PAPERS, *TRAINED]
    cells = [cell for table in (two(mode), three(mode), eight(mode)) for cell in table.cells if cell.method in fitted]
    note = "Minutes of the paper: on an RTX 4090, with 4 000 steps or fewer. Stored: all parameters that make any model."
    return Table("g8", "What training PWE-MoE costs", "PWE-MoE, tables 1 and 8", cells, "training", note)


def routing(mode: str) -> Table:
    cells = [cell for cell in eight(mode).cells if cell.method in (methods.PWE_PAPER, methods.PWE) and cell.seed == 0]
    note = (
        "How much of each task vector a module gets when one task is all that counts; modules in order of depth. Own: the mean "
        "coefficient of the preferred task's vector; others: of the other tasks' vectors."
    )
    return Table("g5", "Routing over depth at one-hot preferences", "PWE-MoE, figure 8", cells, "routing", note)


TABLES: dict[str, Callable[[str], Table]] = {"g": eight, "g2": two, "g3": three, "g8": training, "g5": routing}
