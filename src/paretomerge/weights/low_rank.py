"""Thin products L R: what a LoRA adapter adds to a matrix, a task vector of low rank, a change between two preferences.

Σ_k c_k L_k R_k = [c_1 L_1 … c_K L_K] [R_1; …; R_K]        one product, whatever the ranks
⟨L_k R_k, g⟩                                                the trace of the k-th block of Lᵀ g Rᵀ
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from paretomerge.decompositions import qr, svd


@dataclass(frozen=True)
class LowRank:
    """K products of any ranks side by side; the dense matrices (m, n) are never formed.

    Attributes:
        left: L, (m, s), as the base stores the matrix; s is the sum of the ranks and may be 0.
        right: R, (s, n).
        owners: (s,) which of the K products each column of L and row of R belongs to; None: there is one product.
        count: K.
    """

    left: Tensor
    right: Tensor
    owners: Tensor | None = None
    count: int = 1

    @classmethod
    def beside(cls, products: Sequence[LowRank]) -> LowRank:
        """K single products of one shape (m, n), in their order."""
        owners = torch.tensor([k for k, product in enumerate(products) for _ in range(product.rank)], dtype=torch.long)
        left, right = torch.cat([p.left for p in products], 1), torch.cat([p.right for p in products])
        return cls(left, right, owners.to(left.device), len(products))

    @classmethod
    def below(cls, products: Sequence[LowRank]) -> LowRank:
        """The K products of matrices that are stacked by their rows: L is block diagonal."""
        owners = torch.cat([product._owners for product in products])
        left, right = torch.block_diag(*(p.left for p in products)), torch.cat([p.right for p in products])
        return cls(left, right, owners, products[0].count)

    @classmethod
    def of_stacked(cls, left: Tensor, right: Tensor) -> LowRank:
        """K products of one rank R, from (K, m, R) and (K, R, n)."""
        count, _, rank = left.shape
        owners = torch.arange(count, device=left.device).repeat_interleave(rank)
        return cls(left.transpose(0, 1).flatten(1), right.flatten(0, 1), owners, count)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """(K, m, R) and (K, R, n): all of the largest rank, the smaller ones filled up with zeros."""
        columns = self.columns()
        largest = max(len(of_k) for of_k in columns)
        left = self.left.new_zeros(self.count, self.shape[0], largest)
        right = self.right.new_zeros(self.count, largest, self.shape[1])
        for k, of_k in enumerate(columns):
            left[k, :, : len(of_k)] = self.left[:, of_k]
            right[k, : len(of_k)] = self.right[of_k]
        return left, right

    def columns(self) -> list[Tensor]:
        """For each k the columns of L, and rows of R, that are its own."""
        return [(self._owners == k).nonzero()[:, 0] for k in range(self.count)]

    @property
    def _owners(self) -> Tensor:
        return torch.zeros(self.rank, dtype=torch.long, device=self.left.device) if self.owners is None else self.owners

    @property
    def rank(self) -> int:
        """s, of all products together."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def T(self) -> LowRank:
        """The transposes, for a base that stores Wᵀ."""
        return replace(self, left=self.right.T, right=self.left.T)

    def __iter__(self) -> Iterator[Tensor]:
        """``left, right = product``."""
        return iter((self.left, self.right))

    def finite(self) -> bool:
        """Whether neither factor has NaN or infinity in it."""
        return all(bool(factor.isfinite().all()) for factor in self)

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        owners = None if self.owners is None else self.owners.to(device)
        return LowRank(self.left.to(device, dtype), self.right.to(device, dtype), owners, self.count)

    def fp32(self) -> LowRank:
        return self.to(self.left.device, torch.float32)

    def with_rows(self, rows: int) -> LowRank:
        """The first ``rows`` rows of the matrices; rows that they lack are zero."""
        left = self.left[:rows]
        return replace(self, left=torch.cat([left, left.new_zeros(rows - len(left), self.rank)]))

    def rows(self, rows: slice) -> LowRank:
        """Some rows of the matrices."""
        return replace(self, left=self.left[rows])

    def weighted(self, c: Tensor | Sequence[float]) -> LowRank:
        """Σ_k c_k L_k R_k as one product, exactly; c (K,)."""
        weights = (c if isinstance(c, Tensor) else torch.tensor(c, dtype=torch.float64)).to(self.left)
        return LowRank(self.left * (weights if self.owners is None else weights[self.owners]), self.right)

    def inner(self, g: Tensor) -> Tensor:
        """⟨L_k R_k, g⟩ for each k, (K,); g (m, n)."""
        m, n = g.shape
        diagonal = ((g @ self.right.T) * self.left).sum(0) if m < n else ((self.left.T @ g) * self.right).sum(1)
        return diagonal.new_zeros(self.count).index_add_(0, self._owners, diagonal)

    def add_to_(self, tensor: Tensor) -> Tensor:
        """Add L R to a tensor of m · n entries (a convolution's kernel is its first dimension × the rest), in place."""
        left, right = (factor.to(tensor.device, tensor.dtype) for factor in self)
        if tensor.ndim == 2:
            return tensor.addmm_(left, right)
        if tensor.is_contiguous():
            tensor.view(self.shape).addmm_(left, right)
            return tensor
        return tensor.copy_(tensor.reshape(self.shape).addmm(left, right).view(tensor.shape))

    def truncated(self, rank: int) -> Truncated:
        """The best product of this rank (Eckart & Young 1936), or of its own if that is smaller.

        From QR decompositions of both factors and the SVD of an s × s matrix: the product itself is never formed.
        """
        q_left, r_left = qr(self.left.double())
        q_right, r_right = qr(self.right.double().T)
        u, s, v = svd(r_left @ r_right.T)
        root = s[:rank].sqrt()
        left, right = q_left @ u[:, : len(root)] * root, root[:, None] * (v[: len(root)] @ q_right.T)
        smaller = LowRank(left.float(), right.float())
        return Truncated(smaller, float(s[rank:].square().sum()), float(s.square().sum()))


class Truncated(NamedTuple):
    """A product of smaller rank, and what it lost: squared Frobenius norms of L R − L' R' and of L R."""

    product: LowRank
    lost: float
    total: float


def side_by_side(products: Sequence[LowRank], weights: Sequence[float] | None = None) -> LowRank:
    """Σ_k w_k L_k R_k of single products as one, exactly: factors side by side, the weights in L. fp32."""
    together = LowRank.beside([product.fp32() for product in products])
    return together.weighted([1.0] * len(products) if weights is None else weights)
