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

    Needs: no data.
    Stores: one model; K task vectors, each as large as a model.
    Paper: Ramé et al. 2023, arXiv 2306.04488.
    """
    n_tasks = len(experts)
    lam = 1 / n_tasks if scale is None else float(scale)
    first = {name: experts.aliases.get(name, name) for name in experts.infos}  # second copies of tied weights move along
    changed = frozenset(experts.merged)
    infos = {
        name: TensorInfo((n_tasks, *info.shape), info.dtype) for name, info in experts.infos.items() if first[name] in changed
    }
    task_vectors = Weights(infos, lambda name: experts.task_vectors(first[name]).to(infos[name].dtype))
    return Soup(experts.tasks, task_arithmetic(experts, scale=lam) if on is None else on, task_vectors, lam, {"scale": lam})
