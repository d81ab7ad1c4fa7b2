"""Measured rows, read once: what is known of a front's models, for page, report, card and queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

import numpy as np

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.io.plain_text import line
from paretomerge.results.estimate import Estimator, Reading
from paretomerge.results.interpolation import between
from paretomerge.results.metrics import larger_is_better
from paretomerge.results.rows import EXPERT, PRETRAINED, Row


class Metric(NamedTuple):
    """How a task is measured, and how its numbers are shown."""

    name: str
    split: str
    larger_is_better: bool = True

    @property
    def sign(self) -> int:
        """+1 where more is better, −1 where less is."""
        return 1 if self.larger_is_better else -1

    @property
    def percent(self) -> bool:
        return self.name == "accuracy"

    def number(self, value: float) -> float:
        """The value in the unit that is shown."""
        return 100 * value if self.percent else value

    def text(self, value: float) -> str:
        """The value with its unit.

        >>> Metric("accuracy", "held-out").text(0.9123), Metric("perplexity", "held-out").text(12.345)
        ('91.2 %', '12.35')
        """
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    def error_text(self, error: float) -> str:
        """The same of an estimate's error, with two digits, without the unit.

        >>> Metric("accuracy", "held-out").error_text(0.0123), Metric("perplexity", "held-out").error_text(0.456)
        ('± 1.2', '± 0.46')
        """
        return f"± {100 * error:.1f}" if self.percent else f"± {error:.2g}"

    @property
    def label(self) -> str:
        """For an axis: ``accuracy (held-out), %``."""
        return f"{line(self.name, 60)} ({self.split})" + (", %" if self.percent else "")


class Point(NamedTuple):
    """One measured preference, or one model that is on no front."""

    name: str
    """The preference as it was asked for, or what the model is called."""
    gamma: preferences.Preference
    """Empty for a model by itself."""
    values: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """Measured rows, read once: means over seeds, held-out numbers alone where there are any."""

    tasks: tuple[str, ...]
    metrics: dict[str, Metric]
    """Of the tasks that were measured."""
    points: tuple[Point, ...]
    """The set's, for at least one task each, in the order measured."""
    experts: dict[str, dict[str, float]]
    """Expert -> task -> value."""
    others: tuple[Point, ...] = ()
    """Single models of other methods (the pretrained base …), at equal preference."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The tasks that were measured."""
        return tuple(task for task in self.tasks if task in self.metrics)

    @property
    def complete(self) -> tuple[Point, ...]:
        """Points with a value for every measured task."""
        return tuple(point for point in self.points if all(task in point.values for task in self.shown))

    @property
    def base(self) -> Point | None:
        """The base merge: the model at equal preference."""
        return next((p for p in self.points if max(p.gamma) - min(p.gamma) < 1e-9), None)

    def at(self, gamma: Sequence[float]) -> dict[str, Reading]:
        """Task -> what was measured at γ, or else an estimate with its error; without the tasks nothing can be said of."""
        found = {}
        groups: dict[tuple[int, ...], list[str]] = {}
        for task in self.shown:
            groups.setdefault(tuple(i for i, p in enumerate(self.points) if task in p.values), []).append(task)
        for indices, tasks in groups.items():  # as a rule one: all tasks were measured at the same preferences
            weights = between(gamma, [self.points[i].gamma for i in indices])
            if weights is None:
                continue
            for task in tasks:
                values = [self.points[i].values[task] for i in indices]
                reading = Reading(weights.of(values)) if weights.measured else self._estimators[task].at(gamma)
                if reading is not None:
                    found[task] = reading
        return found

    @cached_property
    def _estimators(self) -> dict[str, Estimator]:
        """Of each measured task, between the points where it was."""
        found = {}
        for task in self.shown:
            points = [p for p in self.points if task in p.values]
            found[task] = Estimator(
                [p.gamma for p in points],
                [p.values[task] for p in points],
                larger_is_better=self.metrics[task].larger_is_better,
            )
        return found

    def best(self, points: Iterable[Point] | None = None) -> tuple[Point, ...]:
        """The points that no other dominates, in all measured tasks together."""
        each = list(self.complete if points is None else points)
        if not each:
            return ()
        f = self.objectives(each)
        dominates = (f[:, None] >= f[None]).all(-1) & (f[:, None] > f[None]).any(-1)  # [i, j]: i dominates j
        return tuple(each[i] for i in np.flatnonzero(~dominates.any(0)))

    def objectives(self, points: Sequence[Point]) -> np.ndarray:
        """(n, tasks) fp64, more is better."""
        return np.array([[self.metrics[t].sign * point.values[t] for t in self.shown] for point in points], float)


