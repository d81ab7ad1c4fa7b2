"""PWE-MoE fitted on inputs: only the routers learn, a few hundred numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from paretomerge.data.tasks import Task
from paretomerge.experts.experts import Experts
from paretomerge.fitting.driver import Fit
from paretomerge.fitting.options import FitRun, TrainingOptions
from paretomerge.fitting.parameters import Learned
from paretomerge.fitting.sampling import say_coverage, seed_of
from paretomerge.fitting.steered import at_equal, keep
from paretomerge.options import Without
from paretomerge.sets.modules import choose_modules
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.weights.vectors import added

PWE_PAPER: dict[str, Any] = {
    "modules": "mlp", "start": "task-arithmetic", "objective": "cross-entropy", "batch_size": 16, "steps": 4000, "lr": 1e-2,
    "schedule": "cosine", "alpha": 1.0, "equal_every": 0, "scalarization": "linear", "skip_below": 0.0,
}  # fmt: skip
"""The settings of the paper's experiments (Tang et al. 2024): LS, up-scaled MLPs; labels are needed."""


def pwe_moe(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    modules: str | Sequence[str] = "attention+mlp",
    start: Literal["soup", "task-arithmetic"] = "soup",
    scale: float | None = None,
    store_task_vectors: Literal["base", "float32", "bfloat16"] = "base",
    options: Annotated[TrainingOptions, Without("beta")] = TrainingOptions(batch_size=16, lr=1e-2, alpha=1.0, equal_every=0),
    run: FitRun = FitRun(),
) -> ParetoSet:
    """PWE-MoE (Tang et al. 2024): φ_m(γ) = φ₀_m + Σ_k R_m(γ)_k v_km, a router R_m for each upscaled module m.

    The rest is task arithmetic with λ. The paper's routers start near λ at every preference: weights N(0, 0.01²), first bias
    0, last bias λ. By default half of the hidden units carry the preference, so that they start near the soup K λ γ.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        modules: Modules that get a router: mlp (the paper's first choice), attention+mlp, attention, all (with norms and
            embeddings, like the 65 routers of the paper's table 8), or globs of module names.
        start: Output of the routers before the first step: soup, or task-arithmetic as in the paper.
        scale: Coefficient λ of the task vectors. null means 1/K for K experts if start is soup; otherwise the paper's 0.3,
            or 0.6 for two tasks.
        store_task_vectors: Precision of the stored task vectors; base is that of the base's tensors. bfloat16 also halves
            their memory during the fit. The factors of LoRA experts stay in fp32.
        options: how it trains.
        run: where its states go, and who hears of its progress.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.

    Needs: inputs (labels for cross-entropy).
    Stores: one model; K task vectors of the upscaled modules; their routers.
    Paper: Tang et al. 2024, arXiv 2406.09770.
    """
    arguments = dict(locals())
    n_tasks, seed = len(experts), options.seed
    lam = scale if scale is not None else 1 / n_tasks if start == "soup" else 0.6 if n_tasks == 2 else 0.3
    chosen = choose_modules(experts.infos, experts.merged, modules)
    fit = Fit(pwe_moe, arguments)
    problem = fit.problem
    weights = problem.models.weights
    upscaled = {name for members in chosen.values() for name in members}
    rest: dict[str, Tensor] = {}
    for name in weights.keys() - upscaled:  # constant: written once, and nothing is asked of its gradient
        at_scale = torch.full((n_tasks,), lam, device=problem.device)
        rest[name] = added(problem.base[name], problem.task_vectors.pop(name), at_scale)
        weights[name].requires_grad_(False).copy_(rest[name])
    dtype = None if store_task_vectors == "base" else torch.bfloat16 if store_task_vectors == "bfloat16" else torch.float32
    kept = keep(problem.base, problem.task_vectors, experts.infos, lam, None, dtype, seed)
    problem.task_vectors = {}
    learned = Learned(kept.base, kept.vectors, (), kind="routed", groups=chosen)
    start_(learned, lam, seed, soup=start == "soup")
    run.say(f"{len(chosen)} routers, {len(learned.phi)} parameters, of {len(upscaled)} tensors")
    say_coverage(experts.tasks, options, run.say)
    fit.learn_(learned, {name: weights[name] for name in learned.task_vectors})
    base = at_equal(experts, learned, {name: tensor.cpu() for name, tensor in rest.items()}, lam)
    routers, vectors = learned.steering(experts.aliases), kept.stored.with_copies(experts.aliases)
    settings = {**fit.settings, "scale": lam}
    return ParetoSet(experts.tasks, base, coefficients=routers, task_vectors=vectors, settings=settings)


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
