"""Pareto Merging and AdaMerging fitted on inputs: λ, A, B and G learned together, mostly without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from paretomerge.data.tasks import Task
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.fitting.driver import Fit
from paretomerge.fitting.initialization import low_rank_targets, start_low_rank_
from paretomerge.fitting.options import FitRun, TrainingOptions
from paretomerge.fitting.parameters import Learned
from paretomerge.fitting.react import react
from paretomerge.fitting.routed import PWE_PAPER, pwe_moe
from paretomerge.fitting.sampling import say_coverage
from paretomerge.fitting.steered import steered
from paretomerge.fitting.training import training
from paretomerge.merges.linear import sum_of_adapters
from paretomerge.merges.streaming import completed
from paretomerge.merges.ties import trimmed_and_elected
from paretomerge.options import Without, settings_of
from paretomerge.sets.factors import folded
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.lazy import Weights
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import added

PAPER: dict[str, Any] = {
    "objective": "entropy", "targets": "attention", "rank": 16, "start": "kaiming", "scale": 0.3, "batch_size": 32, "lr": 1e-3,
    "schedule": "constant", "alpha": 0.1, "equal_every": 0, "scalarization": "smooth-tchebycheff", "beta": 0.1,
    "skip_below": 0.0,
}  # fmt: skip
"""The settings of the paper's experiments (Chen & Kwok 2025, app. B; μ and the number of steps are not given there)."""

OF_COEFFICIENTS = ("coefficients", "ties", "store_task_vectors")
"""Options about λ and the task vectors: a fit on a base merge that stays as it is has neither."""


def pareto_merging_on_data(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    on: Weights | None = None,
    targets: str | Sequence[str] = "all",
    fuse_qkv: bool = False,
    rank: int = 16,
    structure: Literal["tensor", "outer-1", "outer-2"] = "tensor",
    start: Literal["closed-form", "orthonormal", "kaiming"] = "closed-form",
    scale: float | None = None,
    coefficients: Literal["layer", "task", "fixed"] = "layer",
    ties: float | None = None,
    store_task_vectors: Literal["float32", "bfloat16"] = "float32",
    options: TrainingOptions = TrainingOptions(),
    run: FitRun = FitRun(),
) -> ParetoSet:
    """W(γ) = θ₀ + Σ_k λ_k v_k + A (Σ_k γ_k G_k) B with λ, A, B and G learned (Chen & Kwok 2025, eqs 5, 7, 8 and 11).

    The defaults differ from the paper's (``preset=paper``): distillation from the experts instead of entropy, a start from the
    closed form, every matrix a target, linear scalarisation. They gave far better models on held-out inputs.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        on: a base merge W_base that stays as it is, instead of θ₀ + Σ_k λ_k v_k: only A, B and G are learned, and no task
            vector is kept in memory.
        targets: Matrices that get a low-rank term: all, attention, or globs of tensor names.
        fuse_qkv: Use one low-rank term for the query, key and value matrices of a block together.
        rank: Rank r of the low-rank terms; 0 uses none.
        structure: How the low-rank term depends on the preference. tensor: through the cores G, as in the paper. outer-1 and
            outer-2: through A or through B, as in the paper's ablation.
        start: Low-rank term before the first step. closed-form: the solution without data. orthonormal: its A and B, with
            G = 0. kaiming: random A and B, with G = 0, as in the paper.
        scale: Coefficient λ of the task vectors before the first step; null means 1/K for K experts.
        coefficients: What λ is learned for. layer: each task and tensor. task: each task. fixed: it is not learned.
        ties: Fraction of entries that TIES keeps of each task vector, with its sign election, before the fit (AdaMerging++);
            null uses the task vectors as they are.
        store_task_vectors: Precision of the task vectors in memory during the fit; bfloat16 halves their memory.
        options: how it trains.
        run: where its states go, and who hears of its progress.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.

    Needs: inputs (labels for cross-entropy).
    Stores: one model; A, B and K cores of r × r for each target.
    Paper: Chen & Kwok 2025, arXiv 2408.12105; distillation is ours.
    """
    arguments = dict(locals())
    lam = 1 / len(experts) if scale is None else scale
    low_rank = low_rank_targets(experts, targets, rank, fuse_qkv=fuse_qkv, structure=structure)
    varying = {name for target in low_rank for name, _ in target.members}
    facts = {}
    if on is not None:
        if not low_rank:
            raise UserError("rank 0 on a base merge: nothing is left to learn")
        facts["on"] = math.fsum(float(on[name].sum(dtype=torch.float64)) for name in sorted(varying))  # which base it is
    fit = Fit(
        pareto_merging_on_data, arguments, facts=facts, unused=() if on is None else OF_COEFFICIENTS, task_vectors=on is None,
        thin=ties is None,
    )  # fmt: skip
    problem, weights = fit.problem, None
    if on is None:
        vectors = problem.task_vectors
        if ties is not None:
            vectors = {**trimmed_and_elected(experts, {n: v for n, v in vectors.items() if isinstance(v, Tensor)}, ties)}
        if store_task_vectors == "bfloat16":
            for name, v in vectors.items():  # one tensor at a time is there twice
                vectors[name] = v.to(torch.bfloat16) if isinstance(v, Tensor) else v
        learned = Learned(problem.base, vectors, low_rank, task_wise=coefficients == "task")
        problem.task_vectors = {}
        learned.view("lambda").fill_(lam)
    else:
        weights = problem.stand_on_(on, varying)
        learned = Learned(problem.base, {}, low_rank, n_tasks=len(experts))
    start_low_rank_(learned, experts, start, lam, rank, targets, fuse_qkv=fuse_qkv, seed=options.seed)
    if rank:
        say_coverage(experts.tasks, options, run.say)
    fit.learn_(learned, weights, frozen=("lambda",) if coefficients == "fixed" else ())
    if on is None:
        return _as_set(experts, learned, fit.settings)
    base, factors = folded(on, learned.factors())
    return ParetoSet(experts.tasks, base, factors=factors, settings=fit.settings)


