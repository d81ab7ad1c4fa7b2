"""What every search returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretomerge.results.objective import Matrix
from paretomerge.search.surrogate import Fit
from paretomerge.sets.choice import normalised


@dataclass(frozen=True)
class Found:
    """A front: coefficients, their metrics, and what it cost.

    The rows are what is known of each point: predicted metrics are NaN where there was no surrogate, measured ones where
    the point was not evaluated.
    """

    points: Matrix
    """c, (P, N)."""
    predicted: Matrix
    """(P, K), in the metrics' own units; of a measured point what was predicted before it was measured."""
    measured: Matrix
    """(P, K)."""
    evaluated: tuple[Matrix, Matrix]
    """Every evaluation of the search: c (Q, N) and metrics (Q, K), NaN where a task was not asked for or failed."""
    models: int
    """Merged models that were evaluated."""
    task_evaluations: int
    """(model, task) pairs that were evaluated."""
    fits: tuple[Fit, ...] = ()
    said: tuple[str, ...] = ()
    """What the user should know: failed evaluations, poor fits, a front of one point."""
    preferences: Matrix | None = None
    """γ, (P, N): what each point was made for, where a search was given preferences."""


def non_dominated(loss: Matrix) -> NDArray[np.bool_]:
    """Which rows (P, K) of losses no other row dominates; of equal rows the first."""
    import moocore

    kept: NDArray[np.bool_] = moocore.is_nondominated(loss)
    return kept


def spread(loss: Matrix, count: int) -> list[int]:
    """``count`` rows spread over a front (P, K): the best of each metric, then always the one farthest from those chosen.

    >>> spread(np.array([[0, 9], [1, 8], [4.5, 4.5], [8, 1], [9, 0.0]]), 3)
    [0, 4, 2]
    """
    f = normalised(loss)
    chosen = list(dict.fromkeys(int(k) for k in f.argmin(0)))[:count]
    distance = np.linalg.norm(f[:, None] - f[chosen], axis=2).min(1)
    distance[chosen] = -1
    while len(chosen) < min(count, len(f)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(f - f[chosen[-1]], axis=1))
        distance[chosen[-1]] = -1
    return chosen


def degenerate(points: Matrix) -> list[str]:
    """The line that says so if a front is a single point."""
    if len(points) > 1:
        return []
    return ["the front is one point: these tasks do not trade off in this box, and every preference gives the same model"]
