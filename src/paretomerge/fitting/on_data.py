"""Pareto Merging and AdaMerging fitted on inputs: λ, A, B and G learned together, mostly without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretomerge.errors import UserError
from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.closed_form import pareto_merging
from paretomerge.fitting.learned import Learned, Target
from paretomerge.fitting.loop import Report, Settings, fit_
from paretomerge.fitting.problem import Problem
from paretomerge.fitting.sampling import coverage, seed_of
from paretomerge.merges.ties import trimmed_and_elected
from paretomerge.sets.low_rank import LowRank, folded
from paretomerge.sets.targets import choose_targets
from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import Weights

PAPER: dict[str, Any] = {
    "objective": "entropy", "targets": "attention", "rank": 16, "start": "kaiming", "scale": 0.3, "batch": 32, "lr": 1e-3,
    "schedule": "constant", "alpha": 0.1, "equal_every": 0, "scalarization": "smooth-tchebycheff", "beta": 0.1,
    "skip_below": 0.0,
}  # fmt: skip
"""The settings of the paper's experiments (Chen & Kwok 2025, app. B; μ and the number of steps are not given there)."""


def pareto_merging_on_data(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
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
    scalarization: Literal["linear", "smooth-tchebycheff"] = "linear",
    mu: float = 0.1,
    beta: float = 0.0,
    skip_below: float = 0.01,
    clip: float = 0.0,
    patience: int = 0,
    seed: int = 0,
    checkpoint_every: int = 100,
    precision: Literal["float32", "bfloat16"] = "float32",
    store_task_vectors: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> LowRank:
    """W(γ) = θ₀ + Σ_k λ_k v_k + A (Σ_k γ_k G_k) B with λ, A, B and G learned (Chen & Kwok 2025, eqs 5, 7, 8 and 11).

    The defaults are not the paper's (``preset=paper`` is): distillation from the experts instead of entropy, a start from
    the closed form, every matrix a target, linear scalarisation. On held-out inputs that was better by far.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        objective: ``"distill"``: KL to the expert's predictions; ``"entropy"``: the paper's; ``"infomax"``: entropy less that
            of the mean prediction; ``"features"``: squared distance to the expert's last features; ``"cross-entropy"``: labels.
        targets: as in the closed form.
        fuse_qkv: as in the closed form.
        rank: r.
        structure: ``"tensor"``: the paper's; ``"outer-1"``, ``"outer-2"``: the outer products of its ablation.
        start: ``"closed-form"``: A, B and G of the data-free solution; ``"orthonormal"``: its A and B, G = 0;
            ``"kaiming"``: the paper's, A and B Kaiming-uniform, G = 0.
        scale: λ at the start; None: 1/K.
        coefficients: one λ per task and tensor (``"layer"``), one per ``"task"``, or ``"fixed"``.
        ties: density of TIES' trim, applied with its election to each v_k first (AdaMerging++); None: not applied.
        steps: number of steps.
        batch: inputs per task and step.
        micro_batch: inputs at a time; None: all of a batch.
        lr: Adam's learning rate.
        schedule: ``"cosine"`` to a tenth, or ``"constant"``.
        alpha: of the Dirichlet distribution of γ.
        sampling: ``"stratified"``: tasks take turns at the largest share; ``"corners"``: half of the steps at a corner.
        equal_every: every so many steps γ is equal; 0: never.
        scalarization: linear or smooth Tchebycheff.
        mu: μ of smooth Tchebycheff.
        beta: weight of R = Σ ‖A G_γ B‖².
        skip_below: tasks with a smaller γ_k are mostly left out of a step, without bias; 0: never.
        clip: largest norm of a step's gradient; 0: not clipped.
        patience: stop when so many checkpoints have not improved the held-out objective; 0: never.
        seed: of everything random.
        checkpoint_every: steps between saved states.
        precision: of the forward and backward passes.
        store_task_vectors: bfloat16 halves the memory of the K task vectors.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; auto: the best there is.
        folder: of the run: config, metrics, states.
        resume: go on where the run in ``folder`` stopped.
        report: called after each step.
        say: is told what the user should know, a line at a time.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.
    """
    options = {
        k: v for k, v in locals().items() if k not in ("experts", "tasks", "folder", "resume", "report", "say", "device")
    }
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in options.items() if name in names})
    if rank < 0:
        raise UserError("rank must not be negative")
    on = _device(device)
    n_tasks = len(experts)
    lam = 1 / n_tasks if scale is None else scale
    chosen = choose_targets(experts.infos, experts.merged, targets, fuse_qkv=fuse_qkv) if rank else {}
    shapes = {name: (sum(n for _, n in m), experts.infos[m[0][0]].shape[1]) for name, m in chosen.items()}
    low_rank = [Target(name, m, shapes[name], min(rank, *shapes[name]), structure) for name, m in chosen.items()]
    problem = Problem(
        experts, tasks, objective, batch=batch, micro_batch=micro_batch, precision=precision, device=on, folder=folder, say=say,
        held_out=patience > 0,
    )  # fmt: skip
    vectors = problem.task_vectors
    if ties is not None:
        vectors = trimmed_and_elected(experts, vectors, ties)
    stored = torch.bfloat16 if store_task_vectors == "bfloat16" else torch.float32
    vectors = {name: v.to(stored) for name, v in vectors.items()}
    learned = Learned(problem.base, vectors, low_rank, task_wise=coefficients == "task")
    problem.task_vectors = {}
    _start(learned, experts, start, lam, rank, targets, fuse_qkv, seed)
    if rank:
        _say_coverage(experts.tasks, settings, say)
    fit_(
        learned,
        problem.models.weights,
        problem.losses,
        settings,
        frozen=("lambda",) if coefficients == "fixed" else (),
        folder=folder,
        resume=resume,
        facts={"tasks": list(experts.tasks), "inputs": problem.sizes, **options},
        held_out=problem.held_out if patience else None,
        report=problem.watching(report),
    )
    return _as_set(experts, learned, options)


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
    store_task_vectors: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> LowRank:
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
        store_task_vectors: bfloat16 halves the memory of the task vectors.
        device: where to fit.
        folder: of the run.
        resume: go on where the run in ``folder`` stopped.
        report: called after each step.
        say: is told what the user should know.
    """
    options = {k: v for k, v in locals().items() if k not in ("experts", "tasks")}
    return pareto_merging_on_data(
        experts, tasks, **options, rank=0, start="kaiming", equal_every=1, skip_below=0.0, schedule="constant"
    )


FITS_ON_DATA = {"pareto-merging": pareto_merging_on_data, "adamerging": adamerging}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"recommended": {}, "paper": {"pareto-merging": PAPER}}
"""preset -> method -> settings that differ from the method's defaults; AdaMerging's defaults are its paper's."""


