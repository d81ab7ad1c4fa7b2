"""What keeps a quadratic inside a metric's range (MAP, section 3.1, cases 1 to 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from paretomerge.results.objective import Matrix

_EDGE = 0.005
"""Data nearer to a bound than this share of the range are moved off it before the link is inverted: it is infinite there."""


class Link(NamedTuple):
    """metric = forward(quadratic); inverse and derivative of that."""

    name: str
    forward: Callable[[Matrix], Matrix]
    inverse: Callable[[Matrix], Matrix]
    derivative: Callable[[Matrix], Matrix]


def link_of(low: float | None, high: float | None) -> Link:
    """Identity without bounds; l + (u − l) σ(q) in [l, u]; l + softplus(q) in [l, ∞); u − softplus(q) in (−∞, u].

    >>> link_of(0, 1).forward(np.array([0.0])), link_of(1, None).forward(np.array([-800.0, 0.0])).round(3)
    (array([0.5]), array([1.   , 1.693]))
    """
    from scipy.special import expit, logit

    if low is None and high is None:
        return Link("identity", lambda q: q, lambda y: y, np.ones_like)
    if low is not None and high is not None:
        span = high - low

        def slope(q: Matrix) -> Matrix:
            share = expit(q)
            return span * share * (1 - share)

        return Link(
            "sigmoid",
            lambda q: low + span * expit(q),
            lambda y: logit(np.clip((y - low) / span, _EDGE, 1 - _EDGE)),
            slope,
        )
    bound, sign = (low, 1.0) if low is not None else (high or 0.0, -1.0)

    def inverse(y: Matrix) -> Matrix:
        above = sign * (y - bound)
        above = np.maximum(above, max(_EDGE * float(np.median(above)), 1e-6))
        return above + np.log(-np.expm1(-above))  # log(exp(above) − 1), without overflow

    return Link("softplus", lambda q: bound + sign * np.logaddexp(0, q), inverse, lambda q: sign * expit(q))
