"""The evaluator that a search asks: what is stored is not measured again, what is measured is stored as it comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paretomerge.errors import UserError
from paretomerge.evaluation.outcomes import Outcome
from paretomerge.evaluation.protocols import Point
from paretomerge.evaluation.store import Store, as_point
from paretomerge.results.metrics import check_range
from paretomerge.results.objective import Matrix, Objective

Job = tuple[Point, tuple[str, ...]]
"""A point, and the tasks that are wanted there."""
Pool = Callable[[Sequence[Job]], Iterator[tuple[int, Outcome]]]
"""Does jobs, in this process or in others, and gives (number of the job, outcome) as they are done."""
Report = Callable[[int, Mapping[str, Any]], None]
"""Called with (evaluations so far, what is known of the last)."""

_HOPELESS = 3
"""So many failures before anything has succeeded end a search."""


class Evaluations:
    """``CoefficientsEvaluator`` over a pool and a store."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        store: Store,
        pool: Pool,
        *,
        report: Report | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.objectives = tuple(objectives)
        self.store = store
        self._pool, self._report, self._say = pool, report, say
        self.done = 0
        """Models that were measured now, those that failed included."""
        self._column = {objective.task: k for k, objective in enumerate(self.objectives)}
        for metrics in store.metrics.values():
            self._check(metrics)

    def __call__(self, coefficients: Matrix, tasks: Sequence[int] | None = None) -> Matrix:
        """See ``CoefficientsEvaluator``.

        Raises:
            UserError: a metric outside its declared range; nothing but failures from the start.
        """
        columns = range(len(self.objectives)) if tasks is None else sorted(set(tasks))
        wanted = tuple(self.objectives[k].task for k in columns)
        points = [as_point(c) for c in np.asarray(coefficients, dtype=np.float64)]
        jobs: dict[Point, tuple[str, ...]] = {}
        for point in points:
            lacking = tuple(task for task in wanted if task not in self.store.metrics.get(point, {}))
            if lacking and point not in self.store.failures:
                jobs[point] = lacking
        if jobs:
            self._measure(list(jobs.items()))
        found = np.full((len(points), len(self.objectives)), np.nan)
        for row, point in zip(found, points, strict=True):
            known = self.store.metrics.get(point, {})
            for k, task in zip(columns, wanted, strict=True):
                row[k] = known.get(task, np.nan)
        return found

    def _measure(self, jobs: Sequence[Job]) -> None:
        for number, outcome in self._pool(jobs):
            point, _ = jobs[number]
            if outcome.mistake:
                raise UserError(outcome.message)
            self.done += 1
            if wrong := [task for task, value in outcome.metrics.items() if not math.isfinite(value)]:
                outcome = Outcome({}, f"task {wrong[0]}: {outcome.metrics[wrong[0]]}", outcome.seconds)
            if outcome.metrics:
                self.store.add(point, outcome.metrics, outcome.seconds)
                self._check(outcome.metrics)
            else:
                self.store.fail(point, outcome.message, outcome.seconds)
                failed = len(self.store.failures)
                if not self.store.metrics and failed >= min(_HOPELESS, len(jobs)):
                    raise UserError(f"the first {failed} evaluations failed, each twice: {outcome.message}")
                place = ", ".join(f"{c:.4g}" for c in point)
                self._say(f"warning: the evaluation at c = ({place}) failed twice and is left out: {outcome.message}")
            if self._report:
                self._report(
                    self.done,
                    {
                        "c": point,
                        "metrics": dict(outcome.metrics),
                        "reused": self.store.found,
                        "failed": len(self.store.failures),
                    },
                )

    def _check(self, metrics: Mapping[str, float]) -> None:
        for task, value in metrics.items():
            if task in self._column:
                check_range(self.objectives[self._column[task]], value)
