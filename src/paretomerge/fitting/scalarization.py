"""From K objectives to one direction: the weights of the K small gradients.

    name                 γ    needs every task   of the K gradients it needs
    linear               yes  no                 nothing: w = γ
    smooth-tchebycheff   yes  no                 nothing: w depends on the losses
    epo                  yes  yes                their Gram matrix: exact Pareto optimal search (``fitting.epo``)
    upgrad               yes  yes                their Gram matrix: γ-weighted, and no objective rises (Quinton & Rey 2024)
    aligned-mtl          yes  yes                their Gram matrix: γ-weighted, condition number 1 (Senushkin et al. 2023)
    mgda                 no   yes                their Gram matrix: the shortest vector of their convex hull (Désidéri 2012)

Every function takes (losses (K,), γ, gradients (K, P)) and returns weights w (K,) in fp64: the step goes along
Σ_k w_k ∇S_k. A task that was skipped has a NaN loss and a zero gradient, and gets weight 0.

The weights of the last four are functions of all K gradients together and do not vanish with γ_k, so a task cannot be left out
of some steps and count more in others without bias, as it can where w_k ≤ γ_k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from paretomerge.decompositions import eigh, non_negative_least_squares
from paretomerge.errors import UserError
from paretomerge.fitting.epo import Tell, exact_pareto

if TYPE_CHECKING:
    from torchjd.linalg import DualConeProjector

Scalarization = Callable[[Tensor, Tensor, Tensor], Tensor]
Relative = Callable[[float, float], float]
"""(S_k, γ_k) -> log a_k, where w_k = a_k / Z with one Z for all tasks."""
Name = Literal["linear", "smooth-tchebycheff", "epo", "mgda", "upgrad", "aligned-mtl"]
NAMES: tuple[str, ...] = get_args(Name)
SKIPPING = ("linear", "smooth-tchebycheff")
"""Those with which tasks of small γ_k may sit steps out."""
_BLOCK = 1 << 18
"""Columns of the gradients that are fp64 at a time."""


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


def epo(losses: Tensor, gamma: Tensor, gradients: Tensor, *, tell: Tell | None = None) -> Tensor:
    """Exact Pareto optimal search, of the gradients' Gram matrix; see ``exact_pareto``."""
    return exact_pareto(losses, gamma, _gram(gradients), tell=tell)


def aggregated(losses: Tensor, gamma: Tensor, gradients: Tensor, *, name: str) -> Tensor:
    """Weights of MGDA, UPGrad or Aligned-MTL, from the Gram matrix of the gradients of the tasks that take part.

    The matrix is divided by its largest entry, so that tolerances are relative.
    """
    from torchjd.aggregation import AlignedMTLWeighting, UPGradWeighting

    there = ~losses.isnan()
    weights = torch.zeros(len(gamma), dtype=torch.float64)
    gram = _gram(gradients)[there][:, there]
    scale = gram.max() if len(gram) else torch.zeros(())
    if scale <= 0:  # every gradient is zero
        return weights
    share = gamma[there].double().cpu()
    gram /= scale
    if name == "mgda":
        weights[there] = shortest(gram)
    elif name == "upgrad":
        weights[there] = UPGradWeighting(share, projector=_projector())(gram)
    else:
        weights[there] = AlignedMTLWeighting(share)(gram)
    return weights


def shortest(gram: Tensor) -> Tensor:
    """MGDA's weights: min ‖Σ_k w_k g_k‖ over the simplex, from the Gram matrix of the g_k.

    For x ≥ 0 of sum s, min ‖Σ x_k g_k‖² + (s − 1)² is s²ρ² + (s − 1)² with ρ the length sought, so its x is a multiple of
    w: one exact non-negative least squares problem, where Frank and Wolfe's steps (torchjd's) take long to come near.
    """
    root = np.vstack([_root(gram), np.ones((1, len(gram)))])
    x = non_negative_least_squares(root, np.eye(len(root))[-1])
    return torch.from_numpy(x / x.sum())


def scalarization(name: str, mu: float = 0.1, tell: Tell | None = None) -> Scalarization:
    """A scalarisation by its name on the command line; ``tell`` hears how epo's steps come about.

    Raises:
        UserError: no such scalarisation.
    """
    if name not in NAMES:
        raise UserError(f"scalarization {name!r}: choose {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if name == "linear":
        return linear
    if name == "smooth-tchebycheff":
        return partial(smooth_tchebycheff, mu=mu)
    return partial(epo, tell=tell) if name == "epo" else partial(aggregated, name=name)


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


def _gram(gradients: Tensor) -> Tensor:
    """(K, K) in fp64, on the processor; near a stationary point little is left of large gradients, so fp64 all through."""
    wide = torch.float32 if gradients.device.type == "mps" else torch.float64
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for block in gradients.split(_BLOCK, dim=1):
        block = block.to(wide)
        gram += (block @ block.T).double().cpu()
    return gram


def _projector() -> DualConeProjector:
    """UPGrad's projections by non-negative least squares; torchjd's own solver is one more dependency.

    min vᵀGv over v ≥ u is min ‖√G s + √G u‖² over s ≥ 0, with v = u + s. As there, a little on G's diagonal keeps the weight of
    a gradient that is nearly zero from growing without bound.
    """
    from torchjd.linalg import DualConeProjector

    class Projector(DualConeProjector):
        def __call__(self, U: Tensor, G: Tensor) -> Tensor:
            root = _root(G + 1e-6 * torch.eye(len(G)))
            rows = [u + non_negative_least_squares(root, -root @ u) for u in U.reshape(-1, len(G)).numpy()]
            return torch.from_numpy(np.stack(rows)).reshape(U.shape)

    return Projector()


def _root(gram: Tensor) -> np.ndarray:
    """R with RᵀR = G."""
    values, vectors = eigh(gram.double())
    root: np.ndarray = (values.clamp(min=0).sqrt()[:, None] * vectors.T).numpy()
    return root
