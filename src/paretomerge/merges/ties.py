"""TIES: trim, elect sign, disjoint merge (Yadav et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.consensus import elect_and_merge
from paretomerge.merges.streaming import PerTask, Rule, by_rows, per_task
from paretomerge.merges.threshold import Threshold, magnitude_thresholds
from paretomerge.weights.lazy import Weights


def ties(
    experts: Experts,
    *,
    density: PerTask = 0.2,
    scale: float = 1.0,
    trim: Literal["model", "tensor"] = "model",
    weights: PerTask = 1.0,
    normalize: bool = True,
) -> Weights:
    """θ₀ + λ · disjoint-mean(elect(trim(v_1)), …, elect(trim(v_K))).

    Args:
        experts: base and experts.
        density: Fraction of entries to keep of each task vector, those largest in magnitude; the paper keeps 0.2.
        scale: Coefficient λ of the merged task vector. The paper tunes it on validation data and suggests 1.
        trim: Whether the fraction is taken over the whole model, as in the paper, or over each tensor, as in mergekit.
            Of entries that are equally large, the first by position are kept.
        weights: Weight of each expert in the sign election and in the mean. One number for all tasks, or one per task.
        normalize: Divide each entry by the summed weights of the experts that agree in sign (disjoint mean), as in the paper;
            false takes their sum.

    Needs: no data.
    Stores: one model.
    Paper: Yadav et al. 2023, arXiv 2306.01708.
    """
    densities = per_task(density, experts.tasks, "density").flatten().tolist()
    w = per_task(weights, experts.tasks, "weights")
    if not all(0 <= d <= 1 for d in densities):
        raise UserError("density must be in [0, 1]: the share of entries that is kept")
    if trim not in ("model", "tensor"):
        raise UserError(f"trim {trim!r}: choose model or tensor")
    whole_model = magnitude_thresholds(experts, experts.merged, densities) if trim == "model" else None

    def rule_for(name: str) -> Rule:
        trim_ = trimmer(whole_model or magnitude_thresholds(experts, [name], densities), name)

        def rule(base: Tensor, v: Tensor) -> Tensor:
            return elect_and_merge(trim_(v), w, normalize=normalize).mul_(scale).add_(base)

        return rule

    return by_rows(experts, rule_for)


def trimmer(thresholds: Sequence[Threshold], name: str) -> Callable[[Tensor], Tensor]:
    """What zeroes, in place, the entries of tensor ``name`` that a trim drops.

    Args:
        thresholds: one per task.
        name: of the tensor.

    Returns:
        A function of the tensor's task vectors (K, *shape), or of slices of its rows (K, m, n), each once and in order.
    """
    ties_left = [threshold.in_tensor(name) for threshold in thresholds]

    def trim_(v: Tensor) -> Tensor:
        for k, (v_k, threshold) in enumerate(zip(v, thresholds, strict=True)):
            if threshold.magnitude > 0:
                ties_left[k] -= _trim_(v_k, threshold.magnitude, ties_left[k])
        return v

    return trim_


def _trim_(v: Tensor, magnitude: float, ties_left: float) -> int:
    """Zero what is smaller, and all but the first ``ties_left`` entries of just this magnitude; how many of those are kept."""
    number = np.dtype(str(v.dtype).removeprefix("torch.")).type  # of both: numpy 1 makes fp64 of one and an int
    edge, kept = number(magnitude), 0
    if float(edge) != magnitude:  # the threshold is an entry of a tensor in fp64 and this one is in fp32: none is equal
        edge, ties_left = edge if float(edge) > magnitude else np.nextafter(edge, number(math.inf)), math.inf
    if 0 < ties_left < math.inf:
        tied = (v.abs() == float(edge)).flatten()
        kept = int(tied.count_nonzero())
        if kept > ties_left:
            kept = int(ties_left)
            tied[tied.nonzero()[:kept]] = False
            v.masked_fill_(tied.view(v.shape), 0)
    # hardshrink keeps |v| > λ; the next number below the edge makes that |v| ≥ edge
    below = edge if ties_left == 0 else np.nextafter(edge, number(0))
    torch.ops.aten.hardshrink.out(v, float(below), out=v)
    return kept


def trimmed_and_elected(experts: Experts, vectors: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Each v_k as TIES leaves it: trimmed over the whole model, and zero where its sign lost the election (AdaMerging++).

    Args:
        experts: base and experts.
        vectors: name -> (K, numel), the task vectors.
        density: share of entries that the trim keeps.
    """
    if not 0 <= density <= 1:
        raise UserError("ties must be in [0, 1]: the share of entries that is kept")
    thresholds = magnitude_thresholds(experts, experts.merged, [density] * len(experts))

    def processed(name: str, v: Tensor) -> Tensor:
        kept = trimmer(thresholds, name)(v.clone())
        return kept * (kept.sign() == kept.sum(0).sign())

    return {name: processed(name, v) for name, v in vectors.items()}
