"""Fronts from evaluations alone: MAP and its baselines, each a function (experts, evaluator_for, …) -> Searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretomerge import preferences as simplex
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.processed import Inside, for_every_name, processed, with_coefficients
from paretomerge.results.objective import CoefficientsEvaluator
from paretomerge.search import sampling as boxes
from paretomerge.search.bayesian import bayesian
from paretomerge.search.direct import direct_search, moead
from paretomerge.search.nested import nested
from paretomerge.search.plain import plain
from paretomerge.search.result import Found
from paretomerge.search.sampling import Sampling
from paretomerge.search.surrogate import Loss
from paretomerge.sets.choice import Choice
from paretomerge.sets.searched import Metric, Searched, SearchedFront, pick
from paretomerge.weights.lazy import Weights

EvaluatorFor = Callable[[Weights], CoefficientsEvaluator]
"""From the task vectors that are merged (name -> (N, *shape)) to what measures θ(c) = θ₀ + Σ_n c_n v_n."""
Say = Callable[[str], None]
BoxOption = Sequence[float] | Sequence[Sequence[float]] | None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What every search has beside its own options.

    Attributes:
        inside: Merge whose coefficients are searched. task_arithmetic: the task vectors as they are. The others process the
            task vectors first, as TIES, DARE or TSV-Merging do.
        density: Fraction of entries that TIES (default 0.2) or DARE (default 0.1) keeps of each task vector.
        box: Lowest and highest coefficient, or such a pair for each expert; null means 0 to 1.
        choice: How a preference picks a point of the front. tchebycheff reaches every point; the weighted sum reaches only
            the convex parts.
        seed: Random seed.
    """

    inside: Inside = "task_arithmetic"
    density: float | None = None
    box: BoxOption = None
    choice: Choice = "tchebycheff"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SurrogateOptions:
    """What a search has that finds its front on surrogates of the metrics.

    Attributes:
        loss: Loss with which the surrogates are fitted; soft_l1, huber and cauchy are robust to outliers in the metrics.
        population: Population size of NSGA-III.
        generations: Number of generations of NSGA-III.
    """

    loss: Loss = "linear"
    population: int = 128
    generations: int = 100


def map_front(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    evaluations: int | None = None,
    sampling: Sampling = "sobol",
    anchors: bool = False,
    runs: int = 1,
    measure: int = 10,
    surrogates: SurrogateOptions = SurrogateOptions(),
    options: SearchOptions = SearchOptions(),
    say: Say = lambda line: None,
) -> Searched:
    """MAP (Li et al. 2025): evaluate some c, fit quadratic surrogates, find their front with NSGA-III.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        evaluations: Number of coefficient vectors to evaluate; null means the paper's 30, 50, 60, 85, 100, 140 and 250 for
            2 … 8 tasks.
        sampling: How these coefficient vectors are drawn: Sobol points, uniformly as in the paper, or on a grid.
        anchors: Also evaluate the experts and equal coefficients, to see their metrics; this does not improve the front.
        runs: Number of runs of NSGA-III; their fronts are pooled.
        measure: Number of points, spread over the front, that are evaluated at the end, beyond evaluations; 0 evaluates none.
        surrogates: how surrogates are fitted and searched.
        options: what every search has.
        say: receives each line for the user.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: Li et al. 2025, arXiv 2406.07529.
    """
    own: dict[str, Any] = {
        "evaluations": evaluations, "sampling": sampling, "anchors": anchors, **vars(surrogates), "runs": runs,
        "measure": measure, "seed": options.seed,
    }  # fmt: skip

    def search(evaluator: CoefficientsEvaluator, within: boxes.Box) -> Found:
        return plain(evaluator, within, **own)

    return _searched("map", experts, evaluator_for, search, options, own, say)


def map_bayesian(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    first: int | None = None,
    rounds: int = 2,
    each: int | None = None,
    temperature: float = 0.07,
    runs: int = 1,
    measure: int = 10,
    surrogates: SurrogateOptions = SurrogateOptions(),
    options: SearchOptions = SearchOptions(),
    say: Say = lambda line: None,
) -> Searched:
    """Bayesian MAP (Li et al. 2025): few c at first, then in rounds more where the surrogates were wrong.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        first: Number of coefficient vectors to evaluate before the first round; null means one for each parameter of a
            quadratic: 6 for 2 tasks, as in the paper.
        rounds: Number of rounds of adaptive sampling.
        each: Number of coefficient vectors per round; null means half of first.
        temperature: Temperature of the softmax over the scores of the bins.
        runs: Number of runs of NSGA-III; their fronts are pooled.
        measure: Number of points, spread over the front, that are evaluated at the end; 0 evaluates none.
        surrogates: how surrogates are fitted and searched.
        options: what every search has.
        say: receives each line for the user.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: Li et al. 2025, Bayesian MAP.
    """
    own: dict[str, Any] = {
        "first": first, "rounds": rounds, "each": each, "temperature": temperature, **vars(surrogates), "runs": runs,
        "measure": measure, "seed": options.seed,
    }  # fmt: skip

    def search(evaluator: CoefficientsEvaluator, within: boxes.Box) -> Found:
        return bayesian(evaluator, within, **own)

    return _searched("map-bayesian", experts, evaluator_for, search, options, own, say)


