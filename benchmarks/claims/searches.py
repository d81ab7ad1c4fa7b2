"""Searches for the tables of MAP's paper, and what is measured of the fronts that they find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from benchmarks.claims.methods import EXPERTS, PRECISION, Bench, Method
from paretomerge import api, preferences
from paretomerge.data import Task
from paretomerge.evaluation import FrontModels, Measure, OnTasks, sampled
from paretomerge.front import Front
from paretomerge.merges import processed
from paretomerge.models import ingredients_of
from paretomerge.results import Row
from paretomerge.sets import Searched

if TYPE_CHECKING:
    from benchmarks.claims.cells import Cell

Split = Literal["held-out", "transductive"]
POINTS = {"full": 30, "quick": 3}
"""Of a front that are measured: drawn by chance."""
KNOWN = 100
"""Points of a front whose metrics the search itself has measured: the paper's K."""
UNSEEN = {"full": 100, "quick": 20}
"""Test inputs a task, which no search saw, for points."""
CHOSEN = {"full": 200, "quick": 20}
"""The same for models that preferences choose."""
PREFERENCES = {"full": 20, "quick": 2}
BATCH = 100
FAST = {"precision": PRECISION, "batch_size": BATCH}
"""How searches measure: with enough inputs a batch, and twice as fast."""


def search(name: str, method: str, *, inputs: int = 100, **options: Any) -> Method:
    """A search by the metric of some validation inputs.

    Args:
        name: of the row.
        method: of ``paretomerge.search.methods``.
        inputs: validation inputs a task.
        options: of the method; a function gets the bench and the seed.
    """

    def make(on: Bench, seed: int) -> Front:
        chosen = {key: value(on, seed) if callable(value) else value for key, value in options.items()}
        return api.fit(on.experts, method, data=judged(on, inputs), hashes=False, seed=seed, **FAST, **chosen)

    shown = {key: value.__name__ if callable(value) else value for key, value in options.items()}
    return Method(name, make, {"method": method, "inputs": inputs, **shown}, front=True, seeded=True)


def judged(on: Bench, inputs: int) -> dict[str, Task]:
    """What a search looks at: validation inputs, in the place of those of a fit."""
    limit = inputs if on.mode == "full" else min(inputs, UNSEEN["quick"])
    found = on.suite.inputs("validation", limit=limit, labelled=True)
    return {name: replace(task, fit=task.held_out) for name, task in found.items()}


def asked(on: Bench, seed: int) -> list[str]:
    """Nested MAP's preferences: of those that all methods are asked for another few with each seed."""
    texts, each = sampled(on.suite.tasks, PREFERENCES[on.mode]), 3 if on.mode == "full" else 1
    return texts[each * seed : each * (seed + 1)]


def points(cell: Cell, on: Bench, front: Front, *, unseen: bool = True) -> Iterator[Row]:
    """Points of the front on the inputs that the search saw (transductive) and on others (held-out); facts on the search."""
    found = cast(Searched, front.pareto_set)
    known, settings = found.front, found.settings
    yield _row(cell, "evaluations", settings["models_evaluated"])
    yield _row(cell, "points", len(known.points))
    for of in known.metrics:
        if of_surrogate := settings["surrogates"].get(f"{of.task} {of.metric}"):
            yield _row(cell, "R2", of_surrogate["r2_held_out"], task=of.task)
    whole = np.isfinite(known.measured).all(1)
    drawn = np.random.default_rng(cell.seed).permutation(len(known.points))
    drawn = drawn[: KNOWN if whole.all() else POINTS[on.mode]]
    inputs = judged(on, cell.method.settings["inputs"])
    seen = known.measured[drawn] if whole.all() else metrics_at(on, front, inputs, known.points[drawn])
    yield from _rows_of(cell, inputs, seen, "transductive")
    if unseen:
        inputs = on.suite.inputs(limit=UNSEEN[on.mode])
        some = known.points[drawn[: POINTS[on.mode]]]
        yield from _rows_of(cell, inputs, metrics_at(on, front, inputs, some), "held-out")