ADAMERGING = TrainingOptions(
    objective="entropy", steps=500, batch_size=16, lr=1e-3, schedule="constant", equal_every=1, skip_below=0.0
)
"""The settings of the paper's experiments (Yang et al. 2024); every step is at the equal preference."""


def adamerging(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    scale: float = 0.3,
    coefficients: Literal["layer", "task"] = "layer",
    ties: float | None = None,
    store_task_vectors: Literal["float32", "bfloat16"] = "float32",
    options: Annotated[
        TrainingOptions,
        Without("schedule", "alpha", "sampling", "equal_every", "scalarization", "mu", "beta", "skip_below", "clip"),
    ] = ADAMERGING,
    run: FitRun = FitRun(),
) -> ParetoSet:
    """AdaMerging (Yang et al. 2024): θ₀ + Σ_k λ_k v_k with λ learned; one model, the same at every preference.

    Args:
        experts: base and experts.
        tasks: task -> its inputs.
        scale: Coefficient λ of the task vectors before the first step.
        coefficients: What λ is learned for. layer: each task and tensor. task: each task.
        ties: Fraction of entries that TIES keeps of each task vector, with its sign election, before the fit: 0.2 for
            AdaMerging++; null for AdaMerging.
        store_task_vectors: Precision of the task vectors in memory during the fit; bfloat16 halves their memory.
        options: how it trains.
        run: where its states go, and who hears of its progress.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.

    Needs: inputs (labels for cross-entropy).
    Stores: one model.
    Paper: Yang et al. 2024, arXiv 2310.02575.
    """
    settings_of(adamerging, locals())  # refuses what AdaMerging does not have
    return pareto_merging_on_data(
        experts, tasks, scale=scale, coefficients=coefficients, ties=ties, store_task_vectors=store_task_vectors, rank=0,
        start="kaiming", options=options, run=run,
    )  # fmt: skip


FITS_ON_DATA = {
    "pareto-merging": pareto_merging_on_data, "adamerging": adamerging, "steered": steered, "pwe-moe": pwe_moe, "react": react,
    "training": training,
}  # fmt: skip
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "recommended": {name: {} for name in FITS_ON_DATA},
    "paper": {"pareto-merging": PAPER, "adamerging": {}, "pwe-moe": PWE_PAPER},
}
"""preset -> method -> settings that differ from the method's defaults; AdaMerging's defaults are its paper's."""


def _as_set(experts: Experts, learned: Learned, options: Mapping[str, Any]) -> ParetoSet:
    """The fitted set: θ₀ + Σ λ_k v_k as its base, the low-rank part centred."""
    lambdas = learned.view("lambda")
    merged: dict[str, Tensor] = {}
    if experts.factored and all(isinstance(v, LowRank) for v in learned.task_vectors.values()):
        rows = {name: lambdas[row].tolist() for name, row in learned.coefficients.row.items()}
        arithmetic: Weights = sum_of_adapters(experts, rows.__getitem__)
    else:
        for name, v in learned.task_vectors.items():
            theta = added(learned.base[name], v, lambdas[learned.coefficients.row[name]])
            merged[name] = theta.cpu().to(experts.infos[name].dtype)
        arithmetic = completed(experts, merged)
    base, factors = folded(arithmetic, learned.factors())
    learned_lambda = [[round(x, 6) for x in row] for row in lambdas.tolist()]
    return ParetoSet(experts.tasks, base, factors=factors, settings={**options, "lambda": learned_lambda})
