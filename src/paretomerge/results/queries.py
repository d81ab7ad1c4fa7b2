"""Questions to measured rows: no model is needed to answer them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from paretomerge import preferences
from paretomerge.decompositions import least_squares
from paretomerge.errors import UserError
from paretomerge.results.metrics import larger_is_better
from paretomerge.results.quality import non_dominated
from paretomerge.results.rows import Row


class Found(NamedTuple):
    """The answer to a question."""

    preference: str
    values: dict[str, float]
    """Task -> measured metric there."""
    points: int
    """How many preferences were measured, of which this one is chosen."""


def best_with(
    rows: Iterable[Row],
    tasks: Sequence[str],
    *,
    at_least: Mapping[str, float],
    maximise: str,
    shown: Callable[[str, float], str] = lambda task, value: f"{value:.4g}",
) -> Found:
    """The measured preference that is best for one task among those good enough for others.

    Args:
        rows: of one method.
        tasks: of the front, in order.
        at_least: task -> its value at the least; for a metric of which less is better (perplexity), at the most.
        maximise: the task to be best at. Of equals, the first measured.
        shown: how a task's value is written in a refusal.

    Raises:
        UserError: no measured preference is good enough (the best that can be had is named), or none is measured.
    """
    needed = [*at_least, maximise]
    signs, points = _points(rows, tasks, needed)
    values = list(points.values())

    def good(point: _Point, among: Iterable[str]) -> bool:
        return all(signs[task] * point.values[task] >= signs[task] * at_least[task] for task in among)

    reached = [point for point in values if good(point, at_least)]
    if reached:
        best = max(reached, key=lambda point: signs[maximise] * point.values[maximise])
        return Found(best.preference, best.values, len(points))
    wanted = " and ".join(f"{task} {'≥' if signs[task] > 0 else '≤'} {shown(task, bound)}" for task, bound in at_least.items())
    offers = []
    for task in at_least:
        others = [other for other in at_least if other != task]
        if rest := [point for point in values if good(point, others)]:
            best = max(rest, key=lambda point: signs[task] * point.values[task])
            condition = f" with {', '.join(others)} good enough" if others else ""
            offers.append(f"the best {task}{condition} is {shown(task, best.values[task])} at {best.preference}")
    hint = "; ".join(offers) or "not even all but one of these"
    raise UserError(f"none of the {len(points)} measured preferences has {wanted}: {hint}")


def knee(rows: Iterable[Row], tasks: Sequence[str]) -> Found:
    """The knee of the measured front: the preference after which a gain in one task costs most in the others.

    Of the points that no other dominates, each task's values are brought to [0, 1] (worst to best). The points that are best
    at one task each span a hyperplane {f : w·f = 1}; the knee is the point farthest from it on the good side (Das 1999).
    Where several tasks have the same best point, w is the shortest that fits. On a front that bends inwards no point is on
    the good side, and a single task's best is returned.

    Args:
        rows: of one method.
        tasks: of the front, in order; every one is needed.

    Raises:
        UserError: no preference is measured for every task.
    """
    signs, points = _points(rows, tasks, tasks)
    each = list(points.values())
    f = np.array([[signs[task] * point.values[task] for task in tasks] for point in each])  # (points, K), more is better
    kept = np.flatnonzero(non_dominated(f, maximise=True))
    f = f[kept]
    spread = np.ptp(f, axis=0)
    f = (f - f.min(0)) / np.where(spread > 0, spread, 1)
    best = f[f.argmax(0)]  # (K, K): row k is the point that is best at task k
    w = least_squares(best, np.ones(len(tasks)))
    distance = (f @ w - 1) / (np.linalg.norm(w) or 1)
    chosen = each[kept[int(distance.argmax())]]
    return Found(chosen.preference, chosen.values, len(points))


class _Point(NamedTuple):
    preference: str
    values: dict[str, float]


def _points(
    rows: Iterable[Row], tasks: Sequence[str], needed: Sequence[str]
) -> tuple[dict[str, int], dict[tuple[float, ...], _Point]]:
    """+1 or −1 for each needed task, and γ -> its values: means over seeds; of held-out rows alone, where there are any.

    A number that is not finite counts as not measured.
    """
    if unknown := [task for task in needed if task not in tasks]:
        raise UserError(f"no task is called {unknown[0]!r} (tasks: {', '.join(tasks)})")
    rows = [row for row in rows if row["task"] in needed and math.isfinite(row["value"])]
    if len(methods := {row["method"] for row in rows}) > 1:
        raise UserError(f"rows of several methods: {', '.join(sorted(methods))}: ask about one")
    signs: dict[str, int] = {}
    found: dict[tuple[float, ...], _Point] = {}
    collected: dict[tuple[tuple[float, ...], str], list[float]] = {}
    for task in needed:
        own = [row for row in rows if row["task"] == task]
        own = [row for row in own if row["split"] == "held-out"] or own
        metrics = sorted({row["metric"] for row in own})
        if len(metrics) > 1:
            raise UserError(f"task {task} was measured with several metrics: {', '.join(metrics)}: ask about one")
        signs[task] = 1 if all(row.get("larger_is_better", larger_is_better(row["metric"])) for row in own) else -1
        for row in own:
            gamma = tuple(round(share, 12) for share in preferences.parse(row["preference"], tasks))
            found.setdefault(gamma, _Point(row["preference"], {}))
            collected.setdefault((gamma, task), []).append(row["value"])
    for (gamma, task), values in collected.items():
        found[gamma].values[task] = fmean(values)
    complete = {gamma: point for gamma, point in found.items() if all(task in point.values for task in needed)}
    if not complete:
        raise UserError(f"no preference is measured for {', '.join(dict.fromkeys(needed))}: run paretomerge evaluate first")
    return signs, complete
