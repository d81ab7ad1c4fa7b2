"""What a search asks for: metrics of merged models, each with its direction and range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Objective(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    larger_is_better: bool = True
    low: float | None = None
    """Smallest value that the metric can have; None: no bound."""
    high: float | None = None


class CoefficientsEvaluator(Protocol):
    """Measures merged models θ(c) = θ₀ + Σ_n c_n v_n (or another merge with a coefficient per task)."""

    @property
    def objectives(self) -> Sequence[Objective]:
        """The K metrics, in the order of the columns of a result."""

    def __call__(self, coefficients: Matrix, tasks: Sequence[int] | None = None) -> Matrix:
        """Metrics (Q, K) in fp64 at coefficients (Q, N).

        Args:
            coefficients: one row a model.
            tasks: the columns that are wanted; the others are NaN, and cost nothing. None: all.

        Returns:
            In the metrics' own units. An evaluation that failed twice is a row of NaN, never a number.
        """


def losses(metrics: Matrix, objectives: Sequence[Objective]) -> Matrix:
    """Metrics (P, K) with the sign that makes smaller better.

    >>> losses(np.array([[0.9, 12.0]]), [Objective("a", "accuracy"), Objective("b", "perplexity", larger_is_better=False)])
    array([[-0.9, 12. ]])
    """
    return metrics * np.array([-1.0 if objective.larger_is_better else 1.0 for objective in objectives])
