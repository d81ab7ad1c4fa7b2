"""Fronts of true evaluations, without surrogates: direct search and MOEA/D, the baselines of MAP."""

from __future__ import annotations

import warnings

import numpy as np

from paretomerge.results.objective import CoefficientsEvaluator, losses
from paretomerge.search.cached import Counted, whole
from paretomerge.search.plain import partitions, problem_of
from paretomerge.search.result import Found, degenerate, non_dominated
from paretomerge.search.sampling import Box, Sampling, sample

_DIRECT = {1: 50, 2: 200, 3: 300, 4: 300, 5: 500, 6: 500}
"""The paper's numbers of c for direct search; 1 000 beyond."""


def direct_search(
    evaluator: CoefficientsEvaluator,
    within: Box,
    *,
    evaluations: int | None = None,
    sampling: Sampling = "sobol",
    anchors: bool = False,
    seed: int = 0,
) -> Found:
    """Evaluate many c and keep the non-dominated ones.

    Args:
        evaluator: of merged models.
        within: the box of c.
        evaluations: how many; None: the paper's, 200 for N = 2, 300 for N = 3 and 4, 500 for N = 5 and 6, else 1 000.
        sampling: of the points.
        anchors: see ``sampling.sample``.
        seed: of what is random.
    """
    counted = Counted(evaluator)
    n = len(within.low)
    counted(sample(evaluations or _DIRECT.get(n, 1000), within, sampling, anchors=anchors, seed=seed))
    return _front(counted)


def moead(
    evaluator: CoefficientsEvaluator, within: Box, *, population: int = 50, generations: int = 20, seed: int = 0
) -> Found:
    """MOEA/D (Zhang & Li 2007) on true evaluations, a generation at a time; the front of all that it evaluated.

    Args:
        evaluator: of merged models.
        within: the box of c.
        population: at the most (Das–Dennis directions: the finest lattice that is no larger), and K at the least.
        generations: the first one, a Sobol sample, included.
        seed: of what is random.
    """
    from pymoo.algorithms.moo.moead import ParallelMOEAD
    from pymoo.optimize import minimize
    from pymoo.util.ref_dirs import get_reference_directions

    counted = Counted(evaluator)
    n_objectives = len(counted.objectives)
    directions = get_reference_directions("das-dennis", n_objectives, n_partitions=partitions(n_objectives, population))
    start = sample(len(directions), within, anchors=False, seed=seed)
    whole(start, counted(start), [])
    problem = problem_of(lambda c: losses(counted(c), counted.objectives), within, start)
    algorithm = ParallelMOEAD(directions, n_neighbors=min(20, len(directions)), sampling=start)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        minimize(problem, algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return _front(counted)


def _front(counted: Counted) -> Found:
    say: list[str] = []
    c, metrics = whole(*counted.evaluated, say)
    kept = non_dominated(losses(metrics, counted.objectives))
    points, measured = c[kept], metrics[kept]
    return Found(
        points, np.full_like(measured, np.nan), measured, counted.evaluated, counted.models, counted.task_evaluations,
        said=(*say, *degenerate(points)),
    )  # fmt: skip
