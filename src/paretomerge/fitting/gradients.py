"""The gradient of a step with respect to φ, exact in two ways.

K small gradients: the dense gradient of each task is pulled back to row k of J at once and forgotten; the step goes along
wᵀJ with w = scalarisation(S, γ, J). Any scalarisation can be had so.

One dense gradient: where w_k = a(S_k, γ_k) / Z, and Z is the same for all tasks, Σ_k a_k ∂S_k/∂θ is left to add up in the
weights' gradients and is pulled back once. A pull-back reads all K task vectors, so this saves K − 1 of K such readings, and
J. As in an online softmax a_k is handled as its logarithm, and the sum is scaled down when a much larger one comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from paretomerge.fitting.distributed import summed
from paretomerge.fitting.fittable import Fittable
from paretomerge.fitting.scalarization import Relative, Scalarization

_RANGE = 20.0
"""log a_k may exceed the scale of the sum by so much: e²⁰, far from where fp32 overflows."""


class Part(NamedTuple):
    """One micro-batch of a task's loss, still with its graph, and its share of the mean."""

    loss: Tensor
    share: float
    watched: Mapping[str, float]
    """What to keep an eye on, of the batch up to here."""


class Gradient(NamedTuple):
    """What a step finds out."""

    values: Tensor
    """S_k, (K,) fp64; NaN for tasks that sat out."""
    vector: Tensor
    """Σ_k w_k ∂S_k/∂φ, like φ."""
    watched: dict[int, Mapping[str, float]]
    culprits: list[int]
    """Tasks whose loss or gradient is not finite, as far as it is known."""


Parts = Callable[[int], Iterable[Part]]
"""Task k -> the micro-batches of S_k."""


def by_small_gradients(
    learned: Fittable, weights: Mapping[str, nn.Parameter], parts: Parts, chosen: Sequence[int], gamma: Tensor, factors: Tensor,
    weigh: Scalarization,
) -> Gradient:  # fmt: skip
    """K small gradients; see above.

    Args:
        learned: φ.
        weights: the live parameters, at θ(γ).
        parts: see ``Parts``.
        chosen: the tasks that take part.
        gamma: γ, (K,) fp64.
        factors: on each task's weight, (K,).
        weigh: the scalarisation.
    """
    values = torch.full((learned.n_tasks,), math.nan, dtype=torch.float64)
    jacobian = torch.zeros(learned.n_tasks, learned.phi.numel(), dtype=learned.phi.dtype, device=learned.phi.device)
    watched: dict[int, Mapping[str, float]] = {}
    for k in chosen:
        values[k] = 0.0
        for part in parts(k):
            (part.loss * part.share).backward()
            values[k] += float(part.loss.detach()) * part.share
            watched[k] = part.watched
        jacobian[k] = learned.pull_back({name: p.grad for name, p in weights.items()}, gamma)
        _forget(weights)
    jacobian = summed(jacobian, learned.phi.device)
    values[chosen] = summed(values[chosen], learned.phi.device)
    culprits = (~jacobian.isfinite().all(1)).nonzero().flatten().tolist()
    if culprits:
        return Gradient(values, jacobian[0], watched, culprits)
    step_weights = weigh(values, gamma, jacobian) * factors
    return Gradient(values, step_weights.to(jacobian) @ jacobian, watched, [])


def by_one_gradient(
    learned: Fittable, weights: Mapping[str, nn.Parameter], parts: Parts, chosen: Sequence[int], gamma: Tensor, factors: Tensor,
    weigh: Scalarization, relative: Relative,
) -> Gradient:  # fmt: skip
    """One dense gradient; see above. ``relative`` is log a; the other arguments are those of ``by_small_gradients``.

    Where a depends on S_k, ``parts`` must give S_k in one part.
    """
    device = learned.phi.device
    values = torch.full((learned.n_tasks,), math.nan, dtype=torch.float64)
    watched: dict[int, Mapping[str, float]] = {}
    logs: dict[int, float] = {}
    scale = 0.0  # what the gradients hold is e^−scale Σ_k a_k ∂S_k/∂θ
    for k in chosen:
        values[k] = 0.0
        for part in parts(k):
            value = float(part.loss.detach())
            logs[k] = relative(value, float(gamma[k])) + math.log(float(factors[k]))
            if logs[k] > scale + _RANGE:
                for gradient in (p.grad for p in weights.values() if p.grad is not None):
                    gradient.mul_(math.exp(scale - logs[k]))
                scale = logs[k]
            if (share := part.share * math.exp(min(logs[k] - scale, _RANGE))) > 0:
                (part.loss * share).backward()
            values[k] += value * part.share
            watched[k] = part.watched
    vector = learned.pull_back({name: p.grad for name, p in weights.items()}, gamma)
    _forget(weights)
    vector = summed(vector, device)
    values[chosen] = summed(values[chosen], device)
    if not (vector.isfinite().all() and values[chosen].isfinite().all()):
        return Gradient(values, vector, watched, [k for k in chosen if not math.isfinite(values[k])] or list(chosen))
    leader = max(logs, key=lambda k: logs[k])  # w_k e^(scale − log a_k) is the same for all k: e^scale / Z
    if logs[leader] > -math.inf:
        own = float((weigh(values, gamma, vector[None]) * factors)[leader])
        vector *= own / math.exp(logs[leader] - scale)
    return Gradient(values, vector, watched, [])


def _forget(weights: Mapping[str, nn.Parameter]) -> None:
    for parameter in weights.values():
        parameter.grad = None
