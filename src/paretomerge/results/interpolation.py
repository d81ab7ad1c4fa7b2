"""Metrics between the measured preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAME = 1e-6
"""Two preferences that are this near in every share are one; people see three digits."""


class Estimate(NamedTuple):
    """A preference as a mean of measured ones: γ = Σ_i w_i γ_i."""

    weights: dict[int, float]
    """Index of the measured preference -> its positive weight; they sum to 1."""

    @property
    def measured(self) -> bool:
        """The preference itself was measured."""
        return len(self.weights) == 1

    def of(self, values: Sequence[float] | NDArray[np.float64]) -> float:
        """The interpolated value, of one value for each measured preference."""
        return float(sum(weight * values[i] for i, weight in self.weights.items()))


def between(
    gamma: Sequence[float] | NDArray[np.float64], measured: Sequence[Sequence[float]] | NDArray[np.float64]
) -> Estimate | None:
    """Barycentric interpolation on the Delaunay triangulation of the measured preferences, in any number of tasks.

    The weights are those of the linear programme

        min Σ_i w_i ‖γ_i − γ‖²   subject to   Σ_i w_i γ_i = γ,  Σ_i w_i = 1,  w ≥ 0,

    whose basic solutions are the Delaunay simplices (lift the points to a paraboloid: the programme finds its lower hull
    below γ). So no triangulation is built, which would have very many simplices for eight tasks.

    Args:
        gamma: γ, K shares.
        measured: the γ_i, n of K shares.

    Returns:
        The weights; None where γ is outside what was measured, or nothing was.

    >>> between((0.75, 0.25), [(1, 0), (0.5, 0.5), (0, 1)]).weights
    {0: 0.5, 1: 0.5}
    """
    if not len(measured):
        return None
    points, wanted = np.asarray(measured, float), np.asarray(gamma, float)
    apart = np.abs(points - wanted)
    nearest = int(apart.max(1).argmin())
    if apart[nearest].max() <= SAME:
        return Estimate({nearest: 1.0})
    from scipy.optimize import linprog

    # Σ_k γ_k = 1 on both sides, so the last equation says Σ_i w_i = 1 already
    found = linprog((apart**2).sum(1), A_eq=points.T, b_eq=wanted, method="highs-ds")
    if not found.success:
        return None
    weights = {int(i): float(found.x[i]) for i in np.flatnonzero(found.x > 1e-9)}
    total = sum(weights.values())
    return Estimate({i: weight / total for i, weight in weights.items()})
