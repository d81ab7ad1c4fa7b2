"""Rewarded Soups and eq. 3 of Pareto Merging as sets: no fitting, only storage."""

from __future__ import annotations

from paretomerge.merges.linear import task_arithmetic
from paretomerge.sets.soup import Soup
from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import TensorInfo, Weights


def soup(experts: Experts, *, on: Weights | None = None, scale: float | None = None) -> Soup:
    """θ(γ) = base + Kλ Σ_k (γ_k − 1/K) v_k; all K task vectors are stored.

    Args:
        experts: base and experts.
        on: the merge at equal preference; None: Task Arithmetic with λ, which makes it θ₀ + Kλ Σ_k γ_k v_k.
        scale: λ; None: 1/K, Rewarded Soups (Rame et al. 2023), whose one-hot preferences are the experts.
    """
    n_tasks = len(experts)
    lam = 1 / n_tasks if scale is None else float(scale)
    infos = {name: TensorInfo((n_tasks, *experts.infos[name].shape), experts.infos[name].dtype) for name in experts.merged}
    task_vectors = Weights(infos, lambda name: experts.task_vectors(name).to(infos[name].dtype))
    return Soup(experts.tasks, task_arithmetic(experts, scale=lam) if on is None else on, task_vectors, lam, {"scale": lam})
