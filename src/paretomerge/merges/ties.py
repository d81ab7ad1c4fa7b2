"""TIES: trim, elect sign, disjoint merge (Yadav et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.merges.consensus import elect_and_merge
from paretomerge.merges.streaming import PerTask, Rule, by_rows, per_task
from paretomerge.merges.threshold import magnitude_thresholds
from paretomerge.weights.experts import Experts
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
            Entries as large as the smallest kept one are kept too.
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
        thresholds = whole_model or magnitude_thresholds(experts, [name], densities)

        def rule(base: Tensor, v: Tensor) -> Tensor:
            return elect_and_merge(trim_(v, thresholds), w, normalize=normalize).mul_(scale).add_(base)

        return rule

    return by_rows(experts, rule_for)


def trim_(v: Tensor, thresholds: list[float]) -> Tensor:
    """Zero the entries with |v_k| < t_k, in place: v (K, m, n), one threshold per task."""
    for v_k, threshold in zip(v, thresholds, strict=True):
        if threshold > 0:
            # hardshrink keeps |v| > λ; the next number below t makes that |v| ≥ t
            number = np.dtype(str(v.dtype).removeprefix("torch.")).type  # of both: numpy 1 makes fp64 of one and an int
            below = np.nextafter(number(threshold), number(0))
            torch.ops.aten.hardshrink.out(v_k, float(below), out=v_k)
    return v


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

    def processed(v: Tensor) -> Tensor:
        kept = trim_(v.clone(), thresholds)
        return kept * (kept.sign() == kept.sum(0).sign())

    return {name: processed(v) for name, v in vectors.items()}
