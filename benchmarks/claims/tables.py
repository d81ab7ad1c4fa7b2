"""The tables: which cells each needs, and how they become rows."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.claims import language, map_tables, methods, pwe_tables, text_tables, vision
from benchmarks.claims.cells import SAMPLE
from benchmarks.claims.table import PAIR, Table, cells_of

UNSEEN = (("mnist", "georgian"), ("digits", "hebrew"))
"""Table c's tasks that are not merged, twice, as in the paper's tables 3 and 4."""
RANKS = (1, 2, 4, 8, 16, 32, 64)
FOUR = ("mnist", "greek", "arabic", "georgian")
"""Table j's tasks: half the suite, for half the cost."""


def accuracy(mode: str) -> Table:
    chosen = [
        methods.PRETRAINED, methods.EXPERTS, *methods.SINGLE, methods.SOUPS, methods.SOUPS_03, *methods.CLOSED, *methods.FITTED
    ]  # fmt: skip
    cells = cells_of(vision.suite(), chosen, mode)
    # With their labels, fitted or searched on the test inputs, would be no method.
    cells += cells_of(vision.suite(), methods.BY_PREDICTIONS, mode, ["transductive"])
    note = (
        f"Fits run {methods.STEPS} steps. `paper`: the paper's settings (`--preset paper`), but for lr {methods.LR}, which is "
        "to make up for fewer steps, as in AdaMerging; multi-task training has as few, and is far from its end. Last column: "
        "the paper's mean, of CLIP ViT-B/32 on eight other tasks."
    )
    return Table("a", "Eight image tasks: accuracy", "Pareto Merging, table 2", cells, note=note)


def cost(mode: str) -> Table:
    chosen = [methods.SINGLE[2], methods.SOUPS, methods.PM_TA, methods.PM_TA_ALL, *methods.FITTED]
    return Table(
        "b", "What making and keeping costs", "Pareto Merging, table 1", cells_of(vision.suite(), chosen, mode), layout="cost"
    )


def unseen(mode: str) -> Table:
    suite = vision.suite()
    chosen = [
        methods.PRETRAINED,
        methods.SINGLE[2],
        methods.PM_TA_ALL,
        methods.ADA,
        methods.PAPER,
        methods.ADA_DISTILLED,
        methods.PM,
    ]
    cells = []
    for left_out in UNSEEN:
        seen = tuple(task for task in suite.tasks if task not in left_out)
        cells += cells_of(suite, chosen, mode, tasks=seen, how="unseen", seeds=1)
    return Table("c", "Tasks that no expert knows", "Pareto Merging, tables 3 and 4", cells, layout="unseen")


def two_tasks(mode: str) -> Table:
    chosen = [
        methods.EXPERTS, methods.SINGLE[3], methods.SOUPS, methods.PM_TA, methods.PM_TA_ALL,
        methods.ADA, methods.PAPER, methods.ADA_DISTILLED, methods.PM, methods.STEERED, methods.MAP_TWO,
    ]  # fmt: skip
    cells = cells_of(vision.suite(), chosen, mode, tasks=PAIR, how="line")
    return Table("d", f"Two tasks, eleven preferences: {' and '.join(PAIR)}", "Pareto Merging, figures 4 and 8", cells, "line")


def ranks(mode: str) -> Table:
    closed = [methods.closed_form(f"PM without data, rank {r}", rank=r, targets="all") for r in RANKS]
    steps = methods.STEPS // 2
    fitted = {r: methods.fitted(f"PM, distilled, rank {r}, short", rank=r, steps=steps) for r in (2, 8, 16, 32)}
    structures = [
        methods.fitted(f"PM, distilled, rank 16, short, {name}", structure=name, rank=16, steps=steps)
        for name in ("outer-1", "outer-2")
    ]
    cells = cells_of(vision.suite(), [*closed, *fitted.values()], mode, seeds=1)
    cells += cells_of(vision.suite(), [fitted[16], *structures], mode)[1:]
    note = f"Short: {steps} steps. Without data and distilled: all matrices are targets, the start is the closed form."
    return Table("e", "Rank, and outer products instead of the tensor", "Pareto Merging, figures 6 and 12", cells, note=note)


def objectives(mode: str) -> Table:
    steps = methods.STEPS // 2
    chosen = [
        methods.fitted(f"{objective}, {start} start, rank {r}", objective=objective, start=start, rank=r, steps=steps)
        for objective in ("entropy", "infomax", "distill")
        for start in ("kaiming", "closed-form")
        for r in (4, 16)
    ]
    cells = cells_of(vision.suite(), [methods.SINGLE[2], methods.SOUPS, *chosen], mode, tasks=FOUR, seeds=1)
    note = f"Four tasks, {steps} steps, all else as in the recommended preset: λ 1/K, all matrices, linear scalarisation."
    return Table("j", "Objective, start and rank of Pareto Merging's fit", "none", cells, note=note)


def footing(mode: str) -> Table:
    chosen = [
        methods.SINGLE[2], methods.SOUPS, methods.PM_TA, methods.PM_TA_ALL, methods.ADA, methods.PAPER, methods.ADA_DISTILLED,
        methods.PM, methods.STEERED, methods.PWE, *methods.REACT, methods.MAP,
    ]  # fmt: skip
    note = (
        f"Equal, one-hot and {SAMPLE['full']} preferences drawn uniformly from the simplex, {methods.FEW} inputs a task. "
        "Weighted: mean over the drawn preferences of Σ_k γ_k accuracy_k, at the model for γ. Control: Spearman's correlation "
        "of γ_k and the accuracy on task k, mean over tasks. Hypervolume: of accuracies divided by the experts', against 0. "
        "Non-dominated: share of the models. A method without preferences has one model for all."
    )
    return Table(
        "i",
        "Every set on the same footing",
        "none",
        cells_of(vision.suite(), chosen, mode, how="spread", seeds=1),
        "spread",
        note,
    )


def wider(mode: str) -> Table:
    chosen = [
        methods.PRETRAINED, methods.EXPERTS, *methods.SINGLE[:3], methods.SINGLE[4], methods.SOUPS, methods.PM_TA,
        methods.PM_TA_ALL, methods.PM,
    ]  # fmt: skip
    cells = cells_of(vision.suite(192), chosen, mode, seeds=1)
    return Table("wide", "The same tasks on a wider transformer (2.7 M)", "Pareto Merging, table 6 (ViT-L/14)", cells)


def languages(mode: str) -> Table:
    chosen = [
        methods.PRETRAINED, methods.EXPERTS, *methods.SINGLE[:5], methods.SOUPS, methods.PM_TA, methods.PM_TA_ALL,
    ]  # fmt: skip
    return Table(
        "language",
        "Four languages, a small GPT-2: perplexity",
        "MAP, table 7 (Llama-3)",
        cells_of(language.suite(), chosen, mode),
    )


TABLES: dict[str, Callable[[str], Table]] = {
    "a": accuracy, "b": cost, "c": unseen, "d": two_tasks, "e": ranks, "i": footing, "j": objectives, "wide": wider,
    **text_tables.TABLES, "language": languages, **pwe_tables.TABLES, **map_tables.TABLES,
}  # fmt: skip
