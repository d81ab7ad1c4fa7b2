"""A steered set fitted on inputs: per tensor M and b, and the low-rank term, learned together from the soup on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from paretomerge import preferences
from paretomerge.data.tasks import Task
from paretomerge.decompositions import of_tensor
from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.fitting.driver import Fit
from paretomerge.fitting.initialization import low_rank_targets, start_low_rank_
from paretomerge.fitting.options import FitRun, TrainingOptions
from paretomerge.fitting.parameters import Learned
from paretomerge.fitting.sampling import say_coverage, seed_of
from paretomerge.merges.linear import sum_of_adapters
from paretomerge.merges.streaming import completed
from paretomerge.sets.pareto_set import ParetoSet
from paretomerge.sets.task_vectors import TaskVectors, truncated_svd
from paretomerge.weights.lazy import TensorInfo, Weights, matrix_shape
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.vectors import Vectors


def steered(
    experts: Experts,
    tasks: Mapping[str, Task],
    *,
    targets: str | Sequence[str] = "all",
    fuse_qkv: bool = False,
    rank: int = 16,
    scale: float | None = None,
    store_task_vectors: Literal["base", "float32", "bfloat16"] = "base",
    task_vector_rank: int | None = None,
    options: TrainingOptions = TrainingOptions(),
    run: FitRun = FitRun(),
) -> ParetoSet:
    """θ(γ) = θ₀ + Σ_k (M γ + b)_k v_k + A (Σ_k γ_k G_k) B with M, b, A, B and G learned; it keeps the task vectors.

    It starts at the soup θ₀ + Kλ Σ_k γ_k v_k: M = Kλ I, b = 0, G = 0, A and B orthonormal from the closed form. Not in a
    paper; it trains as ``pareto_merging_on_data`` does.

    Args:
        experts: base and experts.
        tasks: task -> its inputs; all tasks, in any order.
        targets: Matrices that get a low-rank term: all, attention, or globs of tensor names.
        fuse_qkv: Use one low-rank term for the query, key and value matrices of a block together.
        rank: Rank r of the low-rank terms; 0 uses none.
        scale: Coefficient λ of the soup before the first step; null means 1/K for K experts, as in Rewarded Soups.
        store_task_vectors: Precision of the stored task vectors; base is that of the base's tensors. bfloat16 also halves
            their memory during the fit. The factors of LoRA experts stay in fp32.
        task_vector_rank: Store each task vector of a matrix at this rank, where that is smaller, and add what is lost of
            their sum to the base; null stores them whole.
        options: how it trains.
        run: where its states go, and who hears of its progress.

    Raises:
        UserError: a task without inputs, an option that does not fit.
        Stopped: see ``fit_``.

    Needs: inputs (labels for cross-entropy).
    Stores: one model; K task vectors, whole or of rank R; M, b for each tensor; A, B and K cores.
    Paper: none.
    """
    arguments = dict(locals())
    if task_vector_rank is not None and task_vector_rank < 1:
        raise UserError("task_vector_rank must be at least 1; leave it out to keep whole task vectors")
    n_tasks, seed = len(experts), options.seed
    lam = 1 / n_tasks if scale is None else scale
    low_rank = low_rank_targets(experts, targets, rank, fuse_qkv=fuse_qkv)
    fit = Fit(steered, arguments, thin=task_vector_rank is None)
    problem = fit.problem
    dtype = None if store_task_vectors == "base" else torch.bfloat16 if store_task_vectors == "bfloat16" else torch.float32
    kept = keep(problem.base, problem.task_vectors, experts.infos, lam, task_vector_rank, dtype, seed)
    problem.task_vectors = {}
    if task_vector_rank is not None:
        run.say(f"task vectors at rank {task_vector_rank}: error {kept.error:.1%} of their norm, at most {kept.worst[1]:.1%} "
                f"({kept.worst[0]})")  # fmt: skip
    learned = Learned(kept.base, kept.vectors, low_rank, kind="affine")
    learned.view("M").copy_(n_tasks * lam * torch.eye(n_tasks))
    start_low_rank_(learned, experts, "orthonormal", lam, rank, targets, fuse_qkv=fuse_qkv, seed=seed)
    say_coverage(experts.tasks, options, run.say)
    fit.learn_(learned)
    base = at_equal(experts, learned)
    lost = {"error": round(kept.error, 6), "worst": round(kept.worst[1], 6), "worst_tensor": kept.worst[0]}
    coefficients = learned.steering(experts.aliases)
    vectors = kept.stored.with_copies(experts.aliases)
    return ParetoSet(
        experts.tasks, base, coefficients=coefficients, task_vectors=vectors, factors=learned.factors(),
        settings={**fit.settings, "task_vectors": lost},
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
