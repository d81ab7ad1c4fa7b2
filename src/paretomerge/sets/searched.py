"""A front found by evaluations: a preference picks one of its points."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from paretomerge.sets.choice import Choice, Matrix, choose
from paretomerge.sets.coefficients import Shared
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.task_vectors import TaskVectors
from paretomerge.weights.lazy import Weights


class Metric(NamedTuple):
    """A column of a front's metrics."""

    task: str
    metric: str
    larger_is_better: bool


@dataclass(frozen=True)
class SearchedFront:
    """P points: their coefficients and what is known of them."""

    points: Matrix
    """c, (P, N)."""
    metrics: tuple[Metric, ...]
    """The K columns of ``predicted`` and ``measured``; every task has one at least."""
    predicted: Matrix
    """(P, K) by surrogates, in the metrics' own units; NaN where there was none."""
    measured: Matrix
    """(P, K); NaN where it was not measured."""
    preferences: Matrix | None = None
    """(P, N): what each point was made for (nested MAP)."""


class Searched(ParetoSet):
    """θ(γ) = θ₀ + Σ_n c_n(γ) v_n, where c(γ) is a point of a front that was found by evaluations (MAP, Li et al. 2025).

    As every set it is kept as base + Σ_n (c_n(γ) − c_n(1/K, …, 1/K)) v_n. The v_n may be task vectors that TIES, DARE or
    TSV processed. Of a task's metrics each has an equal part of γ_k; how γ chooses is told in ``sets.choice``. What
    was measured counts before what was predicted. Where each point was made for a preference, the nearest of these is taken.
    """

    method = "searched"

    def __init__(
        self,
        tasks: Sequence[str],
        base: Weights,
        task_vectors: Weights,
        front: SearchedFront,
        choice: Choice = "tchebycheff",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``base``: the model at c(equal), as ``coefficients_at`` gives it; ``task_vectors``: name -> (N, *shape)."""
        c = Shared(self.mixture, task_vectors.infos)
        super().__init__(tasks, base, coefficients=c, task_vectors=TaskVectors(task_vectors), settings=settings)
        self.front = front
        self.choice: Choice = choice

    def point(self, gamma: Tensor) -> int:
        """The row of the front that γ (K,) picks."""
        return self._equal_point if torch.equal(gamma, self.equal) else pick(self.front, self.tasks, gamma.numpy(), self.choice)

    @cached_property
    def _equal_point(self) -> int:
        return pick(self.front, self.tasks, self.equal.numpy(), self.choice)

    def key(self, gamma: Tensor) -> Hashable:
        return self.point(gamma)

    def mixture(self, gamma: Tensor) -> Tensor:
        """c(γ), (N,)."""
        return torch.from_numpy(self.front.points[self.point(gamma)])

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        front = self.front
        facts = {
            "choice": self.choice,
            "metrics": [metric._asdict() for metric in front.metrics],
            "points": front.points.tolist(),
            "predicted": _listed(front.predicted),
            "measured": _listed(front.measured),
            "preferences": None if front.preferences is None else front.preferences.tolist(),
        }
        return self.task_vectors.stored(), facts

    @classmethod
    def restored(
        cls,
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> Searched:
        if facts["choice"] not in get_args(Choice):
            raise ValueError(f"choice {facts['choice']!r}")
        metrics = tuple(Metric(str(m["task"]), str(m["metric"]), bool(m["larger_is_better"])) for m in facts["metrics"])
        if {metric.task for metric in metrics} != set(tasks):
            raise ValueError("its metrics are not those of its tasks")
        points = np.array(facts["points"], dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != len(tasks) or not len(points) or not np.isfinite(points).all():
            raise ValueError("points of another number of coefficients than tasks")
        known = [np.array(facts[name], dtype=np.float64) for name in ("predicted", "measured")]  # None becomes NaN
        if any(values.shape != (len(points), len(metrics)) or np.isinf(values).any() for values in known):
            raise ValueError("metrics that do not fit its points")
        wanted = None if facts["preferences"] is None else np.array(facts["preferences"], dtype=np.float64)
        if wanted is not None and (wanted.shape != points.shape or not np.isfinite(wanted).all()):
            raise ValueError("preferences that do not fit its points")
        if wanted is None and not any(np.isfinite(values).all(1).any() for values in known):
            raise ValueError("no point whose metrics are known")
        task_vectors = TaskVectors.restored(tensors, len(tasks), base.infos).whole
        front = SearchedFront(points, metrics, known[0], known[1], wanted)
        return cls(tasks, base, task_vectors, front, facts["choice"], settings)


def pick(front: SearchedFront, tasks: Sequence[str], gamma: Matrix, choice: Choice) -> int:
    """The row of the front that γ (K,) picks; ``Searched`` says how."""
    import moocore

    if front.preferences is not None:
        return int(np.linalg.norm(front.preferences - gamma, axis=1).argmin())
    known = np.where(np.isfinite(front.measured).all(1, keepdims=True), front.measured, front.predicted)
    rows = np.flatnonzero(np.isfinite(known).all(1))
    losses = known[rows]
    losses = losses * [-1.0 if metric.larger_is_better else 1.0 for metric in front.metrics]
    kept = moocore.is_nondominated(losses)
    each = [metric.task for metric in front.metrics]
    weights = np.array([gamma[tasks.index(task)] / each.count(task) for task in each])
    return int(rows[kept][choose(losses[kept], weights, choice)])


def _listed(values: Matrix) -> list[list[float | None]]:
    """For JSON, which has no NaN."""
    return [[value if np.isfinite(value) else None for value in row] for row in values.tolist()]
