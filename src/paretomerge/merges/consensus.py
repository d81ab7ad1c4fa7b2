"""Sign election and disjoint mean: the second half of TIES, shared by every merge that ends so."""

from __future__ import annotations

import torch
from torch import Tensor

from paretomerge.weights.vectors import weighted_sum


def elect_and_merge(v: Tensor, weights: Tensor, *, normalize: bool = True) -> Tensor:
    """Elect each entry's sign, then combine the entries that agree (Yadav et al. 2023, steps 2 and 3).

        s = sign(Σ_k w_k v_k),   A = {k : sign(w_k v_k) = s},   Σ_{k∈A} w_k v_k / Σ_{k∈A} |w_k|

    Args:
        v: sparse task vectors, (K, m, n); zero entries take no part. Overwritten.
        weights: w, (K, 1, 1).
        normalize: divide ("disjoint mean"); otherwise the plain sum of those that agree.

    Returns:
        (m, n); zero where nothing is left or the votes are even.
    """
    # With p and q the sums of the positive and of the negative terms, Σ wv = p + q and Σ|wv| = p − q; the same trick
    # on signs counts the voters. A few passes of plain arithmetic: boolean masks cost five times as much on a CPU.
    weights = weights.to(v.dtype)
    ones = torch.ones_like(weights)
    u = v.mul_(weights)
    total = weighted_sum(u, ones)
    sign = total.sign()
    size = u.abs()
    agreeing = weighted_sum(size, ones).mul_(sign).add_(total).div_(2)  # p where s = +1, q where s = −1, else 0
    if not normalize:
        return agreeing
    strength = weights.abs()
    voters = weighted_sum(u.sign_(), strength).mul_(sign).add_(weighted_sum(size.sign_(), strength)).div_(2)
    return agreeing.div_(voters.clamp_(min=torch.finfo(v.dtype).tiny))
