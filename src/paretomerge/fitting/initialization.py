"""The low-rank term of a fit before its first step: which matrices have one, and A, B and G."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paretomerge.decompositions import qr
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.fitting.closed_form import pareto_merging
from paretomerge.fitting.parameters import Learned, Target
from paretomerge.fitting.sampling import seed_of
from paretomerge.sets.factors import Factors, Structure
from paretomerge.sets.targets import choose_targets


def low_rank_targets(
    experts: Experts, targets: str | Sequence[str], rank: int, *, fuse_qkv: bool, structure: Structure = "tensor"
) -> list[Target]:
    """The targets that ``choose_targets`` names, each of rank r or of its own if that is smaller; r = 0: none.

    Raises:
        UserError: a negative rank, or no matrix that fits.
    """
    if rank < 0:
        raise UserError("rank must not be negative")
    chosen = choose_targets(experts.infos, experts.merged, targets, fuse_qkv=fuse_qkv) if rank else {}
    shapes = {name: (sum(n for _, n in m), experts.infos[m[0][0]].shape[1]) for name, m in chosen.items()}
    return [Target(name, m, shapes[name], min(rank, *shapes[name]), structure) for name, m in chosen.items()]


@torch.no_grad()
def start_low_rank_(
    learned: Learned, experts: Experts, start: str, scale: float, rank: int, targets: str | Sequence[str], *,
    fuse_qkv: bool, seed: int,
) -> None:  # fmt: skip
    """Fill in A, G and B: ``start`` is closed-form, orthonormal (its A and B, G = 0) or kaiming (A and B by chance, G = 0)."""
    if not learned.targets:
        return
    if start == "kaiming":  # all but the part that depends on γ, which is zero
        generator = torch.Generator().manual_seed(seed_of(seed, 0, 0))
        for target in learned.targets:
            factors = learned.of(target)
            for part in factors.parts().values():
                if part is not factors.varying:
                    part.copy_(nn.init.kaiming_uniform_(torch.empty(part.shape), a=5**0.5, generator=generator))
        return
    found = pareto_merging(experts, rank=rank, targets=targets, fuse_qkv=fuse_qkv, scale=scale, seed=seed)
    generator = torch.Generator().manual_seed(seed_of(seed, 0, 1))
    for target in learned.targets:
        factors, solution = learned.of(target), _widened(found.factors[target.name], target.rank, generator)
        assert solution.g is not None
        if target.structure != "outer-1":
            factors.a.copy_(solution.a)
        if target.structure != "outer-2":
            factors.b.copy_(solution.b)
        if start == "closed-form":  # the outer products hold the same term: A_k = A G_k, or B_k = G_k B
            of_tasks = {"tensor": solution.g, "outer-1": solution.a @ solution.g, "outer-2": solution.g @ solution.b}
            factors.varying.copy_(of_tasks[target.structure])


def _widened(solution: Factors, rank: int, generator: torch.Generator) -> Factors:
    """The same term with A and B of ``rank``: of LoRA experts the closed form needs no more than all their ranks together.

    What is added to A and B is orthonormal to them, so that a fit can move the cores there, which are zero.
    """
    assert solution.g is not None
    if solution.rank == rank:
        return solution
    g = solution.g.new_zeros(len(solution.g), rank, rank)
    g[:, : solution.rank, : solution.rank] = solution.g

    def completed(a: Tensor) -> Tensor:
        more = torch.randn(a.shape[0], rank - a.shape[1], generator=generator).to(a)
        return torch.cat([a, qr(torch.cat([a, more], 1))[0][:, a.shape[1] :]], 1)

    return replace(solution, a=completed(solution.a), g=g, b=completed(solution.b.T).T)
