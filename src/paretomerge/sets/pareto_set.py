"""The one abstraction: a Pareto set, γ -> θ(γ)."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paretomerge import preferences
from paretomerge.sets.coefficients import Coefficients, Kind, Shared
from paretomerge.sets.factors import Factors, restored_factors, stored_factors
from paretomerge.sets.task_vectors import TaskVectors
from paretomerge.weights.finite import check_finite
from paretomerge.weights.lazy import Weights
from paretomerge.weights.low_rank import LowRank, side_by_side

Preference = str | Mapping[str, float] | Sequence[float] | Tensor

METHODS: dict[Kind | None, str] = {
    "proportional": "soup", None: "pareto-merging", "routed": "pwe-moe", "affine": "steered"
}  # fmt: skip
"""The function c(γ) of a set -> its name on the command line and in a front's folder."""
_WITH_TARGETS: tuple[Kind | None, ...] = (None, "affine")
"""Those whose folder says which matrices have a low-rank term."""


class Shift:
    """θ(to) − θ(since) of a set: what depends on the two preferences is computed once, then tensors are moved one by one."""

    def add_(self, name: str, tensor: Tensor) -> Tensor:
        """Add the difference of tensor ``name`` to ``tensor``, in place: fp32 or fp64, on any device."""
        raise NotImplementedError

    def pair(self, name: str) -> LowRank | None:
        """The difference of a matrix that varies, as a thin product in fp32; None: the set keeps it whole."""
        return None

    def on_head(self, task: str, head: Weights) -> Weights:
        """A task's own tensors, ``head``, as they are at ``to``: a set may move them, too."""
        return head


class ParetoSet:
    """A map from a preference over K tasks to merged weights, for each tensor

        θ(γ) = base + Σ_n (c_n(γ) − c_n(1/K)) v_n + A (Σ_k (γ_k − 1/K) G_k) B,   γ_k ≥ 0, Σ_k γ_k = 1.

    ``base`` holds the weights at equal preference, so it is a model by itself, and the other terms vanish there *exactly*: a
    set learned with terms that do not is rewritten when it is built, by adding their values to the base.

        soup             c = Kλ γ                       Rewarded Soups (Rame et al. 2023); with λ and any base eq. 3 of
                                                        Pareto Merging, the minimiser of Σ_k γ_k ‖θ − (θ₀ + Kλ v_k)‖²
        pareto-merging   no c, A (Σ_k γ_k G_k) B        Chen & Kwok 2025, eqs 7 and 8: the difference to the base is a LoRA
                                                        of rank r, lora_B = A G_γ, lora_A = B
        pwe-moe          c = W₂ relu(W₁ γ + b₁) + b₂    Tang et al. 2024: one router for each module, the rest constant
        steered          c = M γ + b, and A, G, B       M = Kλ I, b = 0, G = 0 is the soup, M = 0 Pareto Merging

    ``Searched`` has another c(γ), ``Corrected`` moves the last features of any other set. A set of one's own hands over its
    c(γ) as ``Shared``, or overrides ``varying`` and ``shift``; ``docs/extend.md`` has one.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        base: Weights,
        *,
        coefficients: Coefficients | Shared | None = None,
        task_vectors: TaskVectors | None = None,
        factors: Mapping[str, Factors] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Set it up.

        Args:
            tasks: K names.
            base: the model at equal preference.
            coefficients: c(γ) of every tensor that has task vectors; None: there are none.
            task_vectors: the v_n.
            factors: target's name -> A, G and B of its low-rank term.
            settings: of the fit, as JSON.
        """
        self.tasks = tuple(tasks)
        self.base = base
        self.coefficients = coefficients
        self.task_vectors = task_vectors or TaskVectors()
        self.factors = dict(factors or {})
        self.settings = dict(settings or {})
        self._rows: dict[str, tuple[Factors, slice]] = {}
        for target in self.factors.values():
            start = 0
            for name, rows in target.members:
                self._rows[name] = target, slice(start, start := start + rows)
        self._varying = dict.fromkeys([*self.task_vectors.names, *self._rows])

    @property
    def method(self) -> str:
        """Its name on the command line and in a front's folder."""
        return METHODS[self.coefficients.kind if isinstance(self.coefficients, Coefficients) else None]

    @property
    def varying(self) -> Collection[str]:
        """Names of the tensors that depend on the preference."""
        return self._varying

    @property
    def low_rank(self) -> bool:
        """Whether every tensor that varies moves by a thin product, as a LoRA does."""
        return not self.task_vectors.whole

    def shift(self, to: Tensor, since: Tensor | None = None) -> Shift:
        """θ(to) − θ(since), to be applied tensor by tensor; preferences are (K,) in fp64, None is equal preference."""
        return _Linear(self, to, self.equal if since is None else since)

    def on_head(self, task: str, head: Weights, preference: Preference) -> Weights:
        """A task's own tensors as they are at a preference: a set may move them, too."""
        return self.shift(self.preference(preference)).on_head(task, head) if self.varying_of_head(task) else head

    def varying_of_head(self, task: str) -> Collection[str]:
        """Names of the task's own tensors that depend on the preference."""
        return ()

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        """What a front folder keeps beside the base: tensors, and facts for its JSON file."""
        kind = self.coefficients.kind if isinstance(self.coefficients, Coefficients) else None
        stored, facts = self.task_vectors.stored(), dict[str, Any]()
        parts = [self.coefficients.stored()] if isinstance(self.coefficients, Coefficients) else []
        parts += [stored_factors(self.factors, _prefix(kind))] if kind in _WITH_TARGETS else []
        for tensors, of_part in parts:
            stored, facts = stored.replacing(tensors.infos, tensors.__getitem__), facts | of_part
        return stored, facts

    def preference(self, preference: Preference) -> Tensor:
        """γ as a (K,) tensor in fp64, from any form that ``preferences.parse`` reads; such a tensor is taken as it is."""
        if isinstance(preference, Tensor):
            fits = preference.dtype == torch.float64 and preference.shape == (len(self.tasks),)
            shares = preference.tolist()
            if fits and min(shares) >= 0 and abs(math.fsum(shares) - 1) <= 2 * sys.float_info.epsilon:
                return preference.cpu()
            preference = shares
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
        gamma = self.preference(preference)
        if torch.equal(gamma, self.equal):
            return base
        names, shift = frozenset(self.varying), self.shift(gamma)

        def read(name: str) -> Tensor:
            info = base.infos[name]
            wide = torch.float64 if info.dtype == torch.float64 else torch.float32
            moved = shift.add_(name, self.base.copied(name, wide)).to(info.dtype)
            check_finite(name, moved)
            return moved

        return base.replacing({name: base.infos[name] for name in base if name in names}, read)

    def added_parameters(self) -> int:
        """Numbers that are stored beside one model."""
        return sum(info.numel for info in self.stored()[0].infos.values())


