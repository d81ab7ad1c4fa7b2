"""Pareto Merging's set: one base and a low-rank tensor per target matrix."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from paretomerge.sets.factors import Factors
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.adapted import Adapted, Pair
from paretomerge.weights.lazy import TensorInfo, Weights


class LowRank(ParetoSet):
    """W(γ) = W_base + A (Σ_k (γ_k − 1/K) G_k) B for each target matrix (Chen & Kwok 2025, eqs 7 and 8).

    The paper writes Σ_k γ_k G_k; its value at equal preference, A (Σ_k G_k / K) B, is part of W_base here, so the base is
    the equal-preference model. At every γ the difference to the base is a LoRA of rank r: lora_B = A G_γ, lora_A = B.
    The outer products of the paper's ablation are other ``Factors`` of the same set.
    """

    method = "pareto-merging"

    def __init__(
        self,
        tasks: Sequence[str],
        base: Weights,
        factors: Mapping[str, Factors],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``factors``: target's name -> its factors."""
        super().__init__(tasks, base, settings)
        self.factors = dict(factors)
        self._rows: dict[str, tuple[Factors, slice]] = {}
        for target in self.factors.values():
            start = 0
            for name, rows in target.members:
                self._rows[name] = target, slice(start, start := start + rows)

    @property
    def varying(self) -> Collection[str]:
        return self._rows.keys()

    def low_rank(self, name: str, to: Tensor, since: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(A G_γ (rows, r), B (r, in)), fp32: the factors of tensor ``name`` at ``to`` less those at ``since`` (the base)."""
        target, rows = self._rows[name]
        # what does not vary is not mixed, so fp64 would only cost time there: half of the factors' at every switch
        a, b = (target.a.double(), target.b) if target.structure != "outer-2" else (target.a, target.b.double())
        wide = Factors(a, None if target.g is None else target.g.double(), b, ())
        left, right = wide.pair(to - (self.equal if since is None else since))
        return left[rows].float(), right.float()

    def pair(self, name: str, gamma: Tensor) -> Pair:
        return Pair(*self.low_rank(name, gamma))

    def shift_(self, name: str, tensor: Tensor, to: Tensor, since: Tensor) -> Tensor:
        left, right = (factor.to(tensor.device, tensor.dtype) for factor in self.low_rank(name, to, since))
        return tensor.addmm_(left, right)

    def stored(self) -> tuple[Weights, dict[str, Any]]:
        tensors = {f"{name}.{part}": tensor for name, target in self.factors.items() for part, tensor in target.parts().items()}
        return Weights.of(tensors), {"targets": {name: dict(t.members) for name, t in self.factors.items()}}

    @classmethod
    def restored(
        cls,
        tasks: Sequence[str],
        base: Weights,
        settings: Mapping[str, Any],
        tensors: Weights,
        facts: Mapping[str, Any],
    ) -> LowRank:
        factors = {}
        for name, members in facts["targets"].items():
            rows = tuple((member, int(count)) for member, count in members.items())
            g = tensors.get(f"{name}.G")
            factors[name] = Factors(tensors[f"{name}.A"], g, tensors[f"{name}.B"], rows)
            if not factors[name].fits(len(tasks), base.infos):
                raise ValueError(f"{name}: its factors do not fit together, or not this base")
        return cls(tasks, base, factors, settings)


def folded(base: Weights, factors: Mapping[str, Factors]) -> tuple[Weights, dict[str, Factors]]:
    """Rewrite base + A (Σ_k γ_k G_k) B so that the base is the equal-preference model and Σ_k G_k = 0.

    With Ḡ the mean of the G_k: base' = base + A Ḡ B and G'_k = G_k − Ḡ. Nothing changes at any γ. Of the outer products it
    is the A_k or the B_k that are centred.
    """
    centred: dict[str, Factors] = {}
    additions: dict[str, tuple[Tensor, Tensor]] = {}
    for name, target in factors.items():
        wide = Factors(target.a.double(), None if target.g is None else target.g.double(), target.b.double(), ())
        left, right = wide.pair(target.varying.new_full((len(target.varying),), 1 / len(target.varying)).double())
        centred[name] = target.of((wide.varying - wide.varying.mean(0)).to(target.varying.dtype))
        start = 0
        for member, rows in target.members:
            additions[member] = left[start : start + rows], right
            start += rows

    if isinstance(base, Adapted):
        return base.plus(additions, lambda name: Pair(*(factor.float() for factor in additions[name]))), centred

    def read(name: str) -> Tensor:
        tensor = base[name]
        left, right = additions[name]
        return (tensor.double() + left @ right).to(tensor.dtype)

    infos: dict[str, TensorInfo] = {name: base.infos[name] for name in additions}
    return base.replacing(infos, read), centred
