"""Rewarded Soups and the family around them: the unrestricted solution, at the price of every task vector."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.lazy import Weights

_KEY = "task_vectors."


class Soup(ParetoSet):
    """θ(γ) = base + Kλ Σ_k (γ_k − 1/K) v_k  (Pareto Merging, eq. 3).

    On the base θ₀ + λ Σ_k v_k that is θ₀ + Kλ Σ_k γ_k v_k, the minimiser of Σ_k γ_k ‖θ − (θ₀ + Kλ v_k)‖²; λ = 1/K gives
    Rewarded Soups, Σ_k γ_k θ_k (Rame et al. 2023).
    """

    method = "soup"

    def __init__(
        self,
        tasks: Sequence[str],
        base: Weights,
        task_vectors: Weights,
        scale: float,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``task_vectors``: name -> (K, *shape); ``scale``: λ."""
        super().__init__(tasks, base, settings)
        self.task_vectors = task_vectors
        self.scale = scale

    @property
    def varying(self) -> Collection[str]:
        return self.task_vectors.infos.keys()

    def shift_(self, name: str, tensor: Tensor, to: Tensor, since: Tensor) -> Tensor:
        coefficients = len(self.tasks) * self.scale * (to - since)
        for v, coefficient in zip(self.task_vectors[name], coefficients.tolist(), strict=True):
            if coefficient:
                tensor.add_(v.to(tensor.device), alpha=coefficient)
        return tensor

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        return self.task_vectors.renamed(lambda name: _KEY + name), {"scale": self.scale}

    @classmethod
    def restored(
        cls,
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> Soup:
        scale = float(facts["scale"])
        if not math.isfinite(scale):
            raise ValueError(f"scale {scale}")
        task_vectors = tensors.renamed(lambda name: name.removeprefix(_KEY))
        for name, info in task_vectors.infos.items():
            if name not in base or info.shape != (len(tasks), *base.infos[name].shape):
                raise ValueError(f"{name}: its task vectors do not fit this base")
        return cls(tasks, base, task_vectors, scale, settings)
