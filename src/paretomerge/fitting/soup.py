"""Rewarded Soups and eq. 3 of Pareto Merging as sets: no fitting, only storage."""

from __future__ import annotations

import torch

from paretomerge.experts.experts import Experts
from paretomerge.fitting.closed_form import thin
from paretomerge.merges.linear import task_arithmetic
from paretomerge.sets.coefficients import Coefficients
from paretomerge.sets.factors import Factors
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.task_vectors import TaskVectors
from paretomerge.weights.adapted import Adapted
from paretomerge.weights.lazy import TensorInfo, Weights


def soup(experts: Experts, *, on: Weights | None = None, scale: float | None = None) -> ParetoSet:
    """θ(γ) = base + Kλ Σ_k (γ_k − 1/K) v_k; all K task vectors are stored.

    Of LoRA experts of ranks r_k they are stored as they came, thin: the same set in Pareto Merging's form, of rank Σ_k r_k
    or less, exactly. Every model in it is an adapter.

    Args:
        experts: base and experts.
        on: the merge at equal preference; None: Task Arithmetic with λ, which makes it θ₀ + Kλ Σ_k γ_k v_k.
        scale: Coefficient λ of the task vectors at the equal preference; null means 1/K for K experts (Rewarded Soups), where
            each one-hot preference gives that expert.

    Needs: no data.
    Stores: one model; K task vectors, each as large as a model.
    Paper: Ramé et al. 2023, arXiv 2306.04488.
    """
    n_tasks = len(experts)
    lam = 1 / n_tasks if scale is None else float(scale)
    if experts.factored and (on is None or isinstance(on, Adapted)):
        return _soup_of_adapters(experts, task_arithmetic(experts, scale=lam) if on is None else on, lam)
    first = {name: experts.aliases.get(name, name) for name in experts.infos}  # second copies of tied weights move along
    changed = frozenset(experts.merged)
    infos = {
        name: TensorInfo((n_tasks, *info.shape), info.dtype) for name, info in experts.infos.items() if first[name] in changed
    }
    task_vectors = Weights(infos, lambda name: experts.task_vectors(first[name]).to(infos[name].dtype))
    return ParetoSet(
        experts.tasks, task_arithmetic(experts, scale=lam) if on is None else on,
        coefficients=Coefficients.proportional(lam, task_vectors.infos), task_vectors=TaskVectors(task_vectors),
        settings={"scale": lam},
    )  # fmt: skip


def _soup_of_adapters(experts: Experts, base: Weights, lam: float) -> ParetoSet:
    """The same set with the task vectors as they came: v_k = L E_k R, L and R all factors side by side, E_k choosing k's.

    Then θ(γ) = base + L (Kλ Σ_k (γ_k − 1/K) E_k) R, exactly, whatever the ranks.
    """
    factors = {}
    for name in experts.merged:
        members = ((name, experts.infos[name].shape[0]),)
        found = thin(experts, members)
        assert found is not None
        cores = torch.zeros(len(experts), found.rank, found.rank)
        for core, own in zip(cores, found.columns(), strict=True):
            core[own, own] = 1
        factors[name] = Factors(found.left, len(experts) * lam * (cores - cores.mean(0)), found.right, members)
    return ParetoSet(experts.tasks, base, factors=factors, settings={"scale": lam, "fitted": "soup"})
