"""The K task vectors of one tensor, stacked or as thin products, and what is done with them.

    θ₀ + Σ_k c_k v_k        and        ⟨v_k, g⟩ for each k

The sum has two forms: ``added`` computes it from θ₀, so it does not drift however often a model is moved, and reads all v_k at
once; ``add_`` adds to what is there, one v_k at a time, and skips those whose coefficient is zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from paretomerge.weights.low_rank import LowRank

_BLOCK = 1 << 16
"""Columns of task vectors stored in bf16 that are made fp32 at a time: K of them stay in cache, and nothing large is copied."""

Vectors = Tensor | LowRank
"""The K task vectors of a tensor: (K, numel) or (K, *shape), fp32, or bf16 to halve the memory; or K thin products."""


def number(v: Vectors) -> int:
    """K."""
    return v.count if isinstance(v, LowRank) else len(v)


def varies(v: Vectors) -> bool:
    """Whether any of them may differ from zero."""
    return bool(v.left.any() and v.right.any()) if isinstance(v, LowRank) else bool(v.any())


def weighted_sum(v: Tensor, w: Tensor) -> Tensor:
    """Σ_k w_k v_k as one matrix-vector product: v (K, m, n), w (K, 1, 1) -> (m, n)."""
    return (w.view(1, -1).to(v.dtype) @ v.reshape(len(v), -1)).view(v.shape[1:])


def add_(tensor: Tensor, v: Vectors, c: Tensor) -> Tensor:
    """Add Σ_k c_k v_k to ``tensor``, in place.

    Args:
        tensor: a floating-point one, on any device, of the shape of a v_k.
        v: the task vectors, (K, *shape) if they are stacked; each is cast to the tensor's dtype.
        c: (K,), in fp64.
    """
    if isinstance(v, LowRank):
        return v.to(tensor.device, tensor.dtype).weighted(c).add_to_(tensor)
    for v_k, c_k in zip(v, c.tolist(), strict=True):
        if c_k:
            tensor.add_(v_k.to(tensor.device, tensor.dtype), alpha=c_k)
    return tensor


def added(base: Tensor, v: Vectors, c: Tensor, out: Tensor | None = None) -> Tensor:
    """base + Σ_k c_k v_k, computed in fp32 (fp64 for a result in fp64).

    Args:
        base: θ₀.
        v: the task vectors, on the base's device.
        c: (K,).
        out: a contiguous tensor of the base's shape and any floating-point dtype to write to (of products: of the base's dtype;
            it may be the base); None: a new one like the base.
    """
    out = torch.empty_like(base, memory_format=torch.contiguous_format) if out is None else out
    if isinstance(v, LowRank):
        left, right = v.weighted(c)
        torch.addmm(base.reshape(v.shape), left, right, out=out.view(v.shape))
        return out
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    flat, start, stacked, c = out.view(-1), base.reshape(-1), v.reshape(len(v), -1), c.to(out.device, wide)
    if stacked.dtype == wide == flat.dtype == start.dtype:
        torch.addmv(start, stacked.T, c, out=flat)
        return out
    for columns in _blocks(stacked, None):
        flat[columns].copy_(torch.addmv(start[columns].to(wide), stacked[:, columns].to(wide).T, c))
    return out


def inner(v: Vectors, g: Tensor) -> Tensor:
    """⟨v_k, g⟩ for each k, (K,) in g's dtype; g has the tensor's shape."""
    if isinstance(v, LowRank):
        return v.inner(g.reshape(v.shape))
    sums, flat = g.new_zeros(len(v)), g.flatten()
    for columns in _blocks(v, g.dtype):
        sums += torch.mv(v[:, columns].to(g.dtype), flat[columns])
    return sums


def _blocks(v: Tensor, dtype: torch.dtype | None) -> Iterator[slice]:
    """Columns of stacked task vectors (K, n): all at once if they have this dtype, otherwise block by block.

    Products in bf16 are ten times slower on a processor, and would round the sums.
    """
    if v.dtype == dtype:
        yield slice(None)
        return
    for start in range(0, v.shape[1], _BLOCK):
        yield slice(start, start + _BLOCK)
