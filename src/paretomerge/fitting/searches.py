"""Fronts from evaluations alone: MAP and its baselines, each a function (experts, evaluator_for, **options) -> Searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paretomerge import preferences as simplex
from paretomerge.errors import UserError
from paretomerge.merges.processed import Inside, for_every_name, processed, with_coefficients
from paretomerge.search import sampling as boxes
from paretomerge.search.bayesian import bayesian
from paretomerge.search.direct import direct_search, moead
from paretomerge.search.found import Found
from paretomerge.search.nested import nested
from paretomerge.search.objective import Evaluator
from paretomerge.search.plain import plain
from paretomerge.search.sampling import Sampling
from paretomerge.search.surrogate import Loss
from paretomerge.sets.choice import Choice
from paretomerge.sets.searched import Metric, Searched, SearchedFront, pick
from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import Weights

EvaluatorFor = Callable[[Weights], Evaluator]
"""From the task vectors that are merged (name -> (N, *shape)) to what measures θ(c) = θ₀ + Σ_n c_n v_n."""
Say = Callable[[str], None]
BoxOption = Sequence[float] | Sequence[Sequence[float]] | None


def map_front(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    inside: Inside = "task_arithmetic",
    density: float | None = None,
    evaluations: int | None = None,
    sampling: Sampling = "sobol",
    anchors: bool = False,
    box: BoxOption = None,
    loss: Loss = "linear",
    population: int = 128,
    generations: int = 100,
    runs: int = 1,
    measure: int = 10,
    choice: Choice = "tchebycheff",
    seed: int = 0,
    say: Say = lambda line: None,
) -> Searched:
    """MAP (Li et al. 2025): evaluate some c, fit quadratic surrogates, find their front with NSGA-III.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        inside: what becomes of the task vectors first: nothing, or what TIES, DARE or TSV-Merging do to them.
        density: share of entries that TIES (0.2) or DARE (0.1) keep.
        evaluations: number of c; default: the paper's, 30, 50, 60, 85, 100, 140 and 250 for 2 … 8 tasks.
        sampling: of these c: Sobol points, uniform (the paper's) or a grid.
        anchors: the experts and c = t·1 are among them: to see their metrics; the front does not get better by it.
        box: low and high of every coefficient, or a pair for each; default: 0 to 1.
        loss: robust ones (soft_l1, huber, cauchy) bear outliers in the metrics.
        population: of NSGA-III.
        generations: of NSGA-III.
        runs: of NSGA-III; their fronts are pooled.
        measure: points of the front that are evaluated, spread over it, beyond ``evaluations``; 0: none.
        choice: how a preference picks: Tchebycheff reaches every point of a front, a weighted sum its convex parts only.
        seed: of everything random.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: Li et al. 2025, arXiv 2406.07529.
    """
    options: dict[str, Any] = {
        "evaluations": evaluations, "sampling": sampling, "anchors": anchors, "loss": loss, "population": population,
        "generations": generations, "runs": runs, "measure": measure, "seed": seed,
    }  # fmt: skip

    def search(evaluator: Evaluator, within: boxes.Box) -> Found:
        return plain(evaluator, within, **options)

    return _searched("map", experts, evaluator_for, search, inside, density, box, choice, options, say)


def map_bayesian(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    inside: Inside = "task_arithmetic",
    density: float | None = None,
    first: int | None = None,
    rounds: int = 2,
    each: int | None = None,
    temperature: float = 0.07,
    box: BoxOption = None,
    loss: Loss = "linear",
    population: int = 128,
    generations: int = 100,
    runs: int = 1,
    measure: int = 10,
    choice: Choice = "tchebycheff",
    seed: int = 0,
    say: Say = lambda line: None,
) -> Searched:
    """Bayesian MAP (Li et al. 2025): few c at first, then in rounds more where the surrogates were wrong.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        inside: as in map.
        density: as in map.
        first: number of c to begin with; default: one for each parameter of a quadratic, 6 for 2 tasks as in the paper.
        rounds: of adaptive sampling.
        each: c in a round; default: half of ``first``.
        temperature: of the softmax over the bins' scores.
        box: as in map.
        loss: as in map.
        population: as in map.
        generations: as in map.
        runs: as in map.
        measure: as in map.
        choice: as in map.
        seed: of everything random.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: Li et al. 2025, Bayesian MAP.
    """
    options: dict[str, Any] = {"first": first, "rounds": rounds, "each": each, "temperature": temperature, "loss": loss,
               "population": population, "generations": generations, "runs": runs, "measure": measure,
               "seed": seed}  # fmt: skip

    def search(evaluator: Evaluator, within: boxes.Box) -> Found:
        return bayesian(evaluator, within, **options)

    return _searched("map-bayesian", experts, evaluator_for, search, inside, density, box, choice, options, say)


def map_nested(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    preferences: str | Sequence[str] = "equal",
    inside: Inside = "task_arithmetic",
    density: float | None = None,
    evaluations: int = 20,
    sampling: Sampling = "sobol",
    box: BoxOption = None,
    loss: Loss = "linear",
    population: int = 128,
    generations: int = 100,
    measure: bool = False,
    choice: Choice = "tchebycheff",
    seed: int = 0,
    say: Say = lambda line: None,
) -> Searched:
    """Nested MAP (Li et al. 2025): for given preferences over many tasks, merged two groups at a time.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        preferences: one, or a list: equal, priority:math, math=2,code=1. The front has a point for each.
        inside: as in map.
        density: as in map.
        evaluations: number of c for each pair of groups.
        sampling: as in map.
        box: as in map.
        loss: as in map.
        population: as in map.
        generations: as in map.
        measure: evaluate the final models.
        choice: as in map, within each pair.
        seed: of everything random.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a point per asked preference.
    Paper: Li et al. 2025, nested MAP.
    """
    wanted = [preferences] if isinstance(preferences, str) else list(preferences)
    if not wanted:
        raise UserError("preferences: name at least one, equal for instance")
    gammas = np.array([simplex.parse(text, experts.tasks) for text in wanted])
    options: dict[str, Any] = {"evaluations": evaluations, "sampling": sampling, "loss": loss, "population": population,
               "generations": generations, "measure": measure, "seed": seed}  # fmt: skip

    def search(evaluator: Evaluator, within: boxes.Box) -> Found:
        return nested(evaluator, within, experts.tasks, gammas, choice=choice, **options)

    recorded = {**options, "preferences": wanted}
    return _searched("map-nested", experts, evaluator_for, search, inside, density, box, choice, recorded, say)


def direct(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    inside: Inside = "task_arithmetic",
    density: float | None = None,
    evaluations: int | None = None,
    sampling: Sampling = "sobol",
    anchors: bool = False,
    box: BoxOption = None,
    choice: Choice = "tchebycheff",
    seed: int = 0,
    say: Say = lambda line: None,
) -> Searched:
    """Direct search: evaluate many c and keep the non-dominated ones; the baseline of MAP.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        inside: as in map.
        density: as in map.
        evaluations: number of c; default: the paper's, 200 for 2 tasks, 300 for 3 and 4, 500 for 5 and 6, else 1 000.
        sampling: as in map.
        anchors: as in map.
        box: as in map.
        choice: as in map.
        seed: of what is random.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: the baseline of MAP.
    """
    options: dict[str, Any] = {"evaluations": evaluations, "sampling": sampling, "anchors": anchors, "seed": seed}

    def search(evaluator: Evaluator, within: boxes.Box) -> Found:
        return direct_search(evaluator, within, **options)

    return _searched("direct-search", experts, evaluator_for, search, inside, density, box, choice, options, say)


def evolved(
    experts: Experts,
    evaluator_for: EvaluatorFor,
    *,
    inside: Inside = "task_arithmetic",
    density: float | None = None,
    population: int = 50,
    generations: int = 20,
    box: BoxOption = None,
    choice: Choice = "tchebycheff",
    seed: int = 0,
    say: Say = lambda line: None,
) -> Searched:
    """MOEA/D (Zhang & Li 2007) on true evaluations; a baseline of MAP, about 1 000 evaluations by default.

    Args:
        experts: base and experts.
        evaluator_for: makes the evaluator.
        inside: as in map.
        density: as in map.
        population: at the most.
        generations: number of them.
        box: as in map.
        choice: as in map.
        seed: of what is random.

    Needs: evaluations: inputs with labels, or an evaluator.
    Stores: one model, K task vectors and a list of points.
    Paper: Zhang & Li 2007 (MOEA/D), a baseline of MAP.
    """
    options: dict[str, Any] = {"population": population, "generations": generations, "seed": seed}

    def search(evaluator: Evaluator, within: boxes.Box) -> Found:
        return moead(evaluator, within, **options)

    return _searched("moead", experts, evaluator_for, search, inside, density, box, choice, options, say)


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
    search: Callable[[Evaluator, boxes.Box], Found],
    inside: Inside,
    density: float | None,
    box: BoxOption,
    choice: Choice,
    options: Mapping[str, Any],
    say: Say,
) -> Searched:
    if len(experts) < 2:
        raise UserError("a front is between tasks: name at least two experts")
    for option, least in _LEAST.items():
        if (value := options.get(option)) is not None and value < least:
            raise UserError(f"{option} must be at least {least}")
    if options.get("temperature", 1.0) <= 0:
        raise UserError("temperature must be positive")
    within = boxes.box(len(experts), box)
    vectors = processed(experts, inside, density=density, seed=options["seed"])
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
        "search": name, **options, "inside": inside, "density": density, "box": np.stack(within, 1).tolist(), "choice": choice,
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
    row = pick(front, experts.tasks, equal, choice)
    base = with_coefficients(experts, vectors, found.points[row].tolist())
    return Searched(experts.tasks, base, every, front, choice, settings)


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
