"""Pareto Merging and AdaMerging fitted on inputs: λ, A, B and G learned together, mostly without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretomerge.errors import UserError
from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.learned import Learned
from paretomerge.fitting.loop import Report, check_run, fit_
from paretomerge.fitting.problem import Problem, facts_of
from paretomerge.fitting.react import react
from paretomerge.fitting.routed import PAPER as PWE_PAPER
from paretomerge.fitting.routed import pwe_moe
from paretomerge.fitting.sampling import say_coverage
from paretomerge.fitting.scalarization import Name as Scalarization
from paretomerge.fitting.settings import Settings
from paretomerge.fitting.start import low_rank_targets, start_low_rank_
from paretomerge.fitting.steered import steered
from paretomerge.fitting.training import training
from paretomerge.merges.linear import sum_of_adapters
from paretomerge.merges.streaming import completed
from paretomerge.merges.ties import trimmed_and_elected
from paretomerge.sets.factors import folded
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import Weights
from paretomerge.weights.live import device_of
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import added

PAPER: dict[str, Any] = {
    "objective": "entropy", "targets": "attention", "rank": 16, "start": "kaiming", "scale": 0.3, "batch": 32, "lr": 1e-3,
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
    objective: Literal["distill", "infomax", "entropy", "features", "cross-entropy"] = "distill",
    targets: str | Sequence[str] = "all",
    fuse_qkv: bool = False,
    rank: int = 16,
    structure: Literal["tensor", "outer-1", "outer-2"] = "tensor",
    start: Literal["closed-form", "orthonormal", "kaiming"] = "closed-form",
    scale: float | None = None,
    coefficients: Literal["layer", "task", "fixed"] = "layer",
    ties: float | None = None,
    steps: int = 600,
    batch: int = 32,
    micro_batch: int | None = None,
    lr: float = 2e-3,
    schedule: Literal["cosine", "constant"] = "cosine",
    alpha: float = 0.3,
    sampling: Literal["dirichlet", "stratified", "corners"] = "dirichlet",
    equal_every: int = 4,
    scalarization: Scalarization = "linear",
    mu: float = 0.1,
    beta: float = 0.0,
    skip_below: float | None = None,
    clip: float = 0.0,
    patience: int = 0,
    seed: int = 0,
    checkpoint_every: int = 100,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpointing: bool = False,
    store_task_vectors: Literal["float32", "bfloat16"] = "float32",
    teacher_top: int | None = 64,
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ParetoSet:
    """W(γ) = θ₀ + Σ_k λ_k v_k + A (Σ_k γ_k G_k) B with λ, A, B and G learned (Chen & Kwok 2025, eqs 5, 7, 8 and 11).

    The defaults are not the paper's (``preset=paper`` is): distillation from the experts instead of entropy, a start from
    the closed form, every matrix a target, linear scalarisation. On held-out inputs that was better by far.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        on: a base merge W_base that stays as it is, instead of θ₀ + Σ_k λ_k v_k: only A, B and G are learned, and no task
            vector is kept in memory.
        objective: ``"distill"``: KL to the expert's predictions; ``"entropy"``: the paper's; ``"infomax"``: entropy less that
            of the mean prediction; ``"features"``: squared distance to the expert's last features; ``"cross-entropy"``: labels.
        targets: as in the closed form.
        fuse_qkv: as in the closed form.
        rank: r.
        structure: ``"tensor"``: the paper's; ``"outer-1"``, ``"outer-2"``: the outer products of its ablation.
        start: ``"closed-form"``: A, B and G of the data-free solution; ``"orthonormal"``: its A and B, G = 0;
            ``"kaiming"``: the paper's, A and B Kaiming-uniform, G = 0.
        scale: λ at the start, and of the closed form's aim; None: 1/K.
        coefficients: one λ per task and tensor (``"layer"``), one per ``"task"``, or ``"fixed"``; without a base merge.
        ties: density of TIES' trim, applied with its election to each v_k first (AdaMerging++); None: not applied.
        steps: number of steps.
        batch: inputs per task and step.
        micro_batch: inputs at a time; None: all of a batch.
        lr: Adam's learning rate.
        schedule: ``"cosine"`` to a tenth, or ``"constant"``.
        alpha: of the Dirichlet distribution of γ.
        sampling: ``"stratified"``: tasks take turns at the largest share; ``"corners"``: half of the steps at a corner.
        equal_every: every so many steps γ is equal; 0: never.
        scalarization: how a step weighs the tasks: γ itself, smooth Tchebycheff, ``"epo"`` (γ_k S_k all equal), ``"upgrad"`` or
            ``"aligned-mtl"`` (γ-weighted, conflicts resolved), ``"mgda"`` (no preference: some Pareto-optimal model for all γ).
        mu: μ of smooth Tchebycheff.
        beta: weight of R = Σ ‖A G_γ B‖².
        skip_below: tasks with a smaller γ_k are mostly left out of a step, without bias; 0: never; None: 0.01 for linear and
            smooth Tchebycheff, 0 for the others, which weigh all tasks together.
        clip: largest norm of a step's gradient; 0: not clipped.
        patience: stop when so many checkpoints have not improved the held-out objective; 0: never.
        seed: of everything random.
        checkpoint_every: steps between saved states.
        precision: of the forward and backward passes.
        checkpointing: keep the activations of no layer, and compute them again in the backward pass: less memory, more time.
        store_task_vectors: bfloat16 halves the memory of the K task vectors.
        teacher_top: language models: of each prediction of an expert, so many of the likeliest tokens are kept, and all others
            as one; null: all, in fp16.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; auto: the best there is.
        folder: of the run: config, metrics, states.
        resume: go on where the run in ``folder`` stopped.
        report: called after each step.
        say: is told what the user should know, a line at a time.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.

    Needs: inputs (labels for cross-entropy).
    Stores: one model; A, B and K cores of r × r for each target.
    Paper: Chen & Kwok 2025, arXiv 2408.12105; distillation is ours.
    """
    options = dict(locals())
    for name in ("experts", "tasks", "on", "folder", "resume", "report", "say", "device"):
        del options[name]
    if on is not None:
        options = {k: v for k, v in options.items() if k not in OF_COEFFICIENTS}
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in options.items() if name in names})
    lam = 1 / len(experts) if scale is None else scale
    low_rank = low_rank_targets(experts, targets, rank, fuse_qkv=fuse_qkv, structure=structure)
    facts = facts_of(experts.tasks, tasks, objective, options, held_out=patience > 0)
    if on is not None:
        if not low_rank:
            raise UserError("rank 0 on a base merge: nothing is left to learn")
        varying = {name for target in low_rank for name, _ in target.members}
        facts["on"] = math.fsum(float(on[name].sum(dtype=torch.float64)) for name in sorted(varying))  # which base it is
    check_run(folder, settings, facts, resume=resume)
    problem = Problem(
        experts, tasks, objective, batch=batch, micro_batch=micro_batch, precision=precision, device=device_of(device),
        folder=folder, say=say, held_out=patience > 0, teacher_top=teacher_top, task_vectors=on is None, thin=ties is None,
        checkpointing=checkpointing,
    )  # fmt: skip
    weights: Mapping[str, nn.Parameter] = problem.models.weights
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
    start_low_rank_(learned, experts, start, lam, rank, targets, fuse_qkv=fuse_qkv, seed=seed)
    if rank:
        say_coverage(experts.tasks, settings, say)
    fit_(
        learned,
        weights,
        problem.losses,
        settings,
        frozen=("lambda",) if coefficients == "fixed" else (),
        folder=folder,
        resume=resume,
        facts=facts,
        held_out=problem.held_out if patience else None,
        whole=micro_batch is None or micro_batch >= batch,
        report=problem.watching(report),
    )
    if on is None:
        return _as_set(experts, learned, options)
    base, factors = folded(on, learned.factors())
    return ParetoSet(experts.tasks, base, factors=factors, settings=options)


def adamerging(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    objective: Literal["distill", "infomax", "entropy", "features", "cross-entropy"] = "entropy",
    scale: float = 0.3,
    coefficients: Literal["layer", "task"] = "layer",
    ties: float | None = None,
    steps: int = 500,
    batch: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-3,
    patience: int = 0,
    seed: int = 0,
    checkpoint_every: int = 100,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpointing: bool = False,
    store_task_vectors: Literal["float32", "bfloat16"] = "float32",
    teacher_top: int | None = 64,
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ParetoSet:
    """AdaMerging (Yang et al. 2024): θ₀ + Σ_k λ_k v_k with λ learned; one model, the same at every preference.

    Args:
        experts: base and experts.
        tasks: task -> its inputs.
        objective: ``"entropy"``: the paper's; or as in ``pareto_merging_on_data``.
        scale: λ at the start.
        coefficients: one λ per task and tensor (``"layer"``) or one per ``"task"``.
        ties: density of TIES' trim for AdaMerging++ (0.2); None: AdaMerging.
        steps: number of steps.
        batch: inputs per task and step.
        micro_batch: inputs at a time.
        lr: Adam's learning rate.
        patience: as in ``pareto_merging_on_data``.
        seed: of everything random.
        checkpoint_every: steps between saved states.
        precision: of the forward and backward passes.
        checkpointing: keep the activations of no layer, and compute them again in the backward pass: less memory, more time.
        store_task_vectors: bfloat16 halves the memory of the task vectors.
        teacher_top: as in ``pareto_merging_on_data``.
        device: where to fit.
        folder: of the run.
        resume: go on where the run in ``folder`` stopped.
        report: called after each step.
        say: is told what the user should know.

    Needs: inputs (labels for cross-entropy).
    Stores: one model.
    Paper: Yang et al. 2024, arXiv 2310.02575.
    """
    options = {k: v for k, v in locals().items() if k not in ("experts", "tasks")}
    return pareto_merging_on_data(
        experts, tasks, **options, rank=0, start="kaiming", equal_every=1, skip_below=0.0, schedule="constant"
    )


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
