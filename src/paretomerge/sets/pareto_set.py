"""The one abstraction: a Pareto set, γ -> θ(γ)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from paretomerge import preferences
from paretomerge.weights.adapted import Pair
from paretomerge.weights.finite import check_finite
from paretomerge.weights.lazy import Weights

Preference = str | Mapping[str, float] | Sequence[float]


class ParetoSet(ABC):
    """A map from a preference over K tasks to merged weights,

        θ(γ) = θ(1/K, …, 1/K) + Δ(γ),   γ_k ≥ 0, Σ_k γ_k = 1.

    ``base`` holds the weights at equal preference, so it is a model by itself and Δ vanishes there *exactly*: a set
    learned with a term that does not is rewritten when it is built, by adding that term to the base.
    """

    method: ClassVar[str]

    def __init__(self, tasks: Sequence[str], base: Weights, settings: Mapping[str, Any] | None = None) -> None:
        self.tasks = tuple(tasks)
        self.base = base
        self.settings = dict(settings or {})

    @property
    @abstractmethod
    def varying(self) -> Collection[str]:
        """Names of the tensors that depend on the preference."""

    @abstractmethod
    def shift_(self, name: str, tensor: Tensor, to: Tensor, since: Tensor) -> Tensor:
        """Add θ(to) − θ(since) of tensor ``name`` to ``tensor``, in place; preferences are (K,) in fp64."""

    def pair(self, name: str, gamma: Tensor) -> Pair | None:
        """θ(γ) − θ(1/K, …, 1/K) of a matrix that varies, as a thin product in fp32; None: the set keeps it whole."""
        return None

    def on_head(self, task: str, head: Weights, preference: Preference) -> Weights:
        """A task's own tensors as they are at a preference: a set may move them, too."""
        return head

    def varying_of_head(self, task: str) -> Collection[str]:
        """Names of the task's own tensors that depend on the preference."""
        return ()

    @abstractmethod
    def stored(self) -> tuple[Weights, dict[str, Any]]:
        """What a front folder keeps beside the base: tensors, and facts for its JSON file."""

    @classmethod
    @abstractmethod
    def restored(
        cls,
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> ParetoSet:
        """The set that ``stored`` describes."""

    def preference(self, preference: Preference) -> Tensor:
        """γ as a (K,) tensor in fp64, from any form that ``preferences.parse`` reads."""
        return torch.tensor(preferences.parse(preference, self.tasks), dtype=torch.float64)

    @property
    def equal(self) -> Tensor:
        """(1/K, …, 1/K), in fp64."""
        return torch.tensor(preferences.equal(len(self.tasks)), dtype=torch.float64)

    def key(self, gamma: Tensor) -> Hashable:
        """The same for preferences that give the same model."""
        return tuple(gamma.tolist())

    def at(self, preference: Preference, dtype: torch.dtype | None = None) -> Weights:
        """θ(γ): the whole merged model, computed tensor by tensor as it is read.

        Args:
            preference: γ: ``"math=0.7,code=0.3"``, ``"equal"``, ``"priority:math"``, ``"only:math"``, a mapping or K numbers.
            dtype: of the floating-point tensors; None: as the base stores them.
        """
        base = self.base.cast(dtype)
        gamma, equal = self.preference(preference), self.equal
        if torch.equal(gamma, equal):
            return base
        names = frozenset(self.varying)

        def read(name: str) -> Tensor:
            info = base.infos[name]
            wide = torch.float64 if info.dtype == torch.float64 else torch.float32
            tensor = self.base.copied(name, wide)
            moved = self.shift_(name, tensor, gamma, equal).to(info.dtype)
            check_finite(name, moved)
            return moved

        return base.replacing({name: base.infos[name] for name in base if name in names}, read)

    def added_parameters(self) -> int:
        """Numbers that are stored beside one model."""
        return sum(info.numel for info in self.stored()[0].infos.values())
