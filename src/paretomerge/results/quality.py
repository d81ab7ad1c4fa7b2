"""How good a front is: hypervolume, distances to another front, win rate, spread, and whether preferences are obeyed.

Points are (P, K) arrays, a row a model, a column a metric. ``maximise`` says of which metrics more is better: one answer for
all of them, or one for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretomerge import preferences

Matrix = NDArray[np.float64]
Maximise = bool | Sequence[bool]

_EXACT_TO = 6
_EXACT_POINTS = 100


class Hypervolume(NamedTuple):
    """A volume means nothing without the point that it is measured from."""

    value: float
    reference: tuple[float, ...]
    exact: bool


class WeightedSum(NamedTuple):
    """Preference-weighted sums of the best point for each of some preferences."""

    mean: float
    std: float
    values: tuple[float, ...]


class Spread(NamedTuple):
    """How far a front reaches, and how evenly."""

    extent: tuple[float, ...]
    """Largest less smallest value, per metric."""
    spacing: float
    """Schott's: standard deviation of the distances to the nearest neighbour (sum of absolute differences)."""


def non_dominated(points: ArrayLike, *, maximise: Maximise = False) -> NDArray[np.bool_]:
    """(P,): True for the rows that no other row dominates (as good in all metrics and better in one); equal rows all stay.

    >>> non_dominated([[1, 2], [2, 1], [2, 2], [1, 2]]).tolist()
    [True, True, False, True]
    """
    kept: NDArray[np.bool_] = moocore.is_nondominated(_smaller_is_better(points, maximise), keep_weakly=True)
    return kept


def dominated_fraction(points: ArrayLike, by: ArrayLike | None = None, *, maximise: Maximise = False) -> float:
    """The share of points that some point of ``by`` (None: of themselves) dominates.

    >>> dominated_fraction([[1, 2], [2, 1], [2, 2], [3, 3]])
    0.5
    """
    mine = _smaller_is_better(points, maximise)
    others = mine if by is None else _smaller_is_better(by, maximise)
    return float(np.mean([bool(((others <= x).all(1) & (others < x).any(1)).any()) for x in mine]))


def hypervolume(points: ArrayLike, reference: ArrayLike, *, maximise: Maximise = False, seed: int = 0) -> Hypervolume:
    """The volume between a front and a reference point that is worse than all of it (Zitzler & Thiele 1999).

    Exact up to six metrics, and for up to 100 points; beyond, an approximation with an error below about 10⁻³.
    Points that are not better than the reference in every metric add nothing.

    Args:
        points: (P, K).
        reference: (K,).
        maximise: see above.
        seed: of the approximation.

    >>> hypervolume([[1, 3], [2, 2], [3, 1]], [4, 4])
    Hypervolume(value=6.0, reference=(4.0, 4.0), exact=True)
    """
    x, at = _smaller_is_better(points, maximise), np.asarray(reference, dtype=np.float64)
    ref = _smaller_is_better(at[None], maximise)[0]
    x = x[non_dominated(x)]
    exact = x.shape[1] <= _EXACT_TO or len(x) <= _EXACT_POINTS
    if x.shape[1] == 1:  # a length, of which older moocore makes a crash
        value = np.max(ref - x, initial=0.0)
    else:
        value = moocore.hypervolume(x, ref=ref) if exact else moocore.hv_approx(x, ref=ref, seed=seed)
    return Hypervolume(float(value), tuple(at.tolist()), exact)


def generational_distance(points: ArrayLike, reference: ArrayLike) -> float:
    """GD (Van Veldhuizen 1999) with p = 1: the mean distance of a point to the nearest of the reference front.

    >>> generational_distance([[0, 0], [3, 4]], [[0, 0]])
    2.5
    """
    return inverted_generational_distance(reference, points)


def inverted_generational_distance(points: ArrayLike, reference: ArrayLike) -> float:
    """IGD (Coello & Cortés 2005) with p = 1: the mean distance of a reference point to the nearest of the points.

    >>> inverted_generational_distance([[0, 0], [3, 4]], [[0, 0]])
    0.0
    """
    return float(moocore.igd(np.asarray(points, dtype=np.float64), ref=np.asarray(reference, dtype=np.float64)))