def map_nested(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    preferences: str | Sequence[str] = "equal",
    evaluations: int = 20,
    sampling: Sampling = "sobol",
    measure: bool = False,
    surrogates: SurrogateOptions = SurrogateOptions(),
    options: SearchOptions = SearchOptions(),
    say: Say = lambda line: None,
) -> Searched:
    """Nested MAP (Li et al. 2025): for given preferences over many tasks, merged two groups at a time.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        preferences: Preferences to search for, one or a list: equal, priority:math, math=2,code=1. The front has a point for
            each.
        evaluations: Number of coefficient vectors to evaluate for each pair of groups.
        sampling: How these coefficient vectors are drawn: Sobol points, uniformly as in the paper, or on a grid.
        measure: Whether the final models are evaluated.
        surrogates: how surrogates are fitted and searched.
        options: what every search has.
        say: receives each line for the user.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a point per asked preference.
    Paper: Li et al. 2025, nested MAP.
    """
    wanted = [preferences] if isinstance(preferences, str) else list(preferences)
    if not wanted:
        raise UserError("preferences: name at least one, equal for instance")
    gammas = np.array([simplex.parse(text, experts.tasks) for text in wanted])
    own: dict[str, Any] = {
        "evaluations": evaluations, "sampling": sampling, **vars(surrogates), "measure": measure, "seed": options.seed,
    }  # fmt: skip

    def search(evaluator: CoefficientsEvaluator, within: boxes.Box) -> Found:
        return nested(evaluator, within, experts.tasks, gammas, choice=options.choice, **own)

    return _searched("map-nested", experts, evaluator_for, search, options, {**own, "preferences": wanted}, say)


def direct(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    evaluations: int | None = None,
    sampling: Sampling = "sobol",
    anchors: bool = False,
    options: SearchOptions = SearchOptions(),
    say: Say = lambda line: None,
) -> Searched:
    """Direct search: evaluate many c and keep the non-dominated ones; the baseline of MAP.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        evaluations: Number of coefficient vectors to evaluate; null means the paper's 200 for 2 tasks, 300 for 3 and 4, 500
            for 5 and 6, and 1000 for more.
        sampling: How these coefficient vectors are drawn: Sobol points, uniformly as in the paper, or on a grid.
        anchors: Also evaluate the experts and equal coefficients.
        options: what every search has.
        say: receives each line for the user.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: the baseline of MAP.
    """
    own: dict[str, Any] = {"evaluations": evaluations, "sampling": sampling, "anchors": anchors, "seed": options.seed}

    def search(evaluator: CoefficientsEvaluator, within: boxes.Box) -> Found:
        return direct_search(evaluator, within, **own)

    return _searched("direct-search", experts, evaluator_for, search, options, own, say)


def evolved(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    population: int = 50,
    generations: int = 20,
    options: SearchOptions = SearchOptions(),
    say: Say = lambda line: None,
) -> Searched:
    """MOEA/D (Zhang & Li 2007) on true evaluations; a baseline of MAP, about 1 000 evaluations by default.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        population: Largest size of the population.
        generations: Number of generations.
        options: what every search has.
        say: receives each line for the user.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: Zhang & Li 2007 (MOEA/D), a baseline of MAP.
    """
    own: dict[str, Any] = {"population": population, "generations": generations, "seed": options.seed}

    def search(evaluator: CoefficientsEvaluator, within: boxes.Box) -> Found:
        return moead(evaluator, within, **own)

    return _searched("moead", experts, evaluator_for, search, options, own, say)


SEARCHES: dict[str, Callable[..., Searched]] = {
    "map": map_front,
    "map-nested": map_nested,
    "map-bayesian": map_bayesian,
    "direct-search": direct,
    "moead": evolved,
}
"""By their names on the command line."""


_LEAST = {"evaluations": 1, "first": 1, "each": 1, "rounds": 0, "population": 1, "generations": 1, "runs": 1, "measure": 0,
          "seed": 0}  # fmt: skip


def _searched(
    name: str,
    experts: Experts,
    evaluator_for: EvaluatorFor,
    search: Callable[[CoefficientsEvaluator, boxes.Box], Found],
    options: SearchOptions,
    own: Mapping[str, Any],
    say: Say,
) -> Searched:
    if len(experts) < 2:
        raise UserError("a front is between tasks: name at least two experts")
    for option, least in _LEAST.items():
        if (value := own.get(option)) is not None and value < least:
            raise UserError(f"{option} must be at least {least}")
    if own.get("temperature", 1.0) <= 0:
        raise UserError("temperature must be positive")
    within = boxes.box(len(experts), options.box)
    vectors = processed(experts, options.inside, density=options.density, seed=options.seed)
    evaluator = evaluator_for(vectors)
    metrics = tuple(Metric(o.task, o.metric, o.larger_is_better) for o in evaluator.objectives)
    measured = {metric.task for metric in metrics}
    if missing := [task for task in experts.tasks if task not in measured]:
        raise UserError(f"task {missing[0]} has no metric: a search needs one of every expert's task")
    if strangers := sorted(measured - set(experts.tasks)):
        raise UserError(f"a metric of task {strangers[0]!r}, but no expert for it (experts: {', '.join(experts.tasks)})")
    found = search(evaluator, within)
    for line in found.said:
        say(line)
    front = SearchedFront(found.points, metrics, found.predicted, found.measured, found.preferences)
    settings = {
        "search": name, **own, **vars(options), "box": np.stack(within, 1).tolist(),
        "models_evaluated": found.models, "task_evaluations": found.task_evaluations, "points": len(found.points),
        "measured_points": int(np.isfinite(found.measured).all(1).sum()),
        "surrogates": {
            f"{fit.objective.task} {fit.objective.metric}": {
                "link": fit.link, "r2": _number(fit.r2), "r2_held_out": _number(fit.r2_held_out)
            }
            for fit in found.fits
        },
        "said": list(found.said),
    }  # fmt: skip
    every = for_every_name(experts, vectors)
    equal = np.array(simplex.equal(len(experts)))
    row = pick(front, experts.tasks, equal, options.choice)
    base = with_coefficients(experts, vectors, found.points[row].tolist())
    return Searched(experts.tasks, base, every, front, options.choice, settings)


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
