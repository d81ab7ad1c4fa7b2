"""What a fit learns, φ, and the maps between φ and the weights: coefficients of the task vectors, and a low-rank term.

    θ_l(γ) = θ₀_l + Σ_k c_lk(γ) v_lk + A_l (Σ_k γ_k G_lk) B_l

with c = λ this is Pareto Merging (eqs 7 and 8). θ is linear in every dense tensor, so a dense gradient g = ∂S/∂θ is pulled
back at once and forgotten:

    ∂S/∂c_lk = ⟨v_lk, g_l⟩,   ∂S/∂A = g Bᵀ Cᵀ,   ∂S/∂B = Cᵀ Aᵀ g,   ∂S/∂G_k = γ_k Aᵀ g Bᵀ,   with C = Σ_k γ_k G_k.

φ is one flat vector, of which the parameters of c, and A, B and G, are views. ``sets.coefficients`` has the functions c(γ) and
their gradients, ``sets.factors`` the low-rank term and its other structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretomerge.sets.coefficients import Coefficients, Kind, coefficient_shapes
from paretomerge.sets.factors import Factors, Structure, part_shapes
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import Vectors, added, inner, number

Members = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Target:
    """One low-rank term: its member matrices (name, rows), its shape (m, n), rank and structure."""

    name: str
    members: Members
    shape: tuple[int, int]
    rank: int
    structure: Structure = "tensor"


class Learned:
    """φ, the base and the task vectors: builds θ(γ) and pulls gradients back.

    Args:
        base: name -> θ₀, fp32 on the device of the fit.
        task_vectors: name -> (K, numel), stacked; fp32, or bf16 to halve the memory; or thin products, in fp32; none for a
            base that stays as it is.
        targets: of the low-rank part; none for AdaMerging alone.
        task_wise: the same coefficients for all tensors.
        kind: which function c(γ) is.
        groups: group's name -> tensors that have the same coefficients; None: each tensor has its own.
        n_tasks: K; None: that of the task vectors.
    """

    def __init__(
        self, base: Mapping[str, Tensor], task_vectors: Mapping[str, Vectors], targets: Sequence[Target], *,
        task_wise: bool = False, kind: Kind = "constant", groups: Mapping[str, Sequence[str]] | None = None,
        n_tasks: int | None = None,
    ) -> None:  # fmt: skip
        self.base = dict(base)
        self.task_vectors = dict(task_vectors)
        self.targets = tuple(targets)
        self.n_tasks = n_tasks or number(next(iter(self.task_vectors.values())))
        members = [name for target in self.targets for name, _ in target.members]
        self.varying = tuple(dict.fromkeys([*self.task_vectors, *members]))
        first = next(iter(self.base.values()))
        if task_wise:
            groups = {"all": tuple(self.task_vectors)}
        groups = groups or {name: (name,) for name in self.task_vectors}
        shapes = coefficient_shapes(kind, len(groups), self.n_tasks)
        parts_of_c = list(shapes)
        for target in self.targets:
            parts = part_shapes(target.structure, self.n_tasks, target.shape, target.rank)
            shapes |= {f"{target.name}.{part}": shape for part, shape in parts.items()}
        self._slots: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        end = 0
        for name, shape in shapes.items():
            size = torch.Size(shape).numel()
            self._slots[name] = end, end + size, shape
            end += size
        self.phi = torch.zeros(end, device=first.device, dtype=first.dtype)
        self.coefficients = Coefficients(
            kind, {part: self.view(part) for part in parts_of_c}, {g: tuple(n) for g, n in groups.items()}
        )

    def view(self, name: str, of: Tensor | None = None) -> Tensor:
        """A part of φ, or of a vector like it: of c (``"lambda"`` or ``"M"`` …), ``"<target>.A"``, ``".G"``, ``".B"``."""
        start, stop, shape = self._slots[name]
        return (self.phi if of is None else of)[start:stop].view(shape)

    def parts(self) -> list[str]:
        """Names for ``view``."""
        return list(self._slots)

    @torch.no_grad()
    def build_(self, weights: Mapping[str, Tensor], gamma: Tensor) -> None:
        """Write θ(γ) into ``weights`` (name -> tensor of the base's shape, any float dtype), in place."""
        c, row = self.coefficients.at(gamma), self.coefficients.row
        low_rank = self.low_rank(gamma)
        for name in self.varying:
            theta = weights[name].detach()
            in_place = theta.dtype == self.phi.dtype and theta.is_contiguous()
            if not in_place:
                theta = torch.empty_like(self.base[name], memory_format=torch.contiguous_format)
            if name in self.task_vectors:
                added(self.base[name], self.task_vectors[name], c[row[name]], theta)
            else:
                theta.copy_(self.base[name])
            if name in low_rank:
                low_rank[name].add_to_(theta)
            if not in_place:
                weights[name].copy_(theta)

    @torch.no_grad()
    def pull_back(self, gradients: Mapping[str, Tensor | None], gamma: Tensor) -> Tensor:
        """∂S/∂φ, like φ, from dense gradients ∂S/∂θ (name -> tensor; None counts as zero) at preference γ."""
        small = torch.zeros_like(self.phi)
        row = self.coefficients.row
        d = torch.zeros(len(self.coefficients.groups), self.n_tasks).to(small)
        for name in self.task_vectors:
            if (dense := gradients.get(name)) is not None:
                d[row[name]] += inner(self.task_vectors[name], dense.to(small.dtype))
        for part, gradient in self.coefficients.pulled_back(gamma, d).items():
            self.view(part, small).copy_(gradient)
        for target in self.targets:
            rows = [gradients.get(name) for name, _ in target.members]
            if all(g is None for g in rows):
                continue
            parts = [
                torch.zeros(n_rows, target.shape[1]).to(small) if r is None else r.to(small.dtype)
                for r, (_, n_rows) in zip(rows, target.members, strict=True)
            ]
            g = parts[0] if len(parts) == 1 else torch.cat(parts)
            left, right = self.of(target).pair(gamma)
            self._chain(target, gamma, g @ right.T, left.T @ g, small)
        return small

    def of(self, target: Target) -> Factors:
        """The factors of a target, as views of φ."""
        parts = {part: self.view(f"{target.name}.{part}") for part in "AGB" if f"{target.name}.{part}" in self._slots}
        return Factors(parts["A"], parts.get("G"), parts["B"], target.members)

    @torch.no_grad()
    def penalty(self, gamma: Tensor) -> tuple[float, Tensor]:
        """R = Σ_targets ‖L R‖² (METHOD: the paper's formula is lost) and its gradient, like φ, from r × r matrices."""
        small = torch.zeros_like(self.phi)
        total = 0.0
        for target in self.targets:
            left, right = self.of(target).pair(gamma)
            l_l, r_r = left.T @ left, right @ right.T
            total += float((l_l * r_r.T).sum())
            self._chain(target, gamma, 2 * left @ r_r, 2 * l_l @ right, small)
        return total, small

    def _chain(self, target: Target, gamma: Tensor, d_left: Tensor, d_right: Tensor, small: Tensor) -> None:
        """Write the gradients of a target's parts into ``small``."""
        for part, gradient in self.of(target).pulled_back(gamma, d_left, d_right).items():
            self.view(f"{target.name}.{part}", small).copy_(gradient)

    @torch.no_grad()
    def built(self, gamma: Tensor) -> dict[str, Tensor]:
        """θ(γ) in memory of its own: name -> tensor on the processor."""
        weights = {name: torch.empty_like(self.base[name]) for name in self.varying}
        self.build_(weights, gamma)
        return {name: tensor.cpu() for name, tensor in weights.items()}

    @torch.no_grad()
    def steering(self, aliases: Mapping[str, str]) -> Coefficients:
        """c(γ) as a set stores it; second copies of tied tensors (``aliases``: copy -> first) have the row of the first."""
        copies = {first: tuple(copy for copy, of in aliases.items() if of == first) for first in aliases.values()}
        groups = {g: tuple(n for name in names for n in (name, *copies.get(name, ())))
                  for g, names in self.coefficients.groups.items()}  # fmt: skip
        parts = {part: tensor.float().cpu().clone() for part, tensor in self.coefficients.parts.items()}
        return Coefficients(self.coefficients.kind, parts, groups)

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """The low-rank part as a set stores it."""

        found = {}
        for target in self.targets:
            parts = {part: tensor.float().cpu().clone() for part, tensor in self.of(target).parts().items()}
            found[target.name] = Factors(parts["A"], parts.get("G"), parts["B"], target.members)
        return found

    def low_rank(self, gamma: Tensor) -> dict[str, LowRank]:
        """L (m, r) and R (r, n) of each member of a target at γ."""
        terms: dict[str, LowRank] = {}
        for target in self.targets:
            factors = self.of(target)
            terms |= factors.split(factors.pair(gamma))
        return terms
