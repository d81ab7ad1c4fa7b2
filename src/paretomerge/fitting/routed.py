"""PWE-MoE fitted on inputs: only the routers learn, a few hundred numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.learned import Learned
from paretomerge.fitting.loop import Report, check_run, fit_
from paretomerge.fitting.problem import Problem, facts_of
from paretomerge.fitting.sampling import say_coverage, seed_of
from paretomerge.fitting.scalarization import Name as Scalarization
from paretomerge.fitting.settings import Settings
from paretomerge.fitting.steered import at_equal, keep
from paretomerge.sets.modules import choose_modules
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.experts import Experts
from paretomerge.weights.live import device_of
from paretomerge.weights.vectors import added

PAPER: dict[str, Any] = {
    "modules": "mlp", "start": "task-arithmetic", "objective": "cross-entropy", "batch": 16, "steps": 4000, "lr": 1e-2,
    "schedule": "cosine", "alpha": 1.0, "equal_every": 0, "scalarization": "linear", "skip_below": 0.0,
}  # fmt: skip
"""The settings of the paper's experiments (Tang et al. 2024): LS, up-scaled MLPs; labels are needed."""


def pwe_moe(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    modules: str | Sequence[str] = "attention+mlp",
    objective: Literal["distill", "infomax", "entropy", "features", "cross-entropy"] = "distill",
    start: Literal["soup", "task-arithmetic"] = "soup",
    scale: float | None = None,
    store_task_vectors: Literal["base", "float32", "bfloat16"] = "base",
    steps: int = 600,
    batch: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-2,
    schedule: Literal["cosine", "constant"] = "cosine",
    alpha: float = 1.0,
    sampling: Literal["dirichlet", "stratified", "corners"] = "dirichlet",
    equal_every: int = 0,
    scalarization: Scalarization = "linear",
    mu: float = 0.1,
    skip_below: float | None = None,
    clip: float = 0.0,
    patience: int = 0,
    seed: int = 0,
    checkpoint_every: int = 100,
    precision: Literal["float32", "bfloat16"] = "float32",
    checkpointing: bool = False,
    teacher_top: int | None = 64,
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ParetoSet:
    """PWE-MoE (Tang et al. 2024): φ_m(γ) = φ₀_m + Σ_k R_m(γ)_k v_km, a router R_m for each upscaled module m.

    The rest is task arithmetic with λ. The paper's routers start near λ at every preference: weights N(0, 0.01²), first bias
    0, last bias λ. By default half of the hidden units carry the preference, so that they start near the soup K λ γ.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        modules: what is upscaled: ``"mlp"`` (the paper's first choice), ``"attention+mlp"``, ``"attention"``, ``"all"`` (norms
            and embeddings, too: what the paper's Attn+MLP comes to, by the 65 routers of its table 8), or globs of modules.
        objective: ``"distill"`` and others without labels, or ``"cross-entropy"``: the paper's.
        start: what the routers answer before the first step: ``"soup"``, or ``"task-arithmetic"`` as in the paper.
        scale: λ; None: 1/K for the soup (Rewarded Soups); for the other start the paper's, 0.3, and 0.6 for two tasks.
        store_task_vectors: their dtype on disk (``"base"``: that of the base's tensors); bfloat16 halves memory, too. The
            factors of LoRA experts stay as they are, in fp32.
        steps: number of steps.
        batch: inputs per task and step.
        micro_batch: inputs at a time; None: all of a batch.
        lr: Adam's learning rate.
        schedule: ``"cosine"`` to a tenth, or ``"constant"``.
        alpha: of the Dirichlet distribution of γ; 1: uniform.
        sampling: of γ, as in ``pareto_merging_on_data``.
        equal_every: every so many steps γ is equal; 0: never.
        scalarization: as in ``pareto_merging_on_data``.
        mu: μ of smooth Tchebycheff.
        skip_below: tasks with a smaller γ_k are mostly left out of a step, without bias; 0: never.
        clip: largest norm of a step's gradient; 0: not clipped.
        patience: stop when so many checkpoints have not improved the held-out objective; 0: never.
        seed: of everything random.
        checkpoint_every: steps between saved states.
        precision: of the forward and backward passes.
        checkpointing: keep the activations of no layer, and compute them again in the backward pass: less memory, more time.
        teacher_top: as in ``pareto_merging_on_data``.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; auto: the best there is.
        folder: of the run.
        resume: go on where the run in ``folder`` stopped.
        report: called after each step.
        say: is told what the user should know.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.

    Needs: inputs (labels for cross-entropy).
    Stores: one model; K task vectors of the upscaled modules; their routers.
    Paper: Tang et al. 2024, arXiv 2406.09770.
    """
    options = {
        k: v for k, v in locals().items() if k not in ("experts", "tasks", "folder", "resume", "report", "say", "device")
    }
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in options.items() if name in names})
    on = device_of(device)
    n_tasks = len(experts)
    lam = scale if scale is not None else 1 / n_tasks if start == "soup" else 0.6 if n_tasks == 2 else 0.3
    chosen = choose_modules(experts.infos, experts.merged, modules)
    facts = facts_of(experts.tasks, tasks, objective, options, held_out=patience > 0)
    check_run(folder, settings, facts, resume=resume)
    problem = Problem(
        experts, tasks, objective, batch=batch, micro_batch=micro_batch, precision=precision, device=on, folder=folder, say=say,
        held_out=patience > 0, checkpointing=checkpointing, teacher_top=teacher_top,
    )  # fmt: skip
    weights = problem.models.weights
    upscaled = {name for members in chosen.values() for name in members}
    rest: dict[str, Tensor] = {}
    for name in weights.keys() - upscaled:  # constant: written once, and nothing is asked of its gradient
        rest[name] = added(problem.base[name], problem.task_vectors.pop(name), torch.full((n_tasks,), lam, device=on))
        weights[name].requires_grad_(False).copy_(rest[name])
    dtype = None if store_task_vectors == "base" else torch.bfloat16 if store_task_vectors == "bfloat16" else torch.float32
    kept = keep(problem.base, problem.task_vectors, experts.infos, lam, None, dtype, seed)
    problem.task_vectors = {}
    learned = Learned(kept.base, kept.vectors, (), kind="routed", groups=chosen)
    start_(learned, lam, seed, soup=start == "soup")
    say(f"{len(chosen)} routers, {len(learned.phi)} parameters, of {len(upscaled)} tensors")
    say_coverage(experts.tasks, settings, say)
    fit_(
        learned,
        {name: weights[name] for name in learned.task_vectors},
        problem.losses,
        settings,
        folder=folder,
        resume=resume,
        facts=facts,
        held_out=problem.held_out if patience else None,
        whole=micro_batch is None or micro_batch >= batch,
        report=problem.watching(report),
    )
    base = at_equal(experts, learned, {name: tensor.cpu() for name, tensor in rest.items()}, lam)
    routers, vectors = learned.steering(experts.aliases), kept.stored.with_copies(experts.aliases)
    settings_of_set = {**options, "scale": lam}
    return ParetoSet(experts.tasks, base, coefficients=routers, task_vectors=vectors, settings=settings_of_set)


@torch.no_grad()
def start_(learned: Learned, scale: float, seed: int, soup: bool = False) -> None:
    """Routers that answer about λ to every preference: W₁, W₂ ~ N(0, 0.01²), b₁ = 0, b₂ = λ.

    ``soup``: about K λ γ. K of the 2K hidden units pass γ on (W₁ = I, W₂ = K λ I), the others start as above, and b₂ = 0.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, 0, 0))
    for part in ("W1", "W2"):
        view = learned.view(part)
        view.copy_(0.01 * torch.randn(view.shape, generator=generator))
    if not soup:
        learned.view("b2").fill_(scale)
        return
    k = learned.n_tasks
    learned.view("W1")[:, :k] = torch.eye(k)
    learned.view("W2")[:, :, :k] = k * scale * torch.eye(k)
