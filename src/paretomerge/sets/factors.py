"""The low-rank term of one target, L(γ) R(γ), in three structures that are linear in γ.

    tensor    L = A C,           R = B,           C = Σ_k γ_k G_k       Pareto Merging, eq. 8
    outer-1   L = Σ_k γ_k A_k,   R = B            Σ_i (P_i γ) ⊗ b_i     its appendix E, variation 1
    outer-2   L = A,             R = Σ_k γ_k B_k  Σ_i a_i ⊗ (Q_i γ)     variation 2

The formulas of appendix E are lost in the text that we have; these are METHOD's reading of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from paretomerge.weights.adapted import Adapted
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.low_rank import LowRank

Structure = Literal["tensor", "outer-1", "outer-2"]


def part_shapes(structure: Structure, n_tasks: int, shape: tuple[int, int], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parts A, G (tensor only) and B for a target of ``shape`` (m, n)."""
    (m, n), r = shape, rank
    if structure == "tensor":
        return {"A": (m, r), "G": (n_tasks, r, r), "B": (r, n)}
    return {"A": (n_tasks, m, r), "B": (r, n)} if structure == "outer-1" else {"A": (m, r), "B": (n_tasks, r, n)}


@dataclass(frozen=True)
class Factors:
    """A, G and B of one target: one matrix (m, n), or several stacked by their rows (q, k and v).

    A (m, r), G (K, r, r), B (r, n); without G, A is (K, m, r) or B is (K, r, n). ``members`` names the matrices and how many
    rows of L belong to each, in order.
    """

    a: Tensor
    g: Tensor | None
    b: Tensor
    members: tuple[tuple[str, int], ...]

    @property
    def rank(self) -> int:
        return self.a.shape[-1]

    @property
    def structure(self) -> Structure:
        return "tensor" if self.g is not None else "outer-1" if self.a.ndim == 3 else "outer-2"

    @property
    def varying(self) -> Tensor:
        """The part that is summed over the tasks: G, A or B, (K, …)."""
        return self.g if self.g is not None else self.a if self.a.ndim == 3 else self.b

    def parts(self) -> dict[str, Tensor]:
        """A, G where there is one, and B."""
        return {"A": self.a, **({} if self.g is None else {"G": self.g}), "B": self.b}

    def of(self, part: Tensor) -> Factors:
        """The same with another varying part."""
        if self.g is not None:
            return replace(self, g=part)
        return replace(self, a=part) if self.a.ndim == 3 else replace(self, b=part)

    def fits(self, n_tasks: int, infos: Mapping[str, TensorInfo]) -> bool:
        """Whether the shapes go together, and with the member matrices."""
        m, n = sum(rows for _, rows in self.members), self.b.shape[-1]
        expected = part_shapes(self.structure, n_tasks, (m, n), self.rank)
        return {name: tuple(part.shape) for name, part in self.parts().items()} == expected and all(
            name in infos and infos[name].shape == (rows, n) for name, rows in self.members
        )

    def pair(self, d: Tensor) -> LowRank:
        """L (m, r) and R (r, n) at the coefficients d (K,): a preference, or a difference of two."""
        mixed = torch.tensordot(d.to(self.varying), self.varying, dims=1)
        if self.g is not None:
            return LowRank(self.a @ mixed, self.b)
        return LowRank(mixed, self.b) if self.a.ndim == 3 else LowRank(self.a, mixed)

    def mixed(self, d: Tensor) -> LowRank:
        """The same in fp32, mixed in fp64; what does not vary is not, where that would only cost time."""
        a, b = (self.a.double(), self.b) if self.structure != "outer-2" else (self.a, self.b.double())
        return Factors(a, None if self.g is None else self.g.double(), b, ()).pair(d).fp32()

    def split(self, product: LowRank) -> dict[str, LowRank]:
        """Each member's rows of L R."""
        parts, start = {}, 0
        for name, rows in self.members:
            parts[name] = product.rows(slice(start, start := start + rows))
        return parts

    def pulled_back(self, d: Tensor, d_left: Tensor, d_right: Tensor) -> dict[str, Tensor]:
        """Gradients of A, G and B from those of L and R at the coefficients d."""
        weights = d.to(self.varying).view(-1, 1, 1)
        if self.g is not None:
            core = torch.tensordot(d.to(self.g), self.g, dims=1)
            return {"A": d_left @ core.T, "G": weights * (self.a.T @ d_left), "B": d_right}
        if self.a.ndim == 3:
            return {"A": weights * d_left, "B": d_right}
        return {"A": d_left, "B": weights * d_right}


def folded(base: Weights, factors: Mapping[str, Factors]) -> tuple[Weights, dict[str, Factors]]:
    """Rewrite base + A (Σ_k γ_k G_k) B so that the base is the equal-preference model and Σ_k G_k = 0.

    With Ḡ the mean of the G_k: base' = base + A Ḡ B and G'_k = G_k − Ḡ. Nothing changes at any γ. Of the outer products it
    is the A_k or the B_k that are centred.
    """
    centred: dict[str, Factors] = {}
    additions: dict[str, LowRank] = {}
    for name, target in factors.items():
        wide = Factors(target.a.double(), None if target.g is None else target.g.double(), target.b.double(), ())
        means = target.varying.new_full((len(target.varying),), 1 / len(target.varying)).double()
        additions |= target.split(wide.pair(means))
        centred[name] = target.of((wide.varying - wide.varying.mean(0)).to(target.varying.dtype))

    if isinstance(base, Adapted):
        return base.plus(additions, lambda name: additions[name].fp32()), centred

    def read(name: str) -> Tensor:
        tensor = base[name]
        left, right = additions[name]
        return (tensor.double() + left @ right).to(tensor.dtype)

    return base.replacing({name: base.infos[name] for name in additions}, read), centred


def stored_factors(factors: Mapping[str, Factors], prefix: str) -> tuple[Weights, dict[str, Any]]:
    """What a front folder keeps: A, G and B of each target, and its members."""
    tensors = {f"{prefix}{name}.{part}": t for name, target in factors.items() for part, t in target.parts().items()}
    return Weights.of(tensors), {"targets": {name: dict(target.members) for name, target in factors.items()}}


def restored_factors(
    tensors: Weights, targets: Mapping[str, Mapping[str, int]], prefix: str, n_tasks: int, infos: Mapping[str, TensorInfo]
) -> dict[str, Factors]:
    """What ``stored_factors`` describes, among other tensors; ``infos`` are the base's.

    Raises:
        ValueError, KeyError: factors that do not fit together, or not this base, or that are not there.
    """
    factors = {}
    for name, members in targets.items():
        a, b = tensors[f"{prefix}{name}.A"], tensors[f"{prefix}{name}.B"]
        rows = tuple((member, int(count)) for member, count in members.items())
        factors[name] = Factors(a, tensors.get(f"{prefix}{name}.G"), b, rows)
        if not factors[name].fits(n_tasks, infos):
            raise ValueError(f"{name}: its factors do not fit together, or not this base")
    return factors
