"""The magnitude that a given share of a task vector's entries exceed: exact, in one streamed pass, without sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from paretomerge.weights.experts import Experts
from paretomerge.weights.lazy import matrix_shape

_GATHER = 1 << 18
"""Up to this many entries a task the magnitudes are simply collected."""


def magnitude_thresholds(experts: Experts, names: Sequence[str], density: Sequence[float]) -> list[float]:
    """t_k, the ⌊density_k · N⌋-th largest |v_k| of the N entries of the named tensors (0 for all; at least one is kept).

    A sample of rows brackets each t_k; one pass over the data then counts what lies above the bracket and keeps what
    lies inside, about one entry in a hundred, from which t_k is selected exactly. A bracket that missed is widened.
    """
    total = sum(experts.infos[name].numel for name in names)
    wanted = [min(total, max(math.floor(d * total), int(d > 0))) for d in density]
    settled = {k: math.inf if count == 0 else 0.0 for k, count in enumerate(wanted) if count in (0, total)}
    if total <= _GATHER:
        magnitudes = _sample(experts, names, stride=1)
        settled = {k: _largest(magnitudes[k], count) for k, count in enumerate(wanted) if k not in settled} | settled
    sample: list[NDArray[np.floating]] | None = None
    half_width = 0.005 * min(1.0, math.sqrt(1e8 / max(1, total)))
    while len(settled) < len(wanted):
        open_tasks = [k for k in range(len(wanted)) if k not in settled]
        if sample is None:
            sample = [np.sort(m) for m in _sample(experts, names, stride=32)]
        brackets = {k: _bracket(sample[k], 1 - wanted[k] / total, half_width) for k in open_tasks}
        # what is not even between 0 and ∞ is NaN: nothing is trimmed then, and the merge will name the tensor
        settled.update({k: math.nan for k, bracket in brackets.items() if bracket == (0.0, math.inf)})
        settled.update(_select(experts, names, wanted, brackets))
        half_width *= 8
    return [settled[k] for k in range(len(wanted))]


def _sample(experts: Experts, names: Sequence[str], stride: int) -> list[NDArray[np.floating]]:
    """|v_k| on every ``stride``-th row of each tensor, one array per task."""
    parts: list[list[NDArray[np.floating]]] = [[] for _ in experts.experts]
    for name in names:
        n_rows, columns = matrix_shape(experts.infos[name].shape)
        rows = slice(0, n_rows, max(1, min(stride, n_rows)))
        base = experts.base[name].reshape(n_rows, columns)[rows].to(experts.wide(name))
        out = torch.empty_like(base)
        for part, expert in zip(parts, experts.experts, strict=True):
            fill = expert.rows(name, columns)
            fill(rows, base, out) if fill else out.zero_()
            part.append(out.abs().flatten().numpy())
    return [np.concatenate(part) for part in parts]


def _bracket(sample: NDArray[np.floating], quantile: float, half_width: float) -> tuple[float, float]:
    """Magnitudes between which the ``quantile`` of the whole lies, most probably."""
    last = len(sample) - 1
    low = math.floor((quantile - half_width) * last)
    high = math.ceil((quantile + half_width) * last)
    return (float(sample[low]) if low > 0 else 0.0), (float(sample[high]) if high < last else math.inf)


def _select(
    experts: Experts, names: Sequence[str], wanted: Sequence[int], brackets: dict[int, tuple[float, float]]
) -> dict[int, float]:
    """The thresholds that do lie in their brackets, from one pass over the data."""
    above = dict.fromkeys(brackets, 0)
    at_high = dict.fromkeys(brackets, 0)
    at_low = dict.fromkeys(brackets, 0)
    inside: dict[int, list[NDArray[np.floating]]] = {k: [] for k in brackets}
    for name in names:
        for _, _, task_vectors in experts.chunks(name):
            for k, (low, high) in brackets.items():
                size = task_vectors[k].abs_().numpy()
                above[k] += int(np.count_nonzero(size > high))
                # many equal values (bf16 differences) may sit at an end: they are counted, not collected
                at_high[k] += int(np.count_nonzero(size == high))
                at_low[k] += int(np.count_nonzero(size == low)) if low < high else 0
                inside[k].append(size[(size > low) & (size < high)])
    found = {}
    for k, (low, high) in brackets.items():
        collected = np.concatenate(inside[k])
        rank = wanted[k] - above[k]
        if 0 < rank <= at_high[k]:
            found[k] = high
        elif 0 < rank - at_high[k] <= len(collected):
            found[k] = _largest(collected, rank - at_high[k])
        elif 0 < rank - at_high[k] - len(collected) <= at_low[k]:
            found[k] = low
    return found


def _largest(values: NDArray[np.floating], rank: int) -> float:
    """The ``rank``-th largest value (1: the largest)."""
    return float(np.partition(values, len(values) - rank)[len(values) - rank])
