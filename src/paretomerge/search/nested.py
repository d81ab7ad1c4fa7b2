"""Nested MAP (Li et al. 2025, algorithm 2): a model for one preference over many tasks, merged two groups at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from paretomerge.results.objective import CoefficientsEvaluator, Matrix, Objective
from paretomerge.search.cached import Counted
from paretomerge.search.plain import bounded, predicted_front
from paretomerge.search.result import Found
from paretomerge.search.sampling import Box, Sampling, box, sample
from paretomerge.search.surrogate import Fit, Loss, fit_surrogates
from paretomerge.sets.choice import Choice, choose

_LOSSES = [Objective("", "loss of the first group", False), Objective("", "loss of the second group", False)]


@dataclass(frozen=True)
class _Group:
    """Some tasks, and the model that was merged for them: θ₀ + Σ_n c_n v_n."""

    members: tuple[int, ...]
    c: Matrix
    loss: float


def nested(
    evaluator: CoefficientsEvaluator,
    within: Box,
    tasks: Sequence[str],
    preferences: Matrix,
    *,
    evaluations: int = 20,
    sampling: Sampling = "sobol",
    loss: Loss = "linear",
    choice: Choice = "tchebycheff",
    population: int = 128,
    generations: int = 100,
    measure: bool = False,
    seed: int = 0,
) -> Found:
    """One c for each preference γ.

    Each task begins as a group of its own. In rounds, the two groups of nearest loss that have not been merged in this round
    are: MAP on two coefficients t gives the front of their losses for θ₀ + t_1(θ_I − θ₀) + t_2(θ_J − θ₀), γ chooses a
    point of it, and the merged model stands for both. (The paper's update has θ₀ and the fine-tuned models exchanged.) All
    models stay θ₀ + Σ c_n v_n, so groups are vectors c, and only the metrics of a pair's own tasks are evaluated: about
    20 N log₂ N task-evaluations, at most 480 for N = 8. With several preferences what they have in common is evaluated once.

    A metric is brought to a loss by its declared range, (best − M) / (u − l), 1 − accuracy for instance; where it lacks a
    bound, by the base model's value M₀: 1 ∓ (M − M₀) / |M₀|, which is M / M₀ for a perplexity. A group's loss is the mean of
    its tasks', weighted with γ (equally, where γ is 0 on all of them).

    Args:
        evaluator: of merged models.
        within: the box of single tasks' coefficients; t ∈ [0, 1] for groups that are merged already.
        tasks: the N tasks, in the order of c.
        preferences: γ, (P, N).
        evaluations: c for each pair, corners among them.
        sampling: of these.
        loss: of the surrogates' fits.
        choice: how γ chooses from a pair's front; see ``sets.choice``.
        population: of NSGA-III.
        generations: of NSGA-III.
        measure: evaluate the final models on all tasks: N more task-evaluations for each preference.
        seed: of everything random.
    """
    counted = Counted(evaluator)
    search = _Search(counted, within, tasks, evaluations, sampling, loss, choice, population, generations, seed)
    rows = [search.run(gamma) for gamma in preferences]
    points = np.array([c for c, _ in rows])
    measured = counted(points) if measure else np.full((len(points), len(counted.objectives)), np.nan)
    return Found(
        points, np.array([predicted for _, predicted in rows]), measured, counted.evaluated, counted.models,
        counted.task_evaluations, tuple(search.fits.values()), tuple(dict.fromkeys(search.said)), np.asarray(preferences),
    )  # fmt: skip


@dataclass
class _Search:
    counted: Counted
    within: Box
    tasks: Sequence[str]
    evaluations: int
    sampling: Sampling
    loss: Loss
    choice: Choice
    population: int
    generations: int
    seed: int

    def __post_init__(self) -> None:
        objectives = self.counted.objectives
        self.fits: dict[int, Fit] = {}
        self.said: list[str] = []
        self.columns = [[k for k, o in enumerate(objectives) if o.task == task] for task in self.tasks]
        self.origin = np.zeros(len(self.tasks))
        self.unbounded = [k for k, o in enumerate(objectives) if o.low is None or o.high is None]
        start = self.counted(self.origin[None], self.unbounded)[0] if self.unbounded else np.zeros(len(objectives))
        self.scale, self.zero = np.ones(len(objectives)), np.zeros(len(objectives))
        for k, o in enumerate(objectives):
            sign = -1.0 if o.larger_is_better else 1.0
            if o.low is not None and o.high is not None:  # loss = (M − best) · sign / range
                best = o.high if o.larger_is_better else o.low
                self.scale[k], self.zero[k] = sign / (o.high - o.low), -best * sign / (o.high - o.low)
            else:
                size = abs(start[k]) or 1.0
                self.scale[k], self.zero[k] = sign / size, 1 - sign * start[k] / size

    def run(self, gamma: Matrix) -> tuple[Matrix, Matrix]:
        """c (N,) for γ, and the metrics (K,) that the last pair's surrogates predict there."""
        groups = [self._alone(n, gamma) for n in range(len(self.tasks))]
        predicted = np.full(len(self.counted.objectives), np.nan)
        while len(groups) > 1:
            waiting, groups = groups, []
            while len(waiting) > 1:
                one, other = min(combinations(waiting, 2), key=lambda pair: abs(pair[0].loss - pair[1].loss))
                waiting = [group for group in waiting if group is not one and group is not other]
                merged, predicted = self._merge(one, other, gamma)
                groups.append(merged)
            groups += waiting  # with an odd number one sits a round out
        return groups[0].c, predicted

    def _alone(self, n: int, gamma: Matrix) -> _Group:
        c = self.origin.copy()
        c[n] = self.within.high[n]
        return _Group((n,), c, float(self._group_losses(self.counted(c[None], self.columns[n]), (n,), gamma)[0]))

    def _merge(self, one: _Group, other: _Group, gamma: Matrix) -> tuple[_Group, Matrix]:
        """The group of both, and the metrics predicted for it."""
        members = (*one.members, *other.members)
        columns = sorted(k for n in members for k in self.columns[n])
        objectives = [self.counted.objectives[k] for k in columns]
        limits = box(2, [self._limits(one), self._limits(other)])
        t = sample(self.evaluations, limits, self.sampling, anchors=True, seed=self.seed)
        directions = np.stack([one.c, other.c])
        metrics = self.counted(t @ directions, columns)[:, columns]
        surrogates = fit_surrogates(t, metrics, objectives, loss=self.loss, seed=self.seed)
        self.said += surrogates.said
        self.fits |= dict(zip(columns, surrogates.fits, strict=True))

        def everywhere(at: Matrix) -> Matrix:
            wide = np.full((len(at), len(self.counted.objectives)), np.nan)
            wide[:, columns] = surrogates(at)
            return wide

        def pair_losses(at: Matrix) -> Matrix:
            wide = everywhere(at)
            return np.stack([self._group_losses(wide, group.members, gamma) for group in (one, other)], 1)

        front = predicted_front(
            pair_losses, _LOSSES, limits, population=self.population, generations=self.generations, seed=self.seed
        )
        weights = np.array([gamma[list(group.members)].sum() for group in (one, other)])
        weights = weights / weights.sum() if weights.sum() > 0 else np.full(2, 0.5)
        best = front[choose(pair_losses(front), weights, self.choice)][None]
        predicted = bounded(everywhere(best), self.counted.objectives)
        return _Group(members, (best @ directions)[0], float(self._group_losses(predicted, members, gamma)[0])), predicted[0]

    def _limits(self, group: _Group) -> tuple[float, float]:
        if len(group.members) > 1:
            return 0.0, 1.0
        n = group.members[0]  # t multiplies a corner of the box
        return self.within.low[n] / self.within.high[n], 1.0

    def _group_losses(self, metrics: Matrix, members: tuple[int, ...], gamma: Matrix) -> Matrix:
        """(P,) from metrics (P, K): the mean over the members' tasks, weighted with γ."""
        weights = gamma[list(members)]
        weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(members), 1 / len(members))
        each = metrics * self.scale + self.zero
        of_task = np.stack([each[:, self.columns[n]].mean(1) for n in members], 1)
        combined: Matrix = of_task @ weights
        return combined
