"""How far each task's share moves each tensor: a front seen by depth and by kind of matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.sets.pareto_set import ParetoSet

_MOST = 4 * 10**9
"""Entries, over all tasks, that are computed for a set whose changes are dense: beyond that it takes minutes."""
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


class Changes(NamedTuple):
    """Root mean squares of W(γ) − W(equal), one-hot γ, grouped."""

    tasks: tuple[str, ...]
    by_layer: dict[str, list[float]]
    """Layer -> one number for each task."""
    by_kind: dict[str, list[float]]
    """Name of the matrix, without its layer -> the same."""


def changes(of: ParetoSet) -> Changes | None:
    """rms(W(only:k) − W(equal)) of every varying tensor, then over the tensors of a layer and of a kind.

    Of thin products ‖L R‖_F² = ⟨LᵀL, RRᵀ⟩, so no full matrix is made. None for a dense set that is too large to look at.
    """
    tasks = of.tasks
    infos = of.base.infos
    numbers = {name: infos[name].numel for name in of.varying}
    if not numbers or (not of.low_rank and len(tasks) * sum(numbers.values()) > _MOST):
        return None
    corners = [of.shift(torch.tensor(preferences.one_hot(len(tasks), k), dtype=torch.float64)) for k in range(len(tasks))]
    squares: dict[str, list[float]] = {}
    for name in of.varying:
        each = []
        for shift in corners:
            if (product := shift.pair(name)) is not None:
                left, right = (factor.double() for factor in product)
                each.append(float(((left.T @ left) * (right @ right.T)).sum()))
            else:
                each.append(float(shift.add_(name, torch.zeros(infos[name].shape)).double().square().sum()))
        if not all(map(math.isfinite, each)):
            raise UserError(f"{name}: moves by NaN or infinity: the front is damaged (paretomerge verify): fit it again")
        squares[name] = [max(0.0, square) for square in each]
    order = sorted(squares, key=lambda name: _depth(name))
    return Changes(tasks, _grouped(order, squares, numbers, _layer), _grouped(list(squares), squares, numbers, _kind))


def _grouped(
    order: list[str], squares: dict[str, list[float]], numbers: dict[str, int], group: Callable[[str], str]
) -> dict[str, list[float]]:
    sums: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for name in order:
        key = group(name)
        sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * len(squares[name])), squares[name], strict=True)]
        counts[key] = counts.get(key, 0) + numbers[name]
    return {key: [math.sqrt(value / max(1, counts[key])) for value in each] for key, each in sums.items()}


def _depth(name: str) -> tuple[int, str, int]:
    """Where a tensor is: what comes before and after the layers is with its own name."""
    found = _NUMBER.search(name)
    return (1, name[: found.start()], int(found[0])) if found else (0, name, 0)


def _layer(name: str) -> str:
    """``model.layers.3.mlp.up.weight`` -> ``layers.3``."""
    found = _NUMBER.search(name)
    if not found:
        return name.removesuffix(".weight")
    return f"{name[: found.start()].rstrip('.').rpartition('.')[2]}.{found[0]}"


def _kind(name: str) -> str:
    found = _NUMBER.search(name)
    return (name[found.end() :].lstrip(".") if found else name).removesuffix(".weight")
