"""Merges in the singular vectors of the task matrices: TSV-Merging and Iso-C."""

from __future__ import annotations

import torch
from torch import Tensor

from paretomerge.decompositions import svd
from paretomerge.experts.experts import Experts
from paretomerge.merges.streaming import by_tensor
from paretomerge.weights.lazy import Weights
from paretomerge.weights.roles import is_matrix


def tsv(experts: Experts, *, scale: float = 1.0) -> Weights:
    """TSV-Merging (Gargiulo et al. 2025): θ₀ + λ U⊥ Σ V⊥ᵀ for matrices, the mean task vector for all else.

    Each v_k gives its top ⌊q/K⌋ singular triplets (q the full rank); the stacked U = [U_1 … U_K] is replaced by the nearest
    matrix with orthonormal columns, U⊥ = P Qᵀ from its SVD P S Qᵀ, which takes the interference out, and so is V.

    Args:
        experts: base and experts.
        scale: Coefficient λ of the merged task vector.

    Needs: no data.
    Stores: one model.
    Paper: Gargiulo et al. 2025, arXiv 2412.00081.
    """

    def combine(name: str, base: Tensor, v: Tensor) -> Tensor:
        if not is_matrix(name, base.shape):
            return base + scale * v.mean(0)
        u, s, v_t = orthogonal_triplets(v)
        return base + scale * (u * s) @ v_t

    return by_tensor(experts, combine)


def orthogonal_triplets(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U⊥ (m, R), Σ (R,) and V⊥ᵀ (R, n) of task matrices (K, m, n): K blocks of R/K = ⌊min(m, n)/K⌋ (at least 1), one a task."""
    kept = max(1, min(v.shape[1:]) // len(v))
    triplets = [_svd(v_k, kept) for v_k in v]
    u, s, v_t = (torch.cat(parts, dim) for parts, dim in zip(zip(*triplets, strict=True), (1, 0, 0), strict=True))
    return _nearest_orthonormal(u), s, _nearest_orthonormal(v_t.T).T


def iso_c(experts: Experts, *, scale: float = 1.0) -> Weights:
    """Iso-C (Marczak et al. 2025): θ₀ + λ σ̄ U Vᵀ with Σ_k v_k = U Σ Vᵀ and σ̄ the mean singular value; else the mean v.

    Args:
        experts: base and experts.
        scale: Coefficient λ of the merged task vector. The paper tunes it on validation data.

    Needs: no data.
    Stores: one model.
    Paper: Marczak et al. 2025, arXiv 2502.04959.
    """

    def combine(name: str, base: Tensor, v: Tensor) -> Tensor:
        if not is_matrix(name, base.shape):
            return base + scale * v.mean(0)
        u, s, v_t = svd(v.sum(0))
        return base + scale * s.mean() * (u @ v_t)

    return by_tensor(experts, combine)


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v_t = svd(matrix)
    return u[:, :rank], s[:rank], v_t[:rank]


def _nearest_orthonormal(matrix: Tensor) -> Tensor:
    """The closest matrix with orthonormal columns (Procrustes): P Qᵀ for the SVD P S Qᵀ."""
    p, _, q_t = svd(matrix)
    return p @ q_t
