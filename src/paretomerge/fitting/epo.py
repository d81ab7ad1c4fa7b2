"""Exact Pareto optimal search: a Pareto-optimal θ at which γ₁ S₁ = … = γ_K S_K (Mahapatra & Rajan 2020).

How far S is from that ray is its non-uniformity, and a says which objectives should fall (a_k > 0) or may rise to mend it:

    μ = KL(Ŝ ‖ 1/K) = Σ_k Ŝ_k log(K Ŝ_k),   Ŝ_k = γ_k S_k / Σ_j γ_j S_j,   a_k = γ_k (log(K Ŝ_k) − μ).

A step along Σ_k β_k ∇S_k lowers S_j by (Cβ)_j, C the K × K Gram matrix of the gradients; β is the solution of a small linear
program over the simplex:

    balance (μ > ε)   max βᵀCa   where no S_j that goes against the balance, (Ca)_j ≤ 0, rises faster than along a:
                      (Cβ)_j ≥ (Ca)_j; and those of largest γ_j S_j do not rise: (Cβ)_j ≥ 0
    descent (μ ≤ ε)   max Σ_j (Cβ)_j   with Cβ ≥ 0: none rises; and the balance may not get worse if that can be:
                      βᵀCa ≥ min(0, max_j (Ca)_j), left out where nothing fulfils it ("relaxed")

At the minimum of one objective its gradient is zero, and steps that start straight behind it end there, short of the ray.

Formulas and ε = 1e-4 are those of the authors' published program (github.com/dbmptr/EPOSearch). The point of least norm in the
convex hull of the gradients fulfils balance and relaxed descent, so only rounding can leave either without a
solution; the step is then γ's, and that is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretomerge.errors import UserError

Tell = Callable[[str, Any], object]
"""Told (what, value) about a step: its mode, its non-uniformity."""

_BY_ROUNDING = 1e-5
"""Objectives that cannot be negative come out so by this much, in fp32."""


def exact_pareto(losses: Tensor, gamma: Tensor, gram: Tensor, *, epsilon: float = 1e-4, tell: Tell | None = None) -> Tensor:
    """The weights β of an EPO step, (K,) fp64 that sum to 1; 0 for tasks with γ_k = 0 or a NaN loss, which take no part.

    Args:
        losses: S, (K,), not negative.
        gamma: (K,).
        gram: C, (K, K).
        epsilon: the non-uniformity above which a step balances.
        tell: is told the mode ("balance", "descent", "relaxed descent" or "linear: …") and the non-uniformity.

    Raises:
        UserError: a negative loss: γ_k S_k cannot be made equal then.
    """
    tell = tell or (lambda what, value: None)
    weights = torch.zeros(len(gamma), dtype=torch.float64)
    active = (gamma.cpu() > 0) & ~losses.cpu().isnan()
    if not active.any():
        return weights
    s, g = losses.cpu()[active].double().numpy(), gamma.cpu()[active].double().numpy()
    c = gram.detach().cpu().double()[active][:, active].numpy()
    if s.min() < -_BY_ROUNDING * max(1.0, float(np.abs(s).max())):
        raise UserError("scalarization epo needs objectives that are not negative: use another objective than infomax")
    mu, a = _balance(np.maximum(s, 0), g)
    tell("non_uniformity", mu)
    beta = _direction(s * g, a, c, balance=mu > epsilon, tell=tell)
    weights[active] = torch.from_numpy(g / g.sum() if beta is None else beta)
    return weights


def non_uniformity(losses: Tensor, gamma: Tensor) -> float:
    """μ of the tasks with γ_k > 0; 0 exactly where γ_k S_k is the same for all of them."""
    active = gamma > 0
    return _balance(losses[active].double().cpu().numpy(), gamma[active].double().cpu().numpy())[0]


def _balance(s: np.ndarray, g: np.ndarray) -> tuple[float, np.ndarray]:
    """μ and a; (K,) each. Objectives that are all 0 are balanced."""
    total = float((g * s).sum())
    if total <= 0:
        return 0.0, np.zeros_like(g)
    share = g * s / total
    log = np.log(np.maximum(share, np.finfo(float).tiny) * len(s))
    mu = float((share * log).sum())
    return mu, g * (log - mu)


def _direction(weighted: np.ndarray, a: np.ndarray, c: np.ndarray, *, balance: bool, tell: Tell) -> np.ndarray | None:
    """β, or None where rounding leaves the linear program without a solution."""
    scale = float(np.diag(c).max(initial=0))
    if scale <= 0 or len(c) == 1:  # every gradient is zero: nothing moves
        tell("mode", "descent")
        return None
    c = c / scale  # neither program changes: both sides are homogeneous in C
    ca = c @ a
    if balance:
        favoured = ca > 0
        bounds = np.where(favoured, -np.inf, np.minimum(ca, 0)) if favoured.any() else np.zeros_like(ca)
        bounds[weighted == weighted.max()] = 0
        tell("mode", "balance")
        return _solved(ca, c, bounds, tell)
    none_rises = np.zeros_like(ca)
    found = _solved(c.sum(0), np.vstack([c, ca]), np.append(none_rises, min(0.0, ca.max())), lambda what, value: None)
    tell("mode", "descent" if found is not None else "relaxed descent")
    return found if found is not None else _solved(c.sum(0), c, none_rises, tell)


def _solved(objective: np.ndarray, rows: np.ndarray, bounds: np.ndarray, tell: Tell) -> np.ndarray | None:
    """max objective · β over the simplex with rows β ≥ bounds."""
    from scipy.optimize import linprog

    kept = np.isfinite(bounds)
    n_tasks = len(objective)
    result = linprog(
        -objective / max(float(np.abs(objective).max()), np.finfo(float).tiny),
        A_ub=-rows[kept],
        b_ub=-bounds[kept],
        A_eq=np.ones((1, n_tasks)),
        b_eq=np.ones(1),
        bounds=(0, 1),
        method="highs",
    )
    if result.x is None or not np.isfinite(result.x).all():
        tell("mode", f"linear: {result.message}")
        return None
    beta: np.ndarray = np.maximum(result.x, 0)
    return beta / beta.sum()
