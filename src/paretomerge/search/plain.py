"""MAP (Li et al. 2025, algorithm 1): evaluate some c, fit quadratics, find the front of the quadratics with NSGA-III."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np

from paretomerge.results.objective import CoefficientsEvaluator, Matrix, Objective, losses
from paretomerge.search.cached import Counted
from paretomerge.search.result import Found, degenerate, non_dominated, spread
from paretomerge.search.sampling import Box, Sampling, budget, sample
from paretomerge.search.surrogate import Loss, fit_surrogates

POOR = 0.5
"""Below this R² on held-out c a surrogate is called poor."""


def plain(
    evaluator: CoefficientsEvaluator,
    within: Box,
    *,
    evaluations: int | None = None,
    sampling: Sampling = "sobol",
    anchors: bool = False,
    loss: Loss = "linear",
    population: int = 128,
    generations: int = 100,
    runs: int = 1,
    measure: int = 0,
    seed: int = 0,
) -> Found:
    """The amortised front: c that are Pareto optimal by quadratic surrogates of the metrics.

    Args:
        evaluator: of merged models.
        within: the box of c, for the sample and the front alike.
        evaluations: Q; None: ``budget(N)``.
        sampling: of the Q points.
        anchors: see ``sampling.sample``.
        loss: of the surrogates' fits.
        population: of NSGA-III, at the least; about the number of points of the front.
        generations: of NSGA-III.
        runs: of NSGA-III, each with a seed of its own; their fronts are pooled.
        measure: points of the front that are evaluated, spread over it.
        seed: of everything random.
    """
    counted = Counted(evaluator)
    counted(sample(evaluations or budget(len(within.low)), within, sampling, anchors=anchors, seed=seed))
    return amortised(
        counted, within, loss=loss, population=population, generations=generations, runs=runs, measure=measure, seed=seed
    )


def amortised(
    counted: Counted,
    within: Box,
    *,
    loss: Loss,
    population: int,
    generations: int,
    runs: int,
    measure: int,
    seed: int,
) -> Found:
    """Surrogates of everything that was evaluated, and their front.

    The points that are measured are spread over it; what is predicted of the others is then predicted anew with their help.
    """
    c, metrics = counted.evaluated
    surrogates = fit_surrogates(c, metrics, counted.objectives, loss=loss, seed=seed)
    poor = [
        f"{fit.objective.task} {fit.objective.metric}: R² {fit.r2_held_out:.2f} on held-out c: a quadratic "
        "does not describe it well; evaluate more, or a smaller box"
        for fit in surrogates.fits
        if fit.r2_held_out < POOR
    ]
    points = predicted_front(
        surrogates, counted.objectives, within, population=population, generations=generations, runs=runs, seed=seed
    )
    predicted = surrogates(points)
    said = [*surrogates.said, *poor, *degenerate(points)]
    measured = np.full_like(predicted, np.nan)
    if measure:
        chosen = spread(losses(predicted, counted.objectives), measure)
        measured[chosen] = counted(points[chosen])
        others = np.setdiff1d(np.arange(len(points)), chosen)
        again = fit_surrogates(*counted.evaluated, counted.objectives, loss=loss, seed=seed)
        predicted[others] = again(points[others])
        if failed := int((~np.isfinite(measured[chosen])).any(1).sum()):
            said.append(f"{failed} of {len(chosen)} points of the front could not be measured")
    return Found(
        points, bounded(predicted, counted.objectives), measured, counted.evaluated, counted.models, counted.task_evaluations,
        surrogates.fits, tuple(said),
    )  # fmt: skip


def predicted_front(
    surrogates: Callable[[Matrix], Matrix],
    objectives: Sequence[Objective],
    within: Box,
    *,
    population: int = 128,
    generations: int = 100,
    runs: int = 1,
    seed: int = 0,
) -> Matrix:
    """The c (P, N) in the box that are non-dominated by predicted metrics, from NSGA-III (Deb & Jain 2013).

    Reference directions are those of Das and Dennis, the finest lattice with no more than ``population`` of them. Losses are
    scaled to [0, 1] over the first generation, which is a Sobol sample of the box.

    Args:
        surrogates: c (P, N) -> metrics (P, K).
        objectives: the K metrics.
        within: the box.
        population: at the least; the lattice's size, if that is larger (K directions are needed).
        generations: number of them.
        runs: whose fronts are pooled, each with its own seed.
        seed: of the first run.
    """
    from pymoo.algorithms.moo.nsga3 import NSGA3
    from pymoo.optimize import minimize
    from pymoo.util.ref_dirs import get_reference_directions

    directions = get_reference_directions("das-dennis", len(objectives), n_partitions=partitions(len(objectives), population))
    found = []
    for run in range(runs):
        start = sample(max(population, len(directions)), within, anchors=True, seed=seed + run)
        problem = problem_of(lambda c: losses(surrogates(c), objectives), within, start)
        algorithm = NSGA3(ref_dirs=directions, pop_size=len(start), sampling=start)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # pymoo's own, of nadir points that are nearly ideal
            result = minimize(problem, algorithm, ("n_gen", generations), seed=seed + run, verbose=False)
        found.append(np.atleast_2d(result.pop.get("X")))
    points = np.unique(np.concatenate(found), axis=0)
    return points[non_dominated(losses(surrogates(points), objectives))]


def partitions(n_objectives: int, population: int) -> int:
    """The finest Das–Dennis lattice with at most ``population`` points; 1, if even K are more.

    >>> partitions(2, 128), partitions(8, 128)
    (127, 3)
    """
    p = 1
    while n_objectives > 1 and comb(p + n_objectives, n_objectives - 1) <= population:
        p += 1
    return p


def problem_of(loss: Callable[[Matrix], Matrix], within: Box, start: Matrix) -> Any:
    """pymoo's problem: whole populations at once, losses scaled by their range over ``start``; what failed is worst."""
    from pymoo.core.problem import Problem

    first = loss(start)
    low, high = np.nanmin(first, 0), np.nanmax(first, 0)
    span = np.where(high > low, high - low, 1.0)

    class Merging(Problem):  # type: ignore[misc]
        def _evaluate(self, x: Matrix, out: dict[str, Matrix], *_: Any, **__: Any) -> None:
            out["F"] = np.nan_to_num((loss(x) - low) / span, nan=1e3, posinf=1e3, neginf=-1e3)

    return Merging(n_var=len(within.low), n_obj=first.shape[1], xl=within.low, xu=within.high)


def bounded(metrics: Matrix, objectives: Sequence[Objective]) -> Matrix:
    """Predictions moved into the metrics' ranges: a plain quadratic may leave them."""
    low = [-np.inf if objective.low is None else objective.low for objective in objectives]
    high = [np.inf if objective.high is None else objective.high for objective in objectives]
    return np.clip(metrics, low, high)
