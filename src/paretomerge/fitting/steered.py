"""A steered set fitted on inputs: per tensor M and b, and the low-rank term, learned together from the soup on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from paretomerge import preferences
from paretomerge.decompositions import of_tensor
from paretomerge.errors import UserError
from paretomerge.evaluation.tasks import Task
from paretomerge.fitting.learned import Learned
from paretomerge.fitting.loop import Report, check_run, fit_
from paretomerge.fitting.problem import Problem, facts_of
from paretomerge.fitting.sampling import say_coverage, seed_of
from paretomerge.fitting.scalarization import Name as Scalarization
from paretomerge.fitting.settings import Settings
from paretomerge.fitting.start import low_rank_targets, start_low_rank_
from paretomerge.merges.linear import sum_of_adapters
from paretomerge.merges.streaming import completed
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.task_vectors import TaskVectors, truncated_svd
from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import TensorInfo, Weights, matrix_shape
from paretomerge.weights.live import device_of
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import Vectors


def steered(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    objective: Literal["distill", "infomax", "entropy", "features", "cross-entropy"] = "distill",
    targets: str | Sequence[str] = "all",
    fuse_qkv: bool = False,
    rank: int = 16,
    scale: float | None = None,
    store_task_vectors: Literal["base", "float32", "bfloat16"] = "base",
    task_vector_rank: int | None = None,
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
    teacher_top: int | None = 64,
    device: str = "auto",
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ParetoSet:
    """θ(γ) = θ₀ + Σ_k (M γ + b)_k v_k + A (Σ_k γ_k G_k) B with M, b, A, B and G learned; it keeps the task vectors.

    It starts at the soup θ₀ + Kλ Σ_k γ_k v_k: M = Kλ I, b = 0, G = 0, A and B orthonormal from the closed form. Not in a
    paper; recipe and defaults are those of ``pareto_merging_on_data``.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        objective: as in ``pareto_merging_on_data``.
        targets: matrices with a low-rank term: ``"all"``, ``"attention"`` or globs.
        fuse_qkv: one low-rank term for q, k and v of a block together.
        rank: r of the low-rank term; 0: none.
        scale: λ of the soup at the start; None: 1/K, Rewarded Soups.
        store_task_vectors: their dtype on disk (``"base"``: that of the base's tensors); bfloat16 halves memory, too. The
            factors of LoRA experts stay as they are, in fp32.
        task_vector_rank: R: keep each v_k of a matrix as a product of rank R, where that is smaller; None: whole. What is lost
            of Σ_k v_k goes into the base, times λ.
        steps: number of steps.
        batch: inputs per task and step.
        micro_batch: inputs at a time; None: all of a batch.
        lr: Adam's learning rate.
        schedule: ``"cosine"`` to a tenth, or ``"constant"``.
        alpha: of the Dirichlet distribution of γ.
        sampling: of γ, as in ``pareto_merging_on_data``.
        equal_every: every so many steps γ is equal; 0: never.
        scalarization: as in ``pareto_merging_on_data``.
        mu: μ of smooth Tchebycheff.
        beta: weight of R = Σ ‖A G_γ B‖².
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
    Stores: one model; K task vectors, whole or of rank R; M, b for each tensor; A, B and K cores.
    Paper: none.
    """
    options = {
        k: v for k, v in locals().items() if k not in ("experts", "tasks", "folder", "resume", "report", "say", "device")
    }
    names = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in options.items() if name in names})
    if task_vector_rank is not None and task_vector_rank < 1:
        raise UserError("task_vector_rank must be at least 1; leave it out to keep whole task vectors")
    on = device_of(device)
    n_tasks = len(experts)
    lam = 1 / n_tasks if scale is None else scale
    low_rank = low_rank_targets(experts, targets, rank, fuse_qkv=fuse_qkv)
    facts = facts_of(experts.tasks, tasks, objective, options, held_out=patience > 0)
    check_run(folder, settings, facts, resume=resume)
    problem = Problem(
        experts, tasks, objective, batch=batch, micro_batch=micro_batch, precision=precision, device=on, folder=folder, say=say,
        held_out=patience > 0, checkpointing=checkpointing, teacher_top=teacher_top, thin=task_vector_rank is None,
    )  # fmt: skip
    dtype = None if store_task_vectors == "base" else torch.bfloat16 if store_task_vectors == "bfloat16" else torch.float32
    kept = keep(problem.base, problem.task_vectors, experts.infos, lam, task_vector_rank, dtype, seed)
    problem.task_vectors = {}
    if task_vector_rank is not None:
        say(f"task vectors at rank {task_vector_rank}: error {kept.error:.1%} of their norm, at most {kept.worst[1]:.1%} "
            f"({kept.worst[0]})")  # fmt: skip
    learned = Learned(kept.base, kept.vectors, low_rank, kind="affine")
    learned.view("M").copy_(n_tasks * lam * torch.eye(n_tasks))
    start_low_rank_(learned, experts, "orthonormal", lam, rank, targets, fuse_qkv=fuse_qkv, seed=seed)
    say_coverage(experts.tasks, settings, say)
    fit_(
        learned,
        problem.models.weights,
        problem.losses,
        settings,
        folder=folder,
        resume=resume,
        facts=facts,
        held_out=problem.held_out if patience else None,
        whole=micro_batch is None or micro_batch >= batch,
        report=problem.watching(report),
    )
    base = at_equal(experts, learned)
    lost = {"error": round(kept.error, 6), "worst": round(kept.worst[1], 6), "worst_tensor": kept.worst[0]}
    coefficients = learned.steering(experts.aliases)
    vectors = kept.stored.with_copies(experts.aliases)
    return ParetoSet(
        experts.tasks, base, coefficients=coefficients, task_vectors=vectors, factors=learned.factors(),
        settings={**options, "task_vectors": lost},
    )  # fmt: skip


class Kept(NamedTuple):
    """Task vectors v̂_k as a set keeps them, for the fit and for the disk, and what is lost."""

    base: dict[str, Tensor]
    """θ₀ + λ Σ_k (v_k − v̂_k): task arithmetic stays what it is."""
    vectors: dict[str, Vectors]
    stored: TaskVectors
    error: float
    """‖v − v̂‖ / ‖v‖ over all tensors and tasks."""
    worst: tuple[str, float]
    """The tensor with the largest error of its own, and that error."""


def keep(
    base: Mapping[str, Tensor], vectors: Mapping[str, Vectors], infos: Mapping[str, TensorInfo], scale: float,
    rank: int | None, dtype: torch.dtype | None, seed: int,
) -> Kept:  # fmt: skip
    """Task vectors in the precision and at the rank in which they are kept.

    Args:
        base: name -> θ₀, fp32.
        vectors: name -> (K, numel), fp32, or thin products, which are kept exactly.
        infos: of these tensors.
        scale: λ.
        rank: R of each matrix that gets smaller by it; None: all are kept whole.
        dtype: of what is stored; None: that of each tensor in ``infos``.
        seed: of the randomised decomposition.
    """
    shifted = dict(base)
    kept: dict[str, Vectors] = {}
    whole: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    lost = total = 0.0
    worst = ("", 0.0)
    for number, (name, v) in enumerate(vectors.items()):
        if isinstance(v, LowRank):
            kept[name] = v
            left[name], right[name] = (part.cpu() for part in v.stacked())
            continue
        as_stored = dtype or infos[name].dtype
        m, n = matrix_shape(infos[name].shape)
        if rank is not None and 0 < rank * (m + n) < m * n:
            generator = torch.Generator().manual_seed(seed_of(seed, number, 4))
            with of_tensor(name):
                factors = [part.to(as_stored) for part in truncated_svd(v.view(len(v), m, n), rank, generator)]
            left[name], right[name] = (part.cpu().contiguous() for part in factors)
            near = (factors[0].to(v) @ factors[1].to(v)).view_as(v)
        else:
            near = v.to(as_stored)
            whole[name] = near.cpu().view(len(v), *infos[name].shape)
        before, gone = float(torch.linalg.vector_norm(v)), 0.0
        if near.dtype != v.dtype or name in left:
            gap = v - near.to(v)
            gone = float(torch.linalg.vector_norm(gap))
            shifted[name] = base[name] + scale * gap.sum(0).view_as(base[name])
        lost, total = lost + gone**2, total + before**2
        worst = max(worst, (name, gone / before if before else 0.0), key=lambda pair: pair[1])
        # the loop multiplies in fp32 or bf16, whatever is stored
        kept[name] = near.to(torch.bfloat16 if as_stored.itemsize < 4 else v.dtype)
    stored = TaskVectors(Weights.of(whole), Weights.of(left), Weights.of(right))
    return Kept(shifted, kept, stored, (lost / total) ** 0.5 if total else 0.0, worst)


def at_equal(experts: Experts, learned: Learned, rest: Mapping[str, Tensor] | None = None, scale: float = 0.0) -> Weights:
    """The model at equal preference: what was learned, ``rest`` where it was not, and the base's tensors.

    Of LoRA experts it stays a sum of products; then ``scale`` is λ of the tensors that are not learned.
    """
    equal = torch.tensor(preferences.equal(len(experts)), dtype=torch.float64)
    if experts.factored and all(isinstance(v, LowRank) for v in learned.task_vectors.values()):
        c, low_rank = learned.coefficients.at(equal).cpu(), learned.low_rank(equal)
        w = {name: c[row].tolist() for name, row in learned.coefficients.row.items()}
        found = sum_of_adapters(experts, lambda name: w.get(name, [scale] * len(experts)))

        def term(name: str) -> LowRank:  # not a view of φ
            left, right = low_rank[name]
            return LowRank(left.cpu().clone(), right.cpu().clone())

        return found.plus(low_rank, term)
    return completed(experts, {**(rest or {}), **learned.built(equal)})
