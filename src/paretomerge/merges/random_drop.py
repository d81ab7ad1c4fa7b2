"""Merges that drop entries of the task vectors at random and rescale the rest: DARE and DELLA."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.consensus import elect_and_merge
from paretomerge.merges.streaming import PerTask, Rule, by_rows, per_task
from paretomerge.weights.lazy import Weights
from paretomerge.weights.vectors import weighted_sum

_Drop = Callable[[Tensor], Tensor]
_LEVELS = 1 << 16
"""Keep probabilities are multiples of 2⁻¹⁶; what is rescaled is the probability used, so nothing is biased."""


def dare_linear(
    experts: Experts,
    *,
    density: PerTask = 0.1,
    scale: PerTask = 0.3,
    rescale: bool = True,
    seed: int = 0,
) -> Weights:
    """DARE with Task Arithmetic (Yu et al. 2024): θ₀ + Σ_k λ_k m_k v_k / (1 − p), m_k ~ Bernoulli(1 − p).

    Args:
        experts: base and experts.
        density: Probability that an entry of a task vector is kept; the paper drops 0.9 of them. One number for all tasks, or
            one per task.
        scale: Coefficient λ of each task vector. One number for all tasks, or one per task.
        rescale: Divide the kept entries by density, so that the expectation of each task vector stays the same.
        seed: Random seed of the masks; the same seed gives the same bytes.

    Needs: no data.
    Stores: one model.
    Paper: Yu et al. 2024, arXiv 2311.03099.
    """
    lambdas = per_task(scale, experts.tasks, "scale")
    keep, drop = dropout(experts, density, seed)
    factors = lambdas / keep if rescale else lambdas

    def rule_for(name: str) -> Rule:
        drop_ = drop(name)
        return lambda base, v: weighted_sum(drop_(v), factors).add_(base)

    return by_rows(experts, rule_for)


def dare_ties(
    experts: Experts,
    *,
    density: PerTask = 0.1,
    scale: float = 1.0,
    weights: PerTask = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    seed: int = 0,
) -> Weights:
    """DARE in place of TIES' trim (Yu et al. 2024, with Yadav et al. 2023): drop, rescale, elect, disjoint mean.

    Args:
        experts: base and experts.
        density: Probability that an entry of a task vector is kept. One number for all tasks, or one per task.
        scale: Coefficient λ of the merged task vector.
        weights: Weight of each expert in the sign election and in the mean. One number for all tasks, or one per task.
        normalize: Divide each entry by the summed weights of the experts that agree in sign (disjoint mean); false takes
            their sum, which is mergekit's default for this merge.
        rescale: Divide the kept entries by density, so that the expectation of each task vector stays the same.
        seed: Random seed of the masks; the same seed gives the same bytes.

    Needs: no data.
    Stores: one model.
    Paper: Yu et al. 2024, arXiv 2311.03099.
    """
    w = per_task(weights, experts.tasks, "weights")
    keep, drop = dropout(experts, density, seed)

    def rule_for(name: str) -> Rule:
        drop_ = drop(name)

        def rule(base: Tensor, v: Tensor) -> Tensor:
            kept = drop_(v)
            if rescale:
                kept.div_(keep)
            return elect_and_merge(kept, w, normalize=normalize).mul_(scale).add_(base)

        return rule

    return by_rows(experts, rule_for)


def della(
    experts: Experts,
    *,
    density: PerTask = 0.3,
    epsilon: float = 0.1,
    scale: float = 1.0,
    weights: PerTask = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    elect: bool = True,
    seed: int = 0,
) -> Weights:
    """DELLA (Deep et al. 2024): drop small entries more often than large ones, rescale, elect, fuse.

    Within each row of a matrix (a vector is one row) the n entries are ranked by magnitude, r = 0 the smallest, and kept
    with probability  1 − p_r = density − ε/2 + ε · r/(n − 1),  then divided by it.

    Args:
        experts: base and experts.
        density: Mean probability that an entry of a task vector is kept. One number for all tasks, or one per task.
        epsilon: Width of the window of these probabilities, as in the paper; mergekit's epsilon is half of it.
        scale: Coefficient λ of the merged task vector.
        weights: Weight of each expert in the sign election and in the mean. One number for all tasks, or one per task.
        normalize: Divide each entry by the summed weights of the experts that agree in sign (disjoint mean); false takes
            their sum.
        rescale: Divide each kept entry by its probability.
        elect: Whether signs are elected; false takes the weighted mean (or sum) of all kept entries.
        seed: Random seed of the masks; the same seed gives the same bytes.

    Raises:
        UserError: density ± ε/2 leaves [0, 1].

    Needs: no data.
    Stores: one model.
    Paper: Deep et al. 2024, arXiv 2406.11617.
    """
    w = per_task(weights, experts.tasks, "weights")
    densities = per_task(density, experts.tasks, "density").flatten().tolist()
    if epsilon < 0:
        raise UserError(f"epsilon {epsilon:g} must not be negative: larger entries are kept more often")
    if normalize and not elect and float(w.sum()) == 0:
        raise UserError("weights: they sum to zero, so there is no mean")
    for d in densities:
        if not 0 < d - epsilon / 2 <= d + epsilon / 2 <= 1:
            raise UserError(f"density {d:g} ± epsilon/2 {epsilon / 2:g} must stay within (0, 1]")
    mean = w / w.sum() if normalize else w

    def rule_for(name: str) -> Rule:
        draws = _generators(name, len(experts), seed)
        one_row = len(experts.infos[name].shape) < 2

        def rule(base: Tensor, v: Tensor) -> Tensor:
            for v_k, d, draw in zip(v, densities, draws, strict=True):
                _magnitude_drop_(v_k.T if one_row else v_k, d, epsilon, rescale, draw)
            fused = elect_and_merge(v, w, normalize=normalize) if elect else weighted_sum(v, mean)
            return fused.mul_(scale).add_(base)

        return rule

    return by_rows(experts, rule_for)


def _magnitude_drop_(v: Tensor, density: float, epsilon: float, rescale: bool, draw: np.random.SFC64) -> None:
    """DELLA's drop of one task vector's rows (m, n), in place."""
    n = v.shape[1]
    probability = density - epsilon / 2 + (epsilon * np.arange(n) / (n - 1) if n > 1 else epsilon / 2)
    levels = np.round(probability * _LEVELS).clip(1, _LEVELS)
    factor = (_LEVELS / levels if rescale else np.ones(n)).astype(v.numpy().dtype)
    order = _ascending(v.numpy())
    kept = np.empty(v.shape, v.numpy().dtype)
    np.less_equal(_bits(draw, v.shape), (levels - 1).astype(np.uint16), out=kept, casting="unsafe")
    kept *= factor
    v.mul_(torch.empty_like(v).scatter_(1, torch.from_numpy(order), torch.from_numpy(kept)))


def _ascending(v: NDArray[np.floating]) -> NDArray[np.int64]:
    """For each row, the positions of its entries from the smallest to the largest magnitude.

    Magnitude and position are packed into one integer and sorted together, several times faster than an argsort. In rows of
    up to 4 096 entries 32 bits do: magnitudes that agree to 11 binary digits or more are then in order of their position.
    """
    n = v.shape[1]
    places = max(1, (n - 1).bit_length())
    if places <= 12:
        low = np.uint32((1 << places) - 1)
        short = np.bitwise_and(v.astype(np.float32, copy=False).view(np.uint32), np.uint32(0x7FFFFFFF) & ~low)
        short |= np.arange(n, dtype=np.uint32)
        short.sort(axis=1)
        short &= low
        return short.astype(np.int64)
    keys = np.empty((*v.shape, 2), np.uint32)
    np.abs(v, out=keys[..., 1].view(np.float32), casting="same_kind")
    keys[..., 0] = np.arange(n, dtype=np.uint32)
    order = keys.view(np.uint64)[..., 0]
    order.sort(axis=1)
    order &= np.uint64(0xFFFFFFFF)
    return order.view(np.int64)


def dropout(experts: Experts, density: PerTask, seed: int) -> tuple[Tensor, Callable[[str], _Drop]]:
    """The keep probabilities in use, (K, 1, 1), and for each tensor's name the function that drops entries in place."""
    wanted = per_task(density, experts.tasks, "density")
    if not bool(((wanted > 0) & (wanted <= 1)).all()):
        raise UserError("density must be in (0, 1]: the share of entries that is kept")
    levels = (wanted * _LEVELS).round().clamp(min=1).flatten().int().tolist()

    def drop(name: str) -> _Drop:
        draws = _generators(name, len(experts), seed)

        def drop_(v: Tensor) -> Tensor:
            for v_k, level, draw in zip(v, levels, draws, strict=True):
                if level < _LEVELS:
                    mask = np.empty(v_k.shape, np.float32)
                    np.less(_bits(draw, v_k.shape), np.uint16(level), out=mask, casting="unsafe")
                    v_k.mul_(torch.from_numpy(mask))
            return v

        return drop_

    return torch.tensor(levels).view(-1, 1, 1) / _LEVELS, drop


def _generators(name: str, count: int, seed: int) -> list[np.random.SFC64]:
    """One stream of random bits per task for one tensor: independent of the order in which tensors are merged."""
    return [np.random.SFC64(np.random.SeedSequence((seed % 2**64, zlib.crc32(name.encode()), k))) for k in range(count)]


def _bits(draw: np.random.SFC64, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Uniform 16-bit integers."""
    count = int(np.prod(shape))
    return draw.random_raw(-(-count // 4)).view(np.uint16)[:count].reshape(shape)
