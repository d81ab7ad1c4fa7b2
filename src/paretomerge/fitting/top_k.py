"""Distilling from part of an expert's prediction: its m largest probabilities one by one, the rest as one bucket.

With T the m classes that the expert p thinks most likely, p_R = 1 − Σ_{i∈T} p_i and q_R = 1 − Σ_{i∈T} q_i,

    KL_T(p ‖ q) = Σ_{i∈T} p_i log(p_i / q_i) + p_R log(p_R / q_R).

The chain rule of the divergence gives what is missing: KL − KL_T = p_R · KL(p(· | not in T) ‖ q(· | not in T)) ≥ 0, at most
p_R · max_{i∉T} log((p_i / p_R) / (q_i / q_R)), and 0 where q = p. With respect to the logits the gradients are q − p and
q − p̃, where p̃ spreads p_R over the rest as q does: they differ by at most 2 p_R (sum of absolute values).

Kept are logarithms in fp16 (relative error 2⁻¹¹) and positions in int32: 6 m + 2 bytes a token, instead of 2 for each class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ENTRIES = 1 << 22
"""Probabilities that exist at a time beside the logits and their gradient."""
_NOTHING = -100.0
"""Logarithm of a rest that is nothing; fp16 has no smaller use."""


@torch.no_grad()
def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the ``count`` likeliest classes and, last, of all others together; and which classes.

    Args:
        logits: (…, classes).
        count: m, at most the number of classes.

    Returns:
        (…, m + 1) fp16 and (…, m) int32.
    """
    flat = logits.flatten(0, -2)
    values = torch.empty(len(flat), count + 1, dtype=torch.float16, device=flat.device)
    places = torch.empty(len(flat), count, dtype=torch.int32, device=flat.device)
    for rows in _chunks(flat):
        log_p = flat[rows].float().log_softmax(-1)
        top, where = log_p.topk(count)
        rest = log_p.scatter_(1, where, -torch.inf).logsumexp(1, keepdim=True)
        values[rows], places[rows] = torch.cat([top, rest], 1).clamp_min(_NOTHING), where
    return values.view(*logits.shape[:-1], -1), places.view(*logits.shape[:-1], -1)


def divergence(logits: Tensor, log_p: Tensor, places: Tensor) -> Tensor:
    """KL_T(expert ‖ merged), mean over n. Beside the logits only their gradient takes memory.

    Args:
        logits: of the merged model, (n, classes), any float dtype.
        log_p: (n, m + 1), as ``largest`` gives them.
        places: (n, m) integers.
    """
    mean: Tensor = _Divergence.apply(logits, log_p, places)
    return mean


class _Divergence(torch.autograd.Function):
    """Value and gradient in one pass: q_i − p_i for i in T, q_i (1 − p_R / q_R) for the others."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_p: Tensor, places: Tensor) -> Tensor:
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for rows in _chunks(logits):
            kept = log_p[rows].to(exact).log_softmax(-1)  # rounding took the sum away from 1
            p, where = kept.exp(), places[rows].long()
            log_q = logits[rows].to(exact).log_softmax(-1)
            top = log_q.gather(1, where)
            q = log_q.exp_().scatter_(1, where, 0)
            rest = q.sum(1, keepdim=True).clamp_min(torch.finfo(exact).tiny)
            total += (p * (kept - torch.cat([top, rest.log()], 1))).sum()
            if ctx.gradient is not None:
                q.mul_(1 - p[:, -1:] / rest).scatter_(1, where, top.exp() - p[:, :-1])
                ctx.gradient[rows] = q.div_(len(logits))
        return (total / len(logits)).to(exact)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # scaled in place, so good for one pass only
        return None if gradient is None else gradient.mul_(outer), None, None


def _chunks(rows: Tensor) -> list[slice]:
    step = max(1, _ENTRIES // max(1, rows.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rows), step)]
