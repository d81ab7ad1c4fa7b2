"""What a trim by magnitude keeps of a task vector: exactly the share that is asked for, found in a few streamed passes.

Many entries may have the magnitude at which the share ends (differences of bf16 numbers take few values). Of these the first
are kept, in the order of the tensors and of the entries of each, as a stable sort by magnitude would have it.

Of positive floats the bit patterns are in the order of the numbers. So numbers are counted by their pattern, a histogram says
in which cell the wanted one lies, and if a cell holds several patterns, the next pass counts those (a radix select). Memory is
bounded, whatever the size of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from paretomerge.experts.experts import Experts
from paretomerge.weights.lazy import matrix_shape

_GATHER = 1 << 18
"""Up to this many entries a task the magnitudes are simply collected."""
_SAMPLE = 1 << 22
"""Entries a task that the sample has, about, at most."""
_CELLS = 1 << 18
"""Of a histogram: as many patterns as there are in a bracket of ordinary width."""
_COLLECTED = 1 << 20
"""Entries that are collected before they are counted."""

Bracket = tuple[float, float]
"""Magnitudes between which the wanted one lies, both included."""


class Threshold(NamedTuple):
    """Where a trim ends: every entry of a larger magnitude is kept, and of those that have this one the first few."""

    magnitude: float
    ties: Mapping[str, int] | None = None
    """Name of a tensor -> how many of its entries that have this magnitude are kept, the first (none: 0). None: all are."""

    def in_tensor(self, name: str) -> float:
        """How many entries of this magnitude are kept in a tensor."""
        return math.inf if self.ties is None else self.ties.get(name, 0)


def magnitude_thresholds(experts: Experts, names: Sequence[str], density: Sequence[float]) -> list[Threshold]:
    """For each task k what keeps the ⌊density_k · N⌋ largest of the N entries |v_k| of the named tensors (one at the least).

    A sample of rows brackets each threshold; one pass over the data then counts what lies above the bracket, and by its bits
    what lies inside, about one entry in a hundred. If that does not single out a number, or not all entries that have it are
    kept and it must be known which tensors they are in, another pass looks at what is left. A bracket that missed is widened.

    Args:
        experts: base and experts.
        names: of tensors, in the order in which equal entries are kept.
        density: for each task.
    """
    total = sum(experts.infos[name].numel for name in names)
    wanted = [min(total, max(math.floor(d * total), int(d > 0))) for d in density]
    settled = {k: Threshold(math.inf if count == 0 else 0.0) for k, count in enumerate(wanted) if count in (0, total)}
    if total <= _GATHER:
        magnitudes = _sample(experts, names, stride=1)
        sizes = [experts.infos[name].numel for name in names]
        open_tasks = [k for k in range(len(wanted)) if k not in settled]
        settled |= {k: _sorted(magnitudes[k], wanted[k], names, sizes) for k in open_tasks}
    sample: list[NDArray[np.floating]] | None = None
    half_width, narrower = 0.005, dict[int, Bracket]()
    while len(settled) < len(wanted):
        open_tasks = [k for k in range(len(wanted)) if k not in settled]
        if sample is None:
            sample = [np.sort(m) for m in _sample(experts, names, stride=max(32, total // _SAMPLE))]
        brackets = {k: narrower.get(k) or _bracket(sample[k], 1 - wanted[k] / total, half_width) for k in open_tasks}
        found, narrower = _select(experts, names, wanted, brackets)
        settled.update(found)
        # what is not even between 0 and ∞ is NaN: nothing is trimmed then, and the merge will name the tensor
        everything = [k for k, bracket in brackets.items() if bracket == (0.0, math.inf)]
        settled.update({k: Threshold(math.nan) for k in everything if k not in found and k not in narrower})
        half_width *= 8
    return [settled[k] for k in range(len(wanted))]


def _sample(experts: Experts, names: Sequence[str], stride: int) -> list[NDArray[np.floating]]:
    """|v_k| on every ``stride``-th row of each tensor, one array per task."""
    parts: list[list[NDArray[np.floating]]] = [[] for _ in experts.experts]
    for name in names:
        n_rows, columns = matrix_shape(experts.infos[name].shape)
        rows = slice(0, n_rows, max(1, min(stride, n_rows)))
        base = experts.base.matrix(name)[rows].to(experts.wide(name))
        out = torch.empty_like(base)
        for part, expert in zip(parts, experts.experts, strict=True):
            fill = expert.rows(name, columns)
            fill(rows, base, out) if fill else out.zero_()
            part.append(out.abs().flatten().numpy())
    return [np.concatenate(part) for part in parts]


def _bracket(sample: NDArray[np.floating], quantile: float, half_width: float) -> Bracket:
    """Magnitudes between which the ``quantile`` of the whole lies, most probably."""
    last = len(sample) - 1
    low = math.floor((quantile - half_width) * last)
    high = math.ceil((quantile + half_width) * last)
    return (float(sample[low]) if low > 0 else 0.0), (float(sample[high]) if high < last else math.inf)


def _select(
    experts: Experts, names: Sequence[str], wanted: Sequence[int], brackets: dict[int, Bracket]
) -> tuple[dict[int, Threshold], dict[int, Bracket]]:
    """From one pass over the data, of the tasks whose bracket is right: the thresholds, and the narrower brackets of others."""
    above = dict.fromkeys(brackets, 0)
    at_high: dict[int, dict[str, int]] = {k: dict.fromkeys(names, 0) for k in brackets}
    at_low: dict[int, dict[str, int]] = {k: dict.fromkeys(names, 0) for k in brackets}
    wide = any(experts.wide(name) == torch.float64 for name in names)
    dtype: np.dtype[np.floating] = np.dtype(np.float64) if wide else np.dtype(np.float32)
    inside = {k: _Histogram(low, high, dtype) for k, (low, high) in brackets.items()}
    ends = {k: tuple(np.array(bracket, dtype)) for k, bracket in brackets.items()}  # typed: a tensor may be narrower
    for name in names:
        for _, _, task_vectors in experts.chunks(name):
            for k, (low, high) in ends.items():
                size = task_vectors[k].abs_().numpy()
                above[k] += int(np.count_nonzero(size > high))
                # many equal values (bf16 differences) may sit at an end: they are counted, not collected
                at_high[k][name] += int(np.count_nonzero(size == high))
                if low < high:
                    at_low[k][name] += int(np.count_nonzero(size == low))
                    inside[k].add(size[(size > low) & (size < high)])
    found, narrower = dict[int, Threshold](), dict[int, Bracket]()
    for k, (low, high) in brackets.items():
        rank = wanted[k] - above[k]  # among what is not above the bracket
        below_high = rank - sum(at_high[k].values())
        below_inside = below_high - inside[k].total
        if rank > 0 >= below_high:
            found[k] = Threshold(high, _first(at_high[k], rank))
        elif below_high > 0 >= below_inside:
            first, last, rank_in_cell, count = inside[k].cell_of(below_high)
            if first < last or (rank_in_cell < count and len(names) > 1):
                narrower[k] = first, last
            else:
                found[k] = Threshold(first, None if rank_in_cell == count else {names[0]: rank_in_cell})
        elif 0 < below_inside <= sum(at_low[k].values()):
            found[k] = Threshold(low, _first(at_low[k], below_inside))
    return found, narrower


def _first(counts: Mapping[str, int], kept: int) -> dict[str, int] | None:
    """Name -> how many are kept, of as many equal entries in each tensor: the first ``kept`` of them all. None: all are."""
    if kept == sum(counts.values()):
        return None
    shares = {}
    for name, count in counts.items():
        if share := min(count, kept):
            shares[name], kept = share, kept - share
    return shares


class _Histogram:
    """Counts of magnitudes between two others, in cells of as many neighbouring bit patterns each."""

    def __init__(self, low: float, high: float, dtype: np.dtype[np.floating]) -> None:
        self._float, self._int = dtype, np.dtype(f"i{dtype.itemsize}")
        self._first, self._last = (int(np.array(end, dtype).view(self._int)) for end in (low, high))
        width = max(0, self._last - self._first)  # NaN, which nothing lies beside, may be an end
        self._shift = max(0, width.bit_length() - (_CELLS.bit_length() - 1))
        self._counts = np.zeros((width >> self._shift) + 1, np.int64)
        self._parts: list[NDArray[np.floating]] = []
        self._collected = 0
        self.total = 0

    def add(self, magnitudes: NDArray[np.floating]) -> None:
        """Magnitudes between the two."""
        self._parts.append(magnitudes)
        self._collected += len(magnitudes)
        self.total += len(magnitudes)
        if self._collected > _COLLECTED:
            self._count()

    def cell_of(self, rank: int) -> tuple[float, float, int, int]:
        """Of the cell in which the ``rank``-th largest (1: the largest) lies: its ends, the rank in it, and its count."""
        self._count()
        from_above = self._counts[::-1].cumsum()
        place = int(np.searchsorted(from_above, rank))
        cell = len(self._counts) - 1 - place
        first = self._first + (cell << self._shift)
        last = min(self._last, first + (1 << self._shift) - 1)
        low, high = np.array([first, last], self._int).view(self._float).tolist()
        count = int(self._counts[cell])
        return low, high, rank - int(from_above[place]) + count, count

    def _count(self) -> None:
        if self._parts:
            patterns = np.concatenate(self._parts).astype(self._float, copy=False).view(self._int)
            self._counts += np.bincount((patterns - self._first) >> self._shift, minlength=len(self._counts))
        self._parts, self._collected = [], 0


def _sorted(values: NDArray[np.floating], count: int, names: Sequence[str], sizes: Sequence[int]) -> Threshold:
    """The same from all magnitudes, those of one tensor after those of another."""
    magnitude = np.partition(values, len(values) - count)[len(values) - count]
    each = np.split(values == magnitude, np.cumsum(sizes)[:-1])
    equal = {name: int(np.count_nonzero(part)) for name, part in zip(names, each, strict=True)}
    return Threshold(float(magnitude), _first(equal, count - int(np.count_nonzero(values > magnitude))))
