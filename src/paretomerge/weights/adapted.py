"""A base plus thin products, θ₀ + L R for some matrices: what LoRA experts are, and what sums of them stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from paretomerge.decompositions import qr, svd
from paretomerge.errors import UserError
from paretomerge.weights.lazy import TensorInfo, Weights

_ENTRIES = 1 << 22
"""Entries of a matrix that are computed at a time."""


class Pair(NamedTuple):
    """L (m, r) and R (r, n) of a product that is added to a matrix (m, n) as the base stores it; r may be 0."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]


def concatenated(pairs: Iterable[Pair], weights: Sequence[float] | None = None) -> Pair:
    """Σ_k w_k L_k R_k as one pair, exactly: factors side by side, the weights in L. fp32."""
    pairs = list(pairs)
    each = [1.0] * len(pairs) if weights is None else weights
    left = torch.cat([pair.left.float() * w for pair, w in zip(pairs, each, strict=True)], 1)
    return Pair(left, torch.cat([pair.right.float() for pair in pairs]))


class Compressed(NamedTuple):
    """A pair of smaller rank, and what it lost: squared Frobenius norms of L R − L' R' and of L R."""

    pair: Pair
    lost: float
    total: float


def compressed(pair: Pair, rank: int) -> Compressed:
    """The best pair of this rank (Eckart & Young 1936), or of the pair's own if that is smaller.

    From QR decompositions of both factors and the SVD of an r × r matrix: the product itself is never formed.
    """
    q_left, r_left = qr(pair.left.double())
    q_right, r_right = qr(pair.right.double().T)
    u, s, v = svd(r_left @ r_right.T)
    root = s[:rank].sqrt()
    smaller = Pair((q_left @ u[:, : len(root)] * root).float(), (root[:, None] * (v[: len(root)] @ q_right.T)).float())
    return Compressed(smaller, float(s[rank:].square().sum()), float(s.square().sum()))


class Adapted(Weights):
    """θ₀ + L R: ``origin`` is θ₀, and ``pair(name)`` gives the factors of the tensors named in ``changed``.

    The rest of the origin is handed on as it is, so a model of any size is known by a reference to it and small factors.
    """

    def __init__(
        self,
        origin: Weights,
        infos: dict[str, TensorInfo],
        changed: Collection[str],
        pair: Callable[[str], Pair],
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

    def plus(self, names: Collection[str], other: Callable[[str], Pair]) -> Adapted:
        """The same with more products added; where both have the same right factor, as sums of adapters do, the rank stays."""

        def pair(name: str) -> Pair:
            if name not in self.changed:
                return other(name)
            first = self.pair(name)
            if name not in names:
                return first
            second = other(name)
            if torch.equal(first.right, second.right):
                return Pair(first.left + second.left, first.right)
            return concatenated([first, second])

        return Adapted(self.origin, self.infos, self.changed | frozenset(names), pair, self.not_finite)
