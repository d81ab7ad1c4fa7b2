"""Sums of task vectors: weight averaging and Task Arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.streaming import PerTask, by_rows, per_task
from paretomerge.weights.adapted import Adapted
from paretomerge.weights.lazy import Weights
from paretomerge.weights.low_rank import LowRank, side_by_side
from paretomerge.weights.vectors import weighted_sum


def average(experts: Experts, *, weights: PerTask = 1.0, normalize: bool = True) -> Weights:
    """Weight averaging, a model soup (Wortsman et al. 2022): Σ_k w_k θ_k / Σ_k w_k.

    The base only names the tensors. With ``normalize=False`` the sum is not divided (mergekit's option of that name).

    Args:
        experts: base and experts.
        weights: Weight of each expert. One number for all tasks, or one per task.
        normalize: Whether the weights are divided by their sum.

    Needs: no data.
    Stores: one model.
    Paper: Wortsman et al. 2022, arXiv 2203.05482.
    """
    w = per_task(weights, experts.tasks, "weights")
    total = float(w.sum())
    if normalize and total == 0:
        raise UserError("weights: they sum to zero, so there is no average")
    w, of_base = (w / total, 1.0) if normalize else (w, total)
    if of_base == 1.0 and experts.factored:
        return sum_of_adapters(experts, w.flatten().tolist())
    return by_rows(experts, lambda name: lambda base, v: weighted_sum(v, w).add_(base, alpha=of_base))


def task_arithmetic(experts: Experts, *, scale: PerTask = 0.3) -> Weights:
    """Task Arithmetic (Ilharco et al. 2023): θ₀ + Σ_k λ_k v_k.

    Args:
        experts: base and experts.
        scale: Coefficient λ of each task vector; the paper chooses 0.3 for eight tasks. One number for all tasks, or one per
            task.

    Needs: no data.
    Stores: one model.
    Paper: Ilharco et al. 2023, arXiv 2212.04089.
    """
    lambdas = per_task(scale, experts.tasks, "scale")
    if experts.factored:
        return sum_of_adapters(experts, lambdas.flatten().tolist())
    return by_rows(experts, lambda name: lambda base, v: weighted_sum(v, lambdas).add_(base))


def sum_of_adapters(experts: Experts, w: Sequence[float] | Callable[[str], Sequence[float]]) -> Adapted:
    """θ₀ + Σ_k w_k L_k R_k of experts that are all LoRA adapters: no task vector becomes a matrix.

    ``w``: K numbers, or a function that gives those of a tensor.
    """

    def pair(name: str) -> LowRank:
        found = experts.pairs(name)
        assert found is not None
        if not all(product.finite() for product in found):
            raise experts.not_finite(name)
        return side_by_side(found, w(name) if callable(w) else w)

    return Adapted(experts.base, dict(experts.infos), experts.merged, pair, experts.not_finite)
