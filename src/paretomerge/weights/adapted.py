"""A base plus thin products, θ₀ + L R for some matrices: what LoRA experts are, and what sums of them stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.weights.lazy import TensorInfo, Weights
from paretomerge.weights.low_rank import LowRank, side_by_side

_ENTRIES = 1 << 22
"""Entries of a matrix that are computed at a time."""


class Adapted(Weights):
    """θ₀ + L R: ``origin`` is θ₀, and ``pair(name)`` gives the factors of the tensors named in ``changed``.

    The rest of the origin is handed on as it is, so a model of any size is known by a reference to it and small factors.
    """

    def __init__(
        self,
        origin: Weights,
        infos: dict[str, TensorInfo],
        changed: Collection[str],
        pair: Callable[[str], LowRank],
        not_finite: Callable[[str], UserError],
    ) -> None:
        """``infos``: what is stored of the sum; ``not_finite``: the error for a tensor that has NaN or infinity in it."""
        self.origin = origin
        self.changed = frozenset(changed)
        self.pair = pair
        self.not_finite = not_finite

        def read(name: str) -> Tensor:
            return self.copied(name, infos[name].dtype) if name in self.changed else origin[name].to(infos[name].dtype)

        def parts(name: str) -> Iterator[Tensor]:
            return self._sum(name) if name in self.changed else (part.to(infos[name].dtype) for part in origin.parts(name))

        super().__init__(infos, read, parts)

    def _sum(self, name: str) -> Iterator[Tensor]:
        info, start, (left, right) = self.infos[name], self.origin.matrix(name), self.pair(name)
        wide = torch.float64 if self.origin.infos[name].dtype == torch.float64 else torch.float32
        step = max(1, _ENTRIES // max(1, info.shape[1]))
        for first in range(0, info.shape[0], step):
            rows = slice(first, first + step)
            part = torch.addmm(start[rows].to(wide), left[rows].to(wide), right.to(wide)).to(info.dtype)
            if not torch.isfinite(part.sum(dtype=wide)) and not torch.isfinite(part.to(wide)).all():
                raise self.not_finite(name)
            yield part

    def plus(self, names: Collection[str], other: Callable[[str], LowRank]) -> Adapted:
        """The same with more products added; where both have the same right factor, as sums of adapters do, the rank stays."""

        def pair(name: str) -> LowRank:
            if name not in self.changed:
                return other(name)
            first = self.pair(name)
            if name not in names:
                return first
            second = other(name)
            if torch.equal(first.right, second.right):
                return LowRank(first.left + second.left, first.right)
            return side_by_side([first, second])

        return Adapted(self.origin, self.infos, self.changed | frozenset(names), pair, self.not_finite)