def restored(
    kind: Kind | None,
    tasks: Sequence[str],
    base: Weights,
    settings: Mapping[str, Any],
    tensors: Weights,
    facts: Mapping[str, Any],
) -> ParetoSet:
    """The set with this kind of c(γ) that ``ParetoSet.stored`` describes.

    Raises:
        ValueError, LookupError: tensors or facts that do not fit together, or not this base.
    """
    vectors = TaskVectors() if kind is None else TaskVectors.restored(tensors, len(tasks), base.infos)
    coefficients = None if kind is None else Coefficients.restored(kind, tensors, facts, len(tasks), vectors.names)
    targets = facts["targets"] if kind in _WITH_TARGETS else {}
    factors = restored_factors(tensors, targets, _prefix(kind), len(tasks), base.infos)
    return ParetoSet(tasks, base, coefficients=coefficients, task_vectors=vectors, factors=factors, settings=settings)


def _prefix(kind: Kind | None) -> str:
    """Before the names of A, G and B in a front's file."""
    return "low_rank." if kind else ""


class _Linear(Shift):
    """The difference of two points of a set: coefficients of task vectors, and low-rank terms."""

    def __init__(self, of: ParetoSet, to: Tensor, since: Tensor) -> None:
        self._set = of
        self._d = to - since
        self._row: Mapping[str, int] = of.coefficients.row if of.coefficients else {}
        self._c = of.coefficients.between(to, since) if of.coefficients else self._d[:0]
        self._last: tuple[Factors, LowRank] | None = None

    def add_(self, name: str, tensor: Tensor) -> Tensor:
        if name in self._row:
            self._set.task_vectors.add_(name, tensor, self._c[self._row[name]])
        low_rank = self._low_rank(name)
        return low_rank.add_to_(tensor) if low_rank else tensor

    def pair(self, name: str) -> LowRank | None:
        low_rank = self._low_rank(name)
        if name not in self._row:
            return low_rank
        vectors = self._set.task_vectors.pair(name, self._c[self._row[name]])
        return side_by_side([vectors, low_rank]) if vectors and low_rank else vectors

    def _low_rank(self, name: str) -> LowRank | None:
        """A C (rows, r) and B (r, in) of a member of a target; the members of one follow each other, and C is made once."""
        target, rows = self._set._rows.get(name, (None, slice(0)))
        if target is None:
            return None
        last = self._last
        if last is None or last[0] is not target:
            self._last = last = target, target.mixed(self._d)
        return last[1].rows(rows)
