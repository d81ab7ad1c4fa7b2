"""Steered sets: per tensor an affine function of the preference says how much of each task vector it gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from paretomerge.sets.coefficients import Coefficients
from paretomerge.sets.factors import Factors
from paretomerge.sets.low_rank import LowRank
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.task_vectors import TaskVectors
from paretomerge.weights.adapted import Pair, concatenated
from paretomerge.weights.lazy import Weights

_LOW_RANK = "low_rank."


class Steered(ParetoSet):
    """θ(γ) = θ₀ + Σ_k (M γ + b)_k v_k + A (Σ_k γ_k G_k) B, with M (K, K) and b (K,) of each tensor; not in a paper.

    M = Kλ I, b = 0, G = 0 is the soup (``Soup``); M = 0 is Pareto Merging. The base is the model at equal preference, so a
    tensor is base + Σ_k (M (γ − 1/K))_k v_k + A (Σ_k (γ_k − 1/K) G_k) B.
    """

    method = "steered"

    def __init__(
        self,
        tasks: Sequence[str],
        base: Weights,
        coefficients: Coefficients,
        task_vectors: TaskVectors,
        factors: Mapping[str, Factors],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``coefficients``: M and b; ``factors``: target's name -> its low-rank term."""
        super().__init__(tasks, base, settings)
        self.coefficients = coefficients
        self.task_vectors = task_vectors
        self.low_rank = LowRank(tasks, base, factors)

    @property
    def varying(self) -> Collection[str]:
        return dict.fromkeys([*self.task_vectors.names, *self.low_rank.varying])

    def shift_(self, name: str, tensor: Tensor, to: Tensor, since: Tensor) -> Tensor:
        if name in self.coefficients.row:
            self.task_vectors.add_(name, tensor, self.coefficients.of(name, to, since))
        return self.low_rank.shift_(name, tensor, to, since) if name in self.low_rank.varying else tensor

    def pair(self, name: str, gamma: Tensor) -> Pair | None:
        own = self.low_rank.pair(name, gamma) if name in self.low_rank.varying else None
        if name not in self.coefficients.row:
            return own
        steered = self.task_vectors.pair(name, self.coefficients.of(name, gamma, self.equal))
        return concatenated([steered, own]) if steered and own else steered

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        stored = self.task_vectors.stored()
        coefficients, groups = self.coefficients.stored()
        low_rank, targets = self.low_rank.stored()
        for part in (coefficients, low_rank.renamed(lambda name: _LOW_RANK + name)):
            stored = stored.replacing(part.infos, part.__getitem__)
        return stored, {"groups": groups, **targets}

    @classmethod
    def restored(
        cls,
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> Steered:
        task_vectors = TaskVectors.restored(tensors, len(tasks), base.infos)
        coefficients = Coefficients.restored("affine", tensors, facts["groups"], len(tasks), task_vectors.names)
        low_rank = tensors.without({name for name in tensors if not name.startswith(_LOW_RANK)})
        low_rank = low_rank.renamed(lambda name: name.removeprefix(_LOW_RANK))
        factors = LowRank.restored(tasks, base, {}, low_rank, facts).factors
        return cls(tasks, base, coefficients, task_vectors, factors, settings)
