"""Spherical interpolation of two models."""

from __future__ import annotations

import math

import torch

from paretomerge.errors import UserError
from paretomerge.experts.experts import Experts
from paretomerge.merges.streaming import Rule, by_rows
from paretomerge.weights.lazy import Weights

_PARALLEL = 0.9995
"""Above this |cosine| the interpolation is linear: the sines that would divide it are too small (mergekit's value)."""


def slerp(experts: Experts, *, t: float = 0.5) -> Weights:
    """SLERP (Shoemake 1985), tensor by tensor: (sin((1−t)Ω) θ_1 + sin(tΩ) θ_2) / sin Ω, with Ω the angle between them.

    The base only names the tensors. Linear where θ_1 and θ_2 are nearly parallel, or one of them is zero.

    Args:
        experts: exactly two.
        t: Place between the two experts: 0 is the first, 1 the second.

    Raises:
        UserError: not two experts.

    Needs: no data; exactly two experts.
    Stores: one model.
    Paper: Shoemake 1985, Animating rotation with quaternion curves.
    """
    if len(experts) != 2:
        raise UserError(f"slerp interpolates between two experts, not {len(experts)}")

    def rule_for(name: str) -> Rule:
        products = torch.zeros(3, dtype=torch.float64)
        for _, base, v in experts.chunks(name):
            first, second = (v + base).flatten(1)
            products += torch.stack([first.dot(first), second.dot(second), first.dot(second)]).double()
        norms = math.sqrt(products[0] * products[1])
        cosine = float(products[2]) / norms if norms > 0 else 1.0
        if abs(cosine) > _PARALLEL:
            of_first, of_second = 1 - t, t
        else:
            omega = math.acos(cosine)
            of_first, of_second = math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
        # θ_i = θ₀ + v_i
        return lambda base, v: (base * (of_first + of_second)).add_(v[0], alpha=of_first).add_(v[1], alpha=of_second)

    return by_rows(experts, rule_for)