def win_rate(
    points: ArrayLike, baseline: ArrayLike, *, maximise: Maximise = False, sample: int = 100, seed: int = 0, ties: float = 0.5
) -> float:
    """How often a metric of a point is better than the same metric of a baseline's point (Li et al. 2025, section 4.1).

    ``sample``² · K comparisons of randomly drawn points; fronts of no more points are taken whole, which is what the draw
    estimates. The paper counts a tie as lost, so that a front's rate against itself is below one half, by much for accuracies
    over few inputs.

    Args:
        points: (P, K).
        baseline: (P', K).
        maximise: see above.
        sample: points drawn from a larger front, without replacement.
        seed: of the draw.
        ties: what a tie counts; 0 for the paper's.

    >>> win_rate([[1, 3], [2, 2]], [[2, 2]]), win_rate([[1, 3], [2, 2]], [[2, 2]], ties=0)
    (0.5, 0.25)
    """
    rng = np.random.default_rng(seed)
    a, b = (
        front if len(front) <= sample else front[rng.choice(len(front), sample, replace=False)]
        for front in (_smaller_is_better(points, maximise), _smaller_is_better(baseline, maximise))
    )
    better, equal = (a[:, None] < b).mean(), (a[:, None] == b).mean()
    return float(better + ties * equal)


def preference_weighted_sum(
    points: ArrayLike, weights: ArrayLike | None = None, *, maximise: Maximise = True, sample: int = 20, seed: int = 0
) -> WeightedSum:
    """The best Σ_k γ_k metric_k that a front has to offer, for each of some preferences (Li et al. 2025, table 4).

    Args:
        points: (P, K); metrics that are to be minimised enter with a minus.
        weights: preferences (n, K); None: ``sample`` of them, uniform on the simplex.
        maximise: see above.
        sample: how many preferences; the paper's 20.
        seed: of the preferences.

    Returns:
        Mean and standard deviation (n − 1) over the preferences.

    >>> preference_weighted_sum([[1.0, 0.0], [0.0, 1.0]], [[0.25, 0.75], [0.5, 0.5]]).values
    (0.75, 0.5)
    """
    x = -_smaller_is_better(points, maximise)
    gammas = preferences.dirichlet(x.shape[1], sample, seed=seed) if weights is None else np.asarray(weights, dtype=np.float64)
    best = (gammas @ x.T).max(1)
    return WeightedSum(float(best.mean()), float(best.std(ddof=1)) if len(best) > 1 else 0.0, tuple(best.tolist()))


def r_squared(truth: ArrayLike, predicted: ArrayLike) -> Matrix:
    """1 − Σ (y − ŷ)² / Σ (y − ȳ)² for each column, (K,); NaN where y does not vary.

    >>> r_squared([[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]])
    array([0.5])
    """
    y, fitted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    total = ((y - y.mean(0)) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1 - ((y - fitted) ** 2).sum(0) / total, math.nan)


def spread(points: ArrayLike) -> Spread:
    """Extent and spacing of a front; a spacing of 0 is perfectly even (Schott 1995).

    >>> spread([[0, 2], [1, 1], [2, 0]])
    Spread(extent=(2.0, 2.0), spacing=0.0)
    """
    x = np.asarray(points, dtype=np.float64)
    extent = tuple((x.max(0) - x.min(0)).tolist())
    if len(x) < 2:
        return Spread(extent, 0.0)
    distance = np.abs(x[:, None] - x).sum(2)
    np.fill_diagonal(distance, np.inf)
    return Spread(extent, float(distance.min(1).std(ddof=1)))


def rays(n_tasks: int, steps: int = 5) -> Matrix:
    """For each task the preferences from equal to one-hot, (K, steps, K): the shares along which alignment is measured.

    >>> rays(2, 3)[0].tolist()
    [[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]
    """
    t = np.linspace(0, 1, steps)[:, None]
    return np.stack([(1 - t) / n_tasks + t * one_hot for one_hot in np.eye(n_tasks)])


def preference_alignment(metrics: ArrayLike, *, maximise: Maximise = True) -> Matrix:
    """Whether asking for more of a task gives more of it: Spearman's rank correlation of γ_k and metric k along ``rays``.

    Args:
        metrics: (K, steps): metric k at the preferences of ray k, in their order.
        maximise: see above.

    Returns:
        (K,): 1 where the metric improves at every step, −1 where it worsens; NaN where it is the same everywhere.

    >>> preference_alignment([[0.7, 0.8, 0.9], [0.9, 0.8, 0.85]])
    array([ 1. , -0.5])
    """
    from scipy.stats import rankdata

    values = -_smaller_is_better(np.asarray(metrics, dtype=np.float64).T, maximise).T
    ranks = rankdata(values, axis=1)
    shares = np.arange(values.shape[1], dtype=np.float64)
    of_shares, of_values = shares - shares.mean(), ranks - ranks.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation: Matrix = (of_values @ of_shares) / np.sqrt((of_values**2).sum(1) * (of_shares**2).sum())
    return correlation


def _smaller_is_better(points: ArrayLike, maximise: Maximise) -> Matrix:
    x = np.atleast_2d(np.asarray(points, dtype=np.float64))
    signs = np.where(np.broadcast_to(maximise, x.shape[1:]), -1.0, 1.0)
    return x * signs + 0.0
