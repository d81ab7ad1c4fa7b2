"""The K task vectors of one tensor, stacked or as thin products, and the two things that are done with them.

    θ₀ + Σ_k c_k v_k        and        ⟨v_k, g⟩ for each k

Of LoRA experts v_k = L_k R_k, and no v_k is formed: Σ_k c_k L_k R_k = [c_1 L_1 … c_K L_K] [R_1; …; R_K] is one product, and
⟨L_k R_k, g⟩ is the trace of the k-th block of Lᵀ g Rᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretomerge.weights.adapted import Pair

_BLOCK = 1 << 16
"""Columns of task vectors stored in bf16 that are made fp32 at a time: K of them stay in cache, and nothing large is copied."""


@dataclass(frozen=True)
class Thin:
    """K products of any ranks r_k side by side: ``left`` (m, s), ``right`` (s, n), s = Σ_k r_k."""

    left: Tensor
    right: Tensor
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Thin:
        """K pairs, as they come."""
        ranks = tuple(pair.rank for pair in pairs)
        return cls(torch.cat([pair.left for pair in pairs], 1), torch.cat([pair.right for pair in pairs]), ranks)

    @classmethod
    def of_stacked(cls, left: Tensor, right: Tensor) -> Thin:
        """(K, m, R) and (K, R, n)."""
        return cls(left.transpose(0, 1).flatten(1), right.flatten(0, 1), (left.shape[2],) * len(left))

    def stacked(self) -> tuple[Tensor, Tensor]:
        """(K, m, R) and (K, R, n): all of the largest rank, the smaller ones filled up with zeros."""
        largest = max(self.ranks)
        left = self.left.new_zeros(len(self), self.left.shape[0], largest)
        right = self.right.new_zeros(len(self), largest, self.right.shape[1])
        for k, (of_left, of_right) in enumerate(zip(self.left.split(self.ranks, 1), self.right.split(self.ranks), strict=True)):
            left[k, :, : self.ranks[k]] = of_left
            right[k, : self.ranks[k]] = of_right
        return left, right

    def __len__(self) -> int:
        return len(self.ranks)

    def to(self, device: torch.device, dtype: torch.dtype) -> Thin:
        return Thin(self.left.to(device, dtype), self.right.to(device, dtype), self.ranks)

    def weighted(self, c: Tensor) -> Tensor:
        """[c_1 L_1 … c_K L_K], for c (K,)."""
        return self.left * c.to(self.left)[self._owners()]

    def _owners(self) -> Tensor:
        """Whose each column is, (s,)."""
        return torch.repeat_interleave(torch.tensor(self.ranks, device=self.left.device))

    def inner(self, g: Tensor) -> Tensor:
        """⟨L_k R_k, g⟩ for each k, (K,); g (m, n)."""
        m, n = g.shape
        diagonal = ((g @ self.right.T) * self.left).sum(0) if m < n else ((self.left.T @ g) * self.right).sum(1)
        return diagonal.new_zeros(len(self)).index_add_(0, self._owners(), diagonal)


Vectors = Tensor | Thin
"""The K task vectors of a tensor: (K, numel), fp32, or bf16 to halve the memory; or thin."""


def varies(v: Vectors) -> bool:
    """Whether any of them may differ from zero."""
    return bool(v.left.any() and v.right.any()) if isinstance(v, Thin) else bool(v.any())


def add(base: Tensor, v: Vectors, c: Tensor, out: Tensor | None = None) -> Tensor:
    """base + Σ_k c_k v_k, of the base's shape and dtype.

    Args:
        base: θ₀.
        v: the task vectors.
        c: (K,), in the base's dtype.
        out: a contiguous tensor to write to (it may be the base); None: a new one.
    """
    out = torch.empty_like(base, memory_format=torch.contiguous_format) if out is None else out
    if isinstance(v, Thin):
        shape = v.left.shape[0], v.right.shape[1]
        torch.addmm(base.reshape(shape), v.weighted(c), v.right, out=out.view(shape))
        return out
    start, flat = base.flatten(), out.view(-1)
    for columns, part in _blocks(v, base.dtype):
        torch.addmv(start[columns], part.T, c, out=flat[columns])
    return out


def inner(v: Vectors, g: Tensor) -> Tensor:
    """⟨v_k, g⟩ for each k, (K,) in g's dtype; g has the tensor's shape."""
    if isinstance(v, Thin):
        return v.inner(g.reshape(v.left.shape[0], v.right.shape[1]))
    found, flat = g.new_zeros(len(v)), g.flatten()
    for columns, part in _blocks(v, g.dtype):
        found += torch.mv(part, flat[columns])
    return found


def _blocks(v: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Stacked task vectors (K, n) in a dtype, with their columns: whole, or block by block if they are stored as bf16.

    Products in bf16 are ten times slower on a processor, and would round the sums.
    """
    if v.dtype == dtype:
        yield slice(None), v
        return
    for start in range(0, v.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        yield columns, v[:, columns].to(dtype)