def seen_points(cell: Cell, on: Bench, front: Front) -> Iterator[Row]:
    """The same without the inputs that no search saw."""
    return points(cell, on, front, unseen=False)


def chosen(cell: Cell, on: Bench, front: Front) -> Iterator[Row]:
    """Every task's metric of the models for some preferences; of one model alone, where there is no choice.

    A search offers, as in the paper, the point of its front with the largest preference-weighted sum of what it knows.
    """
    texts, found = sampled(cell.names, PREFERENCES[on.mode]), front.pareto_set
    if cell.method is EXPERTS:
        texts = [f"only:{task}" for task in cell.names]
    elif not cell.method.front:
        texts = ["equal"]
    elif isinstance(found, Searched) and found.front.preferences is not None:
        texts = asked(on, cell.seed)
    gammas = np.array([preferences.parse(text, cell.names) for text in texts])
    inputs = on.suite.inputs(limit=CHOSEN[on.mode])
    if isinstance(found, Searched):
        values = metrics_at(on, front, inputs, found.front.points[[best_sum(found, gamma) for gamma in gammas]])
    else:
        models = FrontModels(found, cell.names, front.config, front.heads, front.companions)
        values = _measured(OnTasks(inputs, **FAST).opened(models), cell.names, gammas)
    for text, row in zip(texts, values, strict=True):
        for task, value in zip(cell.names, row.tolist(), strict=True):
            if not text.startswith("only:") or text == f"only:{task}":
                yield _row(cell, inputs[task].metric, value, text, task)


def searched(cell: Cell, on: Bench, front: Front) -> Iterator[Row]:
    """Points and choices."""
    yield from points(cell, on, front)
    yield from chosen(cell, on, front)


def best_sum(found: Searched, gamma: np.ndarray) -> int:
    """The point of the front with the largest Σ_k γ_k M_k; with the point that was made for γ, if there is one."""
    known = found.front
    if known.preferences is not None:
        return found.point(torch.from_numpy(gamma))
    metrics = np.where(np.isfinite(known.measured), known.measured, known.predicted)
    signs = [1.0 if of.larger_is_better else -1.0 for of in known.metrics]
    return int((metrics * signs @ gamma).argmax())


def metrics_at(on: Bench, front: Front, inputs: Mapping[str, Task], c: np.ndarray) -> np.ndarray:
    """Metrics (P, K) at coefficients c (P, N) of a search, each tasks' in the order of ``inputs``."""
    settings = front.pareto_set.settings
    vectors = processed(on.experts, settings["inside"], density=settings["density"], seed=settings["seed"])
    return _measured(OnTasks(inputs, **FAST).opened(ingredients_of(on.experts, vectors)), tuple(inputs), c)


def _measured(measure: Measure, tasks: tuple[str, ...], at: np.ndarray) -> np.ndarray:
    """(P, K); what is the same point is measured once."""
    each, back = np.unique(at, axis=0, return_inverse=True)
    values = np.array([[found[task] for task in tasks] for point in each.tolist() for found in [measure(tuple(point), tasks)]])
    return values[back.reshape(-1)]


def _rows_of(cell: Cell, inputs: Mapping[str, Task], values: np.ndarray, split: Split) -> Iterator[Row]:
    for number, row in enumerate(values.tolist()):
        for (task, given), value in zip(inputs.items(), row, strict=True):
            yield _row(cell, given.metric, value, f"point {number}", task, split)


def _row(cell: Cell, metric: str, value: float, text: str = "", task: str = "", split: Split = "held-out") -> Row:
    return {"method": cell.method.name, "preference": text, "task": task, "metric": metric, "value": value, "split": split,
            "seed": cell.seed}  # fmt: skip


MEASURES = {"points": points, "seen points": seen_points, "chosen": chosen, "searched": searched}
"""``Cell.how`` of MAP's tables."""
