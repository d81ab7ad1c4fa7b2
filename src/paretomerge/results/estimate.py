"""A metric at preferences that were not measured: estimates, each with its error at measured points that it did not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paretomerge.decompositions import UndecomposableError, non_negative_least_squares
from paretomerge.results.interpolation import between

Matrix = NDArray[np.float64]
Surrogate = Callable[[Matrix], float]
"""γ (K,) -> the metric."""

_FLAT = 1e-3
"""Of the surrogates that fit alike, the one that bends least: weight of the bends beside the residuals."""
_LEAST = 3
"""Points to be left out, at least, before an error is believed."""
_MOST = 32
"""Points to be left out, at most: with hundreds measured, evenly chosen ones will do."""


class Reading(NamedTuple):
    """What is known of a metric at a preference."""

    value: float
    error: float | None = None
    """How far off an estimate is, about, as ``Estimator`` says. None: the value was measured."""

    @property
    def measured(self) -> bool:
        """The value was measured at this preference."""
        return self.error is None


class Estimator:
    """One metric between the measured preferences: the surrogate that misses left-out points least.

    Metrics are concave along a front as a rule: the first share of a preference buys most, so chords between measured points
    lie below them. Candidates are, with more as better,

        f(γ) = b·γ − Σ_i c_i (u_i·γ)²,   c ≥ 0,

    with u_i = e_k, e_j − e_k and e_j + e_k (a full quadratic; every matrix −Σ c_i u_i u_iᵀ is negative semidefinite, so f is
    concave, and those are all whose negative is diagonally dominant), or with u_i = e_k alone, which needs fewer points; and
    linear interpolation (``between``). Both quadratics come from non-negative least squares. As Σ γ = 1, b·γ has a constant.

    The error of an estimate is √(e² + d²): e is what its surrogate misses at left-out points, and d how far the second best
    surrogate is from it at this γ, since few points that were left out are no measure of what is far from all of them. (Demo,
    12 measured and 27 other preferences of four tasks: 71 % of the estimates are within their error, 90 % within twice that;
    they miss 0.7 points on average, linear interpolation 3.2.)
    """

    def __init__(self, gammas: Sequence[Sequence[float]], values: Sequence[float], *, larger_is_better: bool = True) -> None:
        """Choose the surrogate.

        Args:
            gammas: the measured preferences, n of K shares.
            values: the metric there, (n,), finite.
            larger_is_better: otherwise it is convex as a rule.
        """
        self._gammas = np.asarray(gammas, float).reshape(len(values), -1)
        self._values = np.asarray(values, float)
        sign = 1 if larger_is_better else -1
        self._ways: dict[str, Callable[[Matrix, Matrix], Surrogate]] = {
            "quadratic": lambda points, y: _concave(points, y, sign, pairs=True),
            "separable": lambda points, y: _concave(points, y, sign, pairs=False),
            "linear": _interpolated,
        }
        errors = self._left_out()
        ordered = sorted(errors, key=errors.__getitem__)
        self.way = ordered[0] if ordered else None
        """``"quadratic"``, ``"separable"`` or ``"linear"``; None: too few points to know an error, so nothing is estimated."""
        self.error = errors[self.way] if self.way else math.nan
        """Root mean square of what that surrogate misses at points that were left out of its fit."""
        self._surrogates = [self._ways[way](self._gammas, self._values) for way in ordered[:2]]

    def at(self, gamma: Sequence[float]) -> Reading | None:
        """The estimate at a γ that lies between the measured ones; None where these are too few to say anything."""
        if not self._surrogates:
            return None
        value, *second = (surrogate(np.asarray(gamma, float)) for surrogate in self._surrogates)
        gap = max((abs(value - other) for other in second), default=0.0)
        return Reading(value, math.hypot(self.error, gap)) if math.isfinite(value) and math.isfinite(gap) else None

    def _left_out(self) -> dict[str, float]:
        """Name of each way -> its error at the points that lie between others; nothing if they are too few."""
        n = len(self._values)
        inner = [i for i in range(n) if between(self._gammas[i], np.delete(self._gammas, i, 0)) is not None]
        if len(inner) < _LEAST:
            return {}
        inner = inner[:: math.ceil(len(inner) / _MOST)]
        errors = {}
        for name, fit in self._ways.items():
            try:
                missed = [
                    fit(np.delete(self._gammas, i, 0), np.delete(self._values, i))(self._gammas[i]) - self._values[i]
                    for i in inner
                ]
            except UndecomposableError:
                continue
            errors[name] = float(np.sqrt(np.mean(np.square(missed))))
        return {name: error for name, error in errors.items() if math.isfinite(error)}


def _interpolated(points: Matrix, values: Matrix) -> Surrogate:
    def surrogate(gamma: Matrix) -> float:
        found = between(gamma, points)
        return math.nan if found is None else found.of(values)

    return surrogate


def _concave(points: Matrix, values: Matrix, sign: int, *, pairs: bool) -> Surrogate:
    """b·γ − Σ c_i (u_i·γ)² of least squares (``sign`` −1: of the negative), c ≥ 0."""
    n_tasks = points.shape[1]
    eye = np.eye(n_tasks)
    first, second = np.triu_indices(n_tasks, 1)
    u = np.concatenate([eye, eye[first] - eye[second], eye[first] + eye[second]]) if pairs else eye
    bends = -((points @ u.T) ** 2)
    scale = float(np.ptp(values)) or 1.0
    flat = np.concatenate([np.zeros((len(u), 2 * n_tasks)), _FLAT * np.eye(len(u))], 1)
    design = np.concatenate([np.concatenate([points, -points, bends], 1), flat])
    centre = float(values.mean())
    right = np.concatenate([sign * (values - centre) / scale, np.zeros(len(u))])
    found = non_negative_least_squares(design, right)
    b, c = found[:n_tasks] - found[n_tasks : 2 * n_tasks], found[2 * n_tasks :]
    return lambda gamma: centre + sign * scale * float(b @ gamma - c @ (u @ gamma) ** 2)
