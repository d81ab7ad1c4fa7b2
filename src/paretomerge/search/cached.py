"""An evaluator that asks for nothing twice and counts what it asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paretomerge.errors import UserError
from paretomerge.results.objective import CoefficientsEvaluator, Matrix, Objective


class Counted:
    """Every search asks through one of these: what is known is not evaluated again, and the cost is counted.

    Attributes:
        models: merged models that were built for an evaluation.
        task_evaluations: (model, task) pairs that were evaluated: what the paper counts.
    """

    def __init__(self, evaluator: CoefficientsEvaluator) -> None:
        self._evaluator = evaluator
        self.objectives: Sequence[Objective] = tuple(evaluator.objectives)
        self.models = 0
        self.task_evaluations = 0
        self._known: dict[bytes, tuple[Matrix, Matrix, set[int]]] = {}

    def __call__(self, coefficients: Matrix, tasks: Sequence[int] | None = None) -> Matrix:
        """As ``CoefficientsEvaluator``; columns that are known from earlier are given, too."""
        wanted = frozenset(range(len(self.objectives)) if tasks is None else tasks)
        rows = [self._row(c) for c in np.asarray(coefficients, dtype=np.float64)]
        missing: dict[frozenset[int], list[int]] = {}
        asked: set[int] = set()
        for place, row in enumerate(rows):
            lacking = wanted - row[2]
            if lacking and id(row) not in asked:
                asked.add(id(row))
                missing.setdefault(lacking, []).append(place)
        for columns, places in missing.items():
            self._ask([rows[place] for place in places], sorted(columns))
        return np.array([metrics for _, metrics, _ in rows]).reshape(len(rows), len(self.objectives))

    @property
    def evaluated(self) -> tuple[Matrix, Matrix]:
        """Everything so far: coefficients (Q, N) and metrics (Q, K), in the order in which they were first asked for."""
        rows = list(self._known.values())
        return np.array([c for c, _, _ in rows]), np.array([metrics for _, metrics, _ in rows])

    def _row(self, c: Matrix) -> tuple[Matrix, Matrix, set[int]]:
        c = c + 0.0  # −0 becomes 0
        return self._known.setdefault(c.tobytes(), (c, np.full(len(self.objectives), np.nan), set()))

    def _ask(self, rows: list[tuple[Matrix, Matrix, set[int]]], columns: list[int]) -> None:
        everything = len(columns) == len(self.objectives)
        found = self._evaluator(np.array([c for c, _, _ in rows]), None if everything else columns)
        found = np.asarray(found, dtype=np.float64)
        if found.shape != (len(rows), len(self.objectives)):
            raise ValueError(f"the evaluator gave {found.shape}, not {(len(rows), len(self.objectives))}")
        for (_, metrics, known), values in zip(rows, found, strict=True):
            metrics[columns] = values[columns]
            known.update(columns)
        self.models += len(rows)
        self.task_evaluations += len(rows) * len({self.objectives[k].task for k in columns})


def whole(coefficients: Matrix, metrics: Matrix, say: list[str]) -> tuple[Matrix, Matrix]:
    """The rows in which every metric is a finite number; what is left out is said.

    Raises:
        UserError: none is.
    """
    good = np.isfinite(metrics).all(1)
    if not good.any():
        raise UserError(f"not one of {len(metrics)} evaluations succeeded: there is nothing to search in")
    if not good.all():
        say.append(f"{int((~good).sum())} of {len(metrics)} evaluations failed and are left out")
    return coefficients[good], metrics[good]
