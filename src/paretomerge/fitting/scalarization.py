"""From K objectives to one direction: the weights of the K small gradients, for linear and smooth Tchebycheff scalarisation.

Every function takes (losses (K,), γ (K,), gradients (K, P)) and returns weights w (K,) in fp64: the step goes along
Σ_k w_k ∇S_k. A task that was skipped has a NaN loss and a zero gradient, and gets weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from paretomerge.errors import UserError

Scalarization = Callable[[Tensor, Tensor, Tensor], Tensor]
Relative = Callable[[float, float], float]
"""(S_k, γ_k) -> log a_k, where w_k = a_k / Z with one Z for all tasks."""


def linear(losses: Tensor, gamma: Tensor, gradients: Tensor) -> Tensor:
    """Linear scalarisation, Σ_k γ_k S_k: w = γ."""
    return torch.where(losses.isnan(), 0, gamma).double()


def smooth_tchebycheff(losses: Tensor, gamma: Tensor, gradients: Tensor, *, mu: float = 0.1) -> Tensor:
    """Smooth Tchebycheff (Lin et al. 2024; Pareto Merging, eq. 9 with z = 0): the gradient of

        g_γ = μ log Σ_k exp(γ_k S_k / μ)   is   Σ_k w_k ∇S_k,   w_k = γ_k · softmax_k(γ_k S_k / μ).

    The softmax is centred, so no S_k overflows. A skipped task has γ_k ≈ 0 and stands in the sum with exp(0).
    """
    scaled = (gamma.double() * losses.double()).nan_to_num(0.0) / mu
    return torch.where(losses.isnan(), 0, gamma.double() * torch.softmax(scaled, 0))


def scalarization(name: str, mu: float = 0.1) -> Scalarization:
    """A scalarisation by its name on the command line.

    Raises:
        UserError: no such scalarisation.
    """
    if name == "linear":
        return linear
    if name == "smooth-tchebycheff":
        return partial(smooth_tchebycheff, mu=mu)
    raise UserError(f"scalarization {name!r}: choose linear or smooth-tchebycheff")


def relative_weight(name: str, mu: float = 0.1, *, whole: bool) -> Relative | None:
    """log a(S_k, γ_k) of a scalarisation whose weights are a_k / Z; None where they need all K gradients, or S_k too early.

    Args:
        name: the scalarisation.
        mu: as there.
        whole: S_k is known before its backward pass, as it is in one part.
    """
    if name == "linear":  # a = γ, Z = 1
        return lambda loss, share: _log(share)
    if name == "smooth-tchebycheff" and whole:  # a = γ exp(γ S / μ), Z = Σ exp(γ S / μ)
        return lambda loss, share: _log(share) + share * loss / mu
    return None


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
