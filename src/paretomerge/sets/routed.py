"""PWE-MoE's set: a small router for each upscaled module says how much of each task vector it gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from paretomerge.sets.coefficients import Coefficients
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.task_vectors import TaskVectors
from paretomerge.weights.adapted import Pair
from paretomerge.weights.lazy import Weights


class Routed(ParetoSet):
    """φ_m(γ) = φ₀_m + Σ_k R_m(γ)_k v_km for each module m, the rest merged by Task Arithmetic (Tang et al. 2024, PWE-MoE).

    R_m(γ) = W₂ relu(W₁ γ + b₁) + b₂ with 2K hidden units: 4K² + 3K numbers, 22 at K = 2 and 280 at K = 8. The base is the
    model at equal preference, so a tensor of module m is base + Σ_k (R_m(γ) − R_m(1/K, …, 1/K))_k v_k. A picked model is an
    ordinary one: its modules are unloaded, and no router is left.
    """

    method = "pwe-moe"

    def __init__(
        self,
        tasks: Sequence[str],
        base: Weights,
        routers: Coefficients,
        task_vectors: TaskVectors,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``routers``: R_m, its groups the modules in order of depth; ``task_vectors``: of those modules' tensors alone."""
        super().__init__(tasks, base, settings)
        self.coefficients = routers
        self.task_vectors = task_vectors

    @property
    def varying(self) -> Collection[str]:
        return self.task_vectors.names

    def shift_(self, name: str, tensor: Tensor, to: Tensor, since: Tensor) -> Tensor:
        return self.task_vectors.add_(name, tensor, self.coefficients.of(name, to, since))

    def pair(self, name: str, gamma: Tensor) -> Pair | None:
        return self.task_vectors.pair(name, self.coefficients.of(name, gamma, self.equal))

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        routers, modules = self.coefficients.stored()
        vectors = self.task_vectors.stored()
        return vectors.replacing(routers.infos, routers.__getitem__), {"modules": modules}

    @classmethod
    def restored(
        cls,
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> Routed:
        task_vectors = TaskVectors.restored(tensors, len(tasks), base.infos)
        routers = Coefficients.restored("routed", tensors, facts["modules"], len(tasks), task_vectors.names)
        return cls(tasks, base, routers, task_vectors, settings)
