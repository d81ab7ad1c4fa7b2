"""Bayesian MAP (Li et al. 2025, algorithm 3): later rounds sample c where the surrogates were wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paretomerge.results.objective import CoefficientsEvaluator, Matrix
from paretomerge.search.cached import Counted, whole
from paretomerge.search.plain import amortised
from paretomerge.search.result import Found
from paretomerge.search.sampling import Box
from paretomerge.search.surrogate import Loss, fit_surrogates

_CANDIDATES = 4096
"""Uniform points of the box from which a bin's are taken, at the least."""


def bayesian(
    evaluator: CoefficientsEvaluator,
    within: Box,
    *,
    first: int | None = None,
    rounds: int = 2,
    each: int | None = None,
    temperature: float = 0.07,
    loss: Loss = "linear",
    population: int = 128,
    generations: int = 100,
    runs: int = 1,
    measure: int = 0,
    seed: int = 0,
) -> Found:
    """Plain MAP on a sample that grows in rounds.

    After each round the box is cut into bins by the angles of c − low in hyper-spherical coordinates, 4 per angle (2 from
    N = 4 on). With E_i the squared error of the surrogates at c_i, summed over the metrics, each over its variance,

        score_bin = mean E_i + ½ std of that mean over 30 bootstraps, each without 20 % of the bin's points,

    and the next points fall into bin b with probability softmax(score_b / T), uniformly within it. A bin without a point
    has the highest score of all. While there are only as many points as parameters all errors are 0, and so the first round
    spreads its points evenly over the bins. (Errors at points that a surrogate has not seen were tried, too: no better.)

    Args:
        evaluator: of merged models.
        within: the box of c.
        first: uniform points to begin with; None: as many as a quadratic has parameters (6 for N = 2, as in the paper).
        rounds: of adaptive sampling.
        each: points of a round; None: half as many as ``first``.
        temperature: T.
        loss: of the surrogates' fits.
        population: of NSGA-III.
        generations: of NSGA-III.
        runs: of NSGA-III.
        measure: points of the front that are evaluated.
        seed: of everything random.
    """
    counted = Counted(evaluator)
    n = len(within.low)
    first = first or (n + 1) * (n + 2) // 2
    rng = np.random.default_rng(seed)
    counted(within.scaled(rng.random((first, n))))
    for _ in range(rounds):
        c, metrics = whole(*counted.evaluated, [])
        squared = surrogate_errors(c, metrics, counted, loss)
        probability = softmax(bin_scores(bins(c, within), squared, n_bins(n), rng) / temperature)
        counted(draw(probability, each or max(1, first // 2), within, rng))
    return amortised(
        counted, within, loss=loss, population=population, generations=generations, runs=runs, measure=measure, seed=seed
    )


def surrogate_errors(c: Matrix, metrics: Matrix, counted: Counted, loss: Loss) -> Matrix:
    """E (Q,): Σ_k (M̃_k(c_i) − M_k(c_i))² / var_k."""
    variance = metrics.var(0)
    residuals = fit_surrogates(c, metrics, counted.objectives, loss=loss, folds=0)(c) - metrics
    total: Matrix = (residuals**2 / np.where(variance > 0, variance, 1.0)).sum(1)
    return total


def bins(c: Matrix, within: Box) -> NDArray[np.int64]:
    """The bin of each c (P, N), (P,): angles φ_i = atan2(‖(c_{i+1} … c_N)‖, c_i) ∈ [0, π/2] of c − low, i = 1 … N − 1."""
    n = c.shape[1]
    per_angle = 4 if n < 4 else 2
    x = (c - within.low) / (within.high - within.low)
    number = np.zeros(len(c), np.int64)
    for i in range(n - 1):
        angle = np.arctan2(np.linalg.norm(x[:, i + 1 :], axis=1), x[:, i])
        number = number * per_angle + np.minimum((angle / (np.pi / 2) * per_angle).astype(np.int64), per_angle - 1)
    return number


def n_bins(n: int) -> int:
    """4^(N−1) up to three tasks, 2^(N−1) beyond."""
    per_angle = 4 if n < 4 else 2
    return int(per_angle ** (n - 1))


def bin_scores(where: NDArray[np.int64], squared: Matrix, count: int, rng: np.random.Generator) -> Matrix:
    """mean + ½ std (bootstrapped) of the squared errors in each bin, (count,)."""
    scores = np.full(count, -np.inf)
    for b in np.unique(where):
        inside = squared[where == b]
        kept = max(1, round(0.8 * len(inside)))
        means = [rng.permutation(inside)[:kept].mean() for _ in range(30)]
        scores[b] = inside.mean() + 0.5 * np.std(means)
    scores[np.isneginf(scores)] = scores.max()
    return scores


def softmax(x: Matrix) -> Matrix:
    """exp(x) / Σ exp(x)."""
    e = np.exp(x - x.max())
    normal: Matrix = e / e.sum()
    return normal


def draw(probability: Matrix, count: int, within: Box, rng: np.random.Generator) -> Matrix:
    """``count`` points of the box (count, N), each uniform in a bin drawn with ``probability``."""
    candidates = within.scaled(rng.random((max(_CANDIDATES, 4 * count), len(within.low))))
    where = bins(candidates, within)
    share = np.bincount(where, minlength=len(probability))
    weights = np.where(share > 0, probability / np.maximum(share, 1), 0.0)[where]
    return candidates[rng.choice(len(candidates), count, replace=False, p=weights / weights.sum())]