def measured(rows: Iterable[Row], tasks: Sequence[str], method: str) -> Measured:
    """Read the rows of a front.

    Args:
        rows: as they are recorded; those of other methods are experts and single models.
        tasks: of the front.
        method: of its set. If no row is of it, the method with most rows is taken for it (``evaluate`` can rename it).
    """
    known = [row for row in rows if row["task"] in tasks and math.isfinite(row["value"])]
    metrics: dict[str, Metric] = {}
    for task in tasks:
        own = [row for row in known if row["task"] == task]
        own = [row for row in own if row["split"] == "held-out"] or own
        if own:
            names = [row["metric"] for row in own]
            name = max(dict.fromkeys(names), key=names.count)
            larger = all(row.get("larger_is_better", larger_is_better(name)) for row in own if row["metric"] == name)
            metrics[task] = Metric(name, own[0]["split"], larger)
    known = [row for row in known if (row["metric"], row["split"]) == metrics[row["task"]][:2]]
    of_sets = [row["method"] for row in known if row["method"] not in (EXPERT, PRETRAINED)]
    if method not in of_sets and of_sets:
        method = max(dict.fromkeys(of_sets), key=of_sets.count)
    points = _points([row for row in known if row["method"] == method], tasks)
    experts: dict[str, dict[str, float]] = {}
    for point in _points([row for row in known if row["method"] == EXPERT], tasks):
        if max(point.gamma) == 1:
            experts[tasks[point.gamma.index(1.0)]] = point.values
    others = []
    for name in dict.fromkeys(row["method"] for row in known if row["method"] not in (EXPERT, method)):
        each = _points([row for row in known if row["method"] == name], tasks)
        others += [Point(name, (), p.values) for p in each if len(each) == 1]
    return Measured(tuple(tasks), metrics, points, experts, tuple(others))


def _points(rows: Iterable[Row], tasks: Sequence[str]) -> tuple[Point, ...]:
    names: dict[preferences.Preference, str] = {}
    collected: dict[preferences.Preference, dict[str, list[float]]] = {}
    for row in rows:
        try:
            gamma = tuple(round(share, 12) for share in preferences.parse(row["preference"], tasks))
        except UserError:
            continue  # measured when the front had other tasks
        names.setdefault(gamma, row["preference"])
        collected.setdefault(gamma, {}).setdefault(row["task"], []).append(row["value"])
    return tuple(
        Point(names[gamma], gamma, {task: fmean(values) for task, values in each.items()}) for gamma, each in collected.items()
    )


class Volume(NamedTuple):
    """The hypervolume of a set of points, and what it is measured from."""

    value: float
    reference: dict[str, float]
    points: int
    exact: bool = True


def hypervolume(of: Measured, points: Sequence[Point], reference: Mapping[str, float] | None = None) -> Volume | None:
    """The volume between the points and a reference point, of all measured tasks; None without points.

    Args:
        of: says which metrics, and whether more is better.
        points: complete ones.
        reference: task -> value; default: 0 for accuracies; for others the worst value that is measured at a point, an
            expert or another model.
    """
    from paretomerge.results import (
        quality as metrics,  # moocore is slow to import, and most commands that make tables need none
    )

    if not points:
        return None
    models = [*of.points, *of.others, *(Point(name, (), values) for name, values in of.experts.items())]
    default = {
        task: 0.0 if metric.percent else metric.sign * min(metric.sign * p.values[task] for p in models if task in p.values)
        for task, metric in of.metrics.items()
    }
    at = {task: (reference or {}).get(task, default[task]) for task in of.shown}
    least = [of.metrics[task].sign * at[task] for task in of.shown]
    found = metrics.hypervolume(of.objectives(points), least, maximise=True)
    return Volume(found.value, at, len(points), found.exact)


def short(name: str, tasks: Sequence[str]) -> str:
    """A preference in few letters: its name if it has one, else rounded percentages.

    >>> short("math=0.7,code=0.3", ["math", "code"]), short("equal", ["math", "code"])
    ('math 70 %, code 30 %', 'equal')
    """
    if "=" not in name:
        return name
    try:
        gamma = preferences.parse(name, tasks)
    except UserError:
        return name
    return ", ".join(f"{task} {100 * share:.3g} %" for task, share in zip(tasks, gamma, strict=True) if share)
