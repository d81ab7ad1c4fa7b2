"""Coefficients c to evaluate: in the box [0, 1]^N, or in the user's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from paretomerge.errors import UserError
from paretomerge.results.objective import Matrix

Sampling = Literal["sobol", "uniform", "grid"]
Bounds = Sequence[float] | Sequence[Sequence[float]]

_BUDGETS = {2: 30, 3: 50, 4: 60, 5: 85, 6: 100, 7: 140, 8: 250}


class Box(NamedTuple):
    """low_n ≤ c_n ≤ high_n: where coefficients are sampled, and where the front is sought; both (N,)."""

    low: Matrix
    high: Matrix

    def scaled(self, unit: Matrix) -> Matrix:
        """Points of [0, 1]^N (P, N), moved into the box."""
        return np.minimum(self.low + unit * (self.high - self.low), self.high)  # rounding could leave it


def box(n: int, bounds: Bounds | None = None) -> Box:
    """The box of N coefficients.

    Args:
        n: N.
        bounds: ``(low, high)`` for all coefficients, or one such pair for each; None: [0, 1].

    Raises:
        UserError: not that many pairs, or one that is not low < high.

    >>> box(2, [0, 0.5])
    Box(low=array([0., 0.]), high=array([0.5, 0.5]))
    """
    limits = np.array([0.0, 1.0] if bounds is None else bounds, dtype=np.float64)
    if limits.shape == (2,):
        limits = np.broadcast_to(limits, (n, 2))
    if limits.shape != (n, 2) or not np.isfinite(limits).all() or not (limits[:, 0] < limits[:, 1]).all():
        raise UserError(f"box: give low and high, low < high, once or for each of the {n} coefficients")
    return Box(limits[:, 0].copy(), limits[:, 1].copy())


def budget(n: int) -> int:
    """How many c to evaluate for N tasks: the paper's numbers for N = 2 … 8, else five for each parameter of a quadratic.

    >>> [budget(n) for n in range(2, 10)]
    [30, 50, 60, 85, 100, 140, 250, 275]
    """
    return _BUDGETS.get(n, 5 * (n + 1) * (n + 2) // 2)


def sample(count: int, within: Box, method: Sampling = "sobol", *, anchors: bool = False, seed: int = 0) -> Matrix:
    """``count`` different coefficient vectors, (count, N).

    Args:
        count: how many, anchors among them.
        within: the box.
        method: ``"uniform"``: independent, as in the paper; ``"sobol"``: scrambled Sobol points, which leave no gaps;
            ``"grid"``: the finest full grid that is no larger than ``count``, filled up with Sobol points (these alone, if two
            levels are too many).
        anchors: begin with the corners that have one coefficient at its highest and the others at their lowest (of [0, 1]^N:
            the experts), and with equal coefficients c = t·1 from the lowest to the highest corner.
        seed: of what is random.
    """
    n = len(within.low)
    rng = np.random.default_rng(seed)
    levels = math.floor(count ** (1 / n) + 1e-9) if method == "grid" else 1
    if levels > 1:  # its corners are the one-hot points, its diagonal c = t·1
        first = np.stack(np.meshgrid(*[np.linspace(0, 1, levels)] * n, indexing="ij"), -1).reshape(-1, n)
    else:
        first = anchor_points(n) if anchors else np.empty((0, n))
    # enough for every point that is already there
    rest = rng.random((2 * count, n)) if method == "uniform" else _sobol(2 * count, n, rng)
    points = np.concatenate([first, rest])
    _, places = np.unique(points, axis=0, return_index=True)
    return within.scaled(points[np.sort(places)[:count]])


def anchor_points(n: int) -> Matrix:
    """In [0, 1]^N: the N one-hot corners, then c = t·1 for t = 0, 1/4, 1/2, 3/4, 1.

    The five values of t tell what scaling all task vectors together does, which a cloud of points hardly samples for large N.
    """
    isotropic = np.repeat([[0.5], [0.25], [0.75], [0.0], [1.0]], n, axis=1)
    return np.concatenate([np.eye(n), isotropic])


def _sobol(count: int, n: int, rng: np.random.Generator) -> Matrix:
    from scipy.stats import qmc

    sobol = qmc.Sobol(n, seed=rng)
    points: Matrix = sobol.random_base2(max(1, math.ceil(math.log2(count))))[:count]
    return points