def _start(
    learned: Learned,
    experts: Experts,
    start: str,
    lam: float,
    rank: int,
    targets: str | Sequence[str],
    fuse_qkv: bool,
    seed: int,
) -> None:
    """φ before the first step."""
    learned.view("lambda").fill_(lam)
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
    found = pareto_merging(experts, rank=rank, targets=targets, fuse_qkv=fuse_qkv, scale=lam, seed=seed)
    for target in learned.targets:
        factors, solution = learned.of(target), found.factors[target.name]
        assert solution.g is not None
        if target.structure != "outer-1":
            factors.a.copy_(solution.a)
        if target.structure != "outer-2":
            factors.b.copy_(solution.b)
        if start == "closed-form":  # the outer products hold the same term: A_k = A G_k, or B_k = G_k B
            of_tasks = {"tensor": solution.g, "outer-1": solution.a @ solution.g, "outer-2": solution.g @ solution.b}
            factors.varying.copy_(of_tasks[target.structure])


def _say_coverage(tasks: Sequence[str], settings: Settings, say: Callable[[str], None]) -> None:
    """Tell what the preferences of the steps cover, and warn of a task that hardly ever leads."""
    covered = coverage(len(tasks), settings)
    shares = ", ".join(f"{task} {count}" for task, count in zip(tasks, covered.leads, strict=True))
    say(f"preferences: largest share by steps: {shares}; {covered.visits:.1f} tasks a step")
    led = sum(covered.leads)
    for task, count in zip(tasks, covered.leads, strict=True):
        if count < led / len(tasks) / 2:
            say(f"warning: few steps prefer {task} ({count} of {led}): use sampling=stratified, or more steps")


def _as_set(experts: Experts, learned: Learned, options: Mapping[str, Any]) -> LowRank:
    """The fitted set: θ₀ + Σ λ_k v_k as its base, the low-rank part centred."""
    lambdas = learned.view("lambda")
    merged: dict[str, Tensor] = {}
    for name, v in learned.task_vectors.items():
        start = learned.base[name]
        theta = torch.addmv(start.flatten(), v.T.to(start.dtype), lambdas[learned.row[name]]).view_as(start)
        merged[name] = theta.cpu().to(experts.infos[name].dtype)

    def read(name: str) -> Tensor:
        name = experts.aliases.get(name, name)
        return merged[name] if name in merged else experts.base[name].to(experts.infos[name].dtype)

    base, factors = folded(Weights(experts.infos, read), learned.factors())
    return LowRank(
        experts.tasks, base, factors, {**options, "lambda": [[round(x, 6) for x in row] for row in lambdas.tolist()]}
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        local = os.environ.get("LOCAL_RANK", "0")
        name = f"cuda:{local}" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch that was built without it
        raise UserError(f"device {name!r}: {str(error).splitlines()[0]}") from error
